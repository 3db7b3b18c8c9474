"""What is lowered: each pass of the engine, in the sizes and batches of the shipped configurations, for each GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.settings import load
from tests.gpu_codegen.gpus import A100, GPUS, H100, Gpu
from workers.engine.config import EngineConfig, rows_of
from workers.engine.execution import buckets
from workers.engine.plan import Size

STEP = ("encode", "control", "decode")  # the compiled passes of a step
WHOLE = ("vae", "text")  # of an image; without batches
FLOAT8 = "_fp8"  # the end of a pass's name, with engine.quantisation
CONFIGS = Path(__file__).parents[2] / "configs"
FULL_SIZE = ("sd15-canny.yaml", "sd15-canny-lcm.yaml")
_LATENT = 8  # pixels along a side of one latent of Stable Diffusion


@dataclass(frozen=True, slots=True)
class Case:
    """A pass on B images of one size, each with a number of rows, for a GPU."""

    which: str
    gpu: Gpu
    size: Size
    images: int = 1
    rows: int = 1

    @property
    def name(self) -> str:
        """As in "encode-64x64-1x2-sm_90"."""
        return f"{self.inputs}-{self.gpu.arch}"

    @property
    def inputs(self) -> str:
        """The same for any GPU."""
        return f"{self.which}-{self.size[0]}x{self.size[1]}-{self.images}x{self.rows}"

    @classmethod
    def named(cls, name: str) -> "Case":
        """The case with this name."""
        which, size, batch, arch = name.split("-")
        height, width = map(int, size.split("x"))
        images, rows = map(int, batch.split("x"))
        return cls(which, GPUS[arch], (height, width), images, rows)


def quick() -> list[Case]:
    """Those that every change is tested with: a guided image alone, and the fullest batch of the H100."""
    (engine, *_) = engines()
    (size, *_), largest, rows = sizes(engine), engine.slots, rows_of(engine.guidance_scale)
    return [
        *(Case(which, H100, size, images, rows) for images in (1, largest) for which in STEP),
        Case("encode" + FLOAT8, H100, size, 1, rows),  # all kinds of layers are in it
        *(Case(which, A100, size, 1, rows) for which in STEP),
        *(Case(which, H100, size) for which in WHOLE),
    ]


def every() -> list[Case]:
    """Those of all shipped configurations, each once."""
    return list(dict.fromkeys(_every()))


def _every() -> Iterator[Case]:
    for gpu in GPUS.values():
        for engine in engines():
            for size in sizes(engine):
                yield from (Case(which, gpu, size) for which in WHOLE)
                for images in buckets(engine.slots, exact=False):
                    yield from (Case(which, gpu, size, images, rows_of(engine.guidance_scale)) for which in STEP)


def engines() -> list[EngineConfig]:
    """The shipped configurations of the full-size model."""
    return [load(CONFIGS / name, {}).engine for name in FULL_SIZE]


def sizes(engine: EngineConfig) -> list[Size]:
    """The sizes of latents that are compiled; others run as plain graphs."""
    side = engine.size.short_side
    return [(height // _LATENT, width // _LATENT) for width, height in engine.speed.sizes or [(side, side)]]
