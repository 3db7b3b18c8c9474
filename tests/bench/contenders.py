"""What `cpu.py` compares: this service's engine by runtime and precision, diffusers, and OpenVINO on diffusers' graph.

Each contender runs in a process of its own, a `Racer`, so that the thread pools of one do not disturb another. It does
nothing until it is asked to time one of its works:

- `step`: of our engine, one guided step of one image with all that belongs to it; of the others, their networks alone.
- `networks`: our engine's networks alone.
- `VAE`: from latents to RGB pixels.
- `image`: from text and edges to pixels; our engine also reads the PNG file and finds the edges.
"""

import json
import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from unittest.mock import patch

from workers.convert import read_engine, to_onnx, to_openvino
from workers.engine.config import EngineConfig, Weights
from workers.machine import available_cores, keep_freed_memory
from workers.worker_main import SPINS

if TYPE_CHECKING:
    from torch import Tensor, nn

Work: TypeAlias = Callable[[], object]
Works: TypeAlias = Mapping[str, Work]
Runtime: TypeAlias = Literal["torch", "openvino", "onnxruntime"]

ROOT = Path(__file__).parents[2]
_TEXT = "a red circle on a white background"
_TRACED_SIDE = 128  # pixels: the graph is made for other sizes afterwards
_PATIENCE_S = 3600.0
FULL_SIZE = "full-size"  # folder of the random weights


@dataclass(frozen=True, slots=True)
class Case:
    """A model and a size: square images of `side` pixels. Files that are made are kept in `folder`."""

    model: Literal["demo", "full"]
    side: int
    steps: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.model}-{self.side}"

    def config(self, **changes: Any) -> EngineConfig:
        """As shipped, for one image of this size at a time."""
        shipped = read_engine(ROOT / "configs" / {"demo": "demo.yaml", "full": "sd15-canny.yaml"}[self.model])
        if self.model == "full":
            weights = self.folder / FULL_SIZE
            changes |= {"model": Weights(path=str(weights)), "controlnet": Weights(path=str(weights / "controlnet"))}
        size = replace(shipped.size, short_side=self.side)
        sampler = replace(shipped.sampler, steps=self.steps)
        return replace(shipped, slots=1, size=size, sampler=sampler, onnx=str(self.folder / "onnx"), **changes)


@dataclass(frozen=True, slots=True)
class Contender:
    """What to compare. `prepare` makes files, `build` returns the works; both run in the contender's process.

    `gib`: memory that it takes at full size. `spins`: whether OpenMP's threads spin for as long as they do by default,
    and not as briefly as in this service's workers.
    """

    name: str
    dtype: Literal["float32", "bfloat16"]
    gib: float
    build: Callable[[Case, str], Works]
    prepare: Callable[[Case, str], object] = lambda case, dtype: None
    spins: bool = False


# ------------------------------------------------------------------------------------------------------------- service


def _engine(runtime: Runtime, case: Case, dtype: str) -> Works:
    import torch

    from tests.workers.engine import demo
    from workers.engine import build
    from workers.engine.contract import Task
    from workers.engine.engine import DiffusionEngine

    engine = build(case.config(runtime=runtime, dtype=dtype), "cpu")
    assert isinstance(engine, DiffusionEngine)
    engine.warm_up()
    assert engine.wait_until_compiled(_PATIENCE_S)
    if runtime == "openvino":
        done = dict(engine.status().graphs)
        assert done["steps compiled"] == done["VAE compiled"] + done["VAE kept uncompiled"] == 1, engine.status()
    batch = engine._execution.spaces.of(engine._nominal).batch
    networks = partial(batch._steps[1]._function, batch._padding(1))
    png, numbers = demo.image(case.side, case.side), count()

    def image() -> object:
        engine.admit(0, engine.prepare(Task(png, f"{_TEXT} {next(numbers)}", 1)))  # a new prompt, to be encoded
        while engine.step():
            pass
        return engine.collect(engine.finish(0))

    latents = torch.randn(engine._model.latent_channels, *engine._nominal)
    return {
        "step": engine.dummy_run(1),
        "networks": networks,
        "VAE": partial(engine.decode, latents),
        "image": image,
    }


def _convert_ours(case: Case, dtype: str) -> None:
    from workers.engine.runtimes import openvino_files

    to_openvino(case.config(runtime="openvino", dtype=dtype), openvino_files.cache())


def _export_ours(case: Case, dtype: str) -> None:
    from workers.engine.runtimes.files import paths

    config = case.config(runtime="onnxruntime", dtype=dtype)
    if not all(path.is_file() for path in paths(config, dtype)):
        to_onnx(config, dtype)


# ----------------------------------------------------------------------------------------------------------- diffusers


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """diffusers' pipeline without its checks and its progress bar; `step` and `vae` run its networks."""

    case: Case
    config: EngineConfig
    parts: Any
    shape: tuple[int, int, int]  # of the latents
    step: "Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]"
    vae: "Callable[[Tensor], Tensor]"
    dtype: Any

    def works(self) -> Works:
        import torch

        texts = count()
        latents, edges = torch.randn(1, *self.shape), torch.rand(1, 3, self.case.side, self.case.side)
        latents, edges = latents.to(self.dtype), edges.to(self.dtype)
        text = self._encode(_TEXT)
        return {
            "step": partial(self.step, latents, torch.tensor([500]), text, edges),
            "VAE": partial(self.vae, latents[0]),
            "image": lambda: self._image(f"{_TEXT} {next(texts)}", latents, edges),
        }

    def _image(self, text: str, latents: "Tensor", edges: "Tensor") -> "Tensor":
        from workers.engine.model import make_scheduler

        encoded = self._encode(text)
        scheduler: Any = make_scheduler(self.config.sampler, self.parts.scheduler)
        latents = latents * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep).to(self.dtype)
            noise = self.step(scaled, timestep.view(1), encoded, edges)
            latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
        return self.vae(latents[0].to(self.dtype))

    def _encode(self, text: str) -> "Tensor":
        import torch

        from workers.engine.conditioning import Tokens

        tokens = Tokens(self.parts.tokenizer, self.config.prompt)
        rows = torch.tensor([tokens.negative().tokens, tokens.positive(text).tokens])
        encoded: Tensor = self.parts.text_encoder(rows)[0]
        return encoded.to(self.dtype)


def _latents(parts: Any, side: int) -> tuple[int, int, int]:
    """The shape of the latents of an image."""
    from workers.engine.model import latent_scale

    scale = latent_scale(parts.vae)
    return parts.unet.config.in_channels, side // scale, side // scale


def _networks(parts: Any, guidance_scale: float) -> "nn.Module":
    """diffusers' ControlNet and UNet with guidance, as its pipeline calls them."""
    from torch import cat, nn

    class Networks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet, self.controlnet = parts.unet, parts.controlnet

        def forward(self, latents: "Tensor", timestep: "Tensor", text: "Tensor", edges: "Tensor") -> "Tensor":
            both = cat([latents] * 2)
            down, middle = self.controlnet(
                both, timestep, encoder_hidden_states=text, controlnet_cond=cat([edges] * 2), return_dict=False
            )
            noise = self.unet(
                both,
                timestep,
                encoder_hidden_states=text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
            unconditional, conditional = noise.chunk(2)
            guided: Tensor = unconditional + guidance_scale * (conditional - unconditional)
            return guided

    return Networks().eval()


def _decoder(vae: Any) -> "nn.Module":
    from torch import nn

    from workers.engine.model import decode

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, latents: "Tensor") -> "Tensor":
            return decode(self.vae, latents)

    return Decoder().eval()


def _diffusers(case: Case, dtype: str, *, compiled: bool = False) -> Works:
    import torch

    from workers.engine.model import read

    config = case.config()
    parts = read(config, getattr(torch, dtype))
    for network in (parts.unet, parts.controlnet, parts.vae):
        network.eval().to(memory_format=torch.channels_last)
    if compiled:
        for network in (parts.unet, parts.controlnet, parts.vae.decoder):
            network.compile(fullgraph=True, dynamic=False)
    step, vae = _networks(parts, config.guidance_scale), _decoder(parts.vae)
    return _Pipeline(case, config, parts, _latents(parts, case.side), step, vae, getattr(torch, dtype)).works()


def _files(case: Case) -> tuple[Path, Path]:
    folder = case.folder / f"diffusers-{case.model}"
    return folder / "step.xml", folder / "vae.xml"


def _convert_diffusers(case: Case, dtype: str) -> None:
    """Convert diffusers' networks, in float32 as ours."""
    import torch

    from workers.engine.model import read

    step, vae = _files(case)
    if vae.is_file():
        return
    config, side = case.config(), _TRACED_SIDE
    parts = read(config, torch.float32)
    latents, edges = torch.zeros(1, *_latents(parts, side)), torch.zeros(1, 3, side, side)
    text = torch.zeros(2, 77, parts.unet.config.cross_attention_dim)
    _convert(_networks(parts, config.guidance_scale), (latents, torch.tensor([500]), text, edges), step)
    _convert(_decoder(parts.vae), (latents[0],), vae)


def _convert(network: "nn.Module", inputs: "tuple[Tensor, ...]", path: Path) -> None:
    import openvino as ov
    import torch

    with torch.no_grad():
        traced = torch.jit.trace(network, inputs, check_trace=False, strict=False)
        model = ov.convert_model(traced, example_input=inputs)
    ov.save_model(model, path, compress_to_fp16=False)


def _openvino(case: Case, dtype: str) -> Works:
    import torch

    from workers.engine.model import read

    config = case.config()
    parts = read(config, torch.float32)
    width, shape = parts.unet.config.cross_attention_dim, _latents(parts, case.side)
    parts = replace(parts, unet=None, controlnet=None, vae=None)  # OpenVINO has its own copies
    step, vae = _files(case)
    shapes = (1, *shape), (1,), (2, 77, width), (1, 3, case.side, case.side)
    works = _compiled(step, dtype, shapes), _compiled(vae, dtype, (shape,))
    return _Pipeline(case, config, parts, shape, *works, torch.float32).works()


def _compiled(path: Path, dtype: str, shapes: tuple[tuple[int, ...], ...]) -> "Callable[..., Tensor]":
    """A network for these shapes, with the properties that our engine sets too."""
    import openvino as ov
    import torch

    core = ov.Core()
    model = core.read_model(path)
    model.reshape({port: ov.PartialShape([*shape]) for port, shape in zip(model.inputs, shapes, strict=True)})
    properties = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_HYPER_THREADING": True,
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    return lambda *inputs: torch.from_numpy(request.infer([each.numpy() for each in inputs], share_inputs=True)[0])


# ---------------------------------------------------------------------------------------------------------- contenders

BASELINE = "OpenVINO on diffusers' graph"
_OURS = "this service: "
TORCH, OPENVINO = f"{_OURS}torch", f"{_OURS}OpenVINO"
# In this order two at a time fit into memory at full size, and those that matter most are together.
CONTENDERS = (
    Contender(BASELINE, "bfloat16", 5, _openvino, _convert_diffusers),
    Contender(OPENVINO, "bfloat16", 8, partial(_engine, "openvino"), _convert_ours),
    Contender(TORCH, "bfloat16", 4, partial(_engine, "torch")),
    Contender("diffusers", "bfloat16", 4, _diffusers, spins=True),
    Contender("diffusers, compiled", "bfloat16", 6, partial(_diffusers, compiled=True), spins=True),
    Contender(BASELINE, "float32", 7, _openvino, _convert_diffusers),
    Contender(OPENVINO, "float32", 12, partial(_engine, "openvino"), _convert_ours),
    Contender(TORCH, "float32", 7, partial(_engine, "torch")),
    Contender(f"{_OURS}ONNX Runtime", "float32", 7, partial(_engine, "onnxruntime"), _export_ours),
    Contender("diffusers", "float32", 7, _diffusers, spins=True),
    Contender("diffusers, compiled", "float32", 9, partial(_diffusers, compiled=True), spins=True),
)


# ----------------------------------------------------------------------------------------------------------- processes


class RacerError(RuntimeError):
    """The process of a contender has failed; the message says how."""


class Racer:
    """The process of a contender. `spins` replaces the contender's own, `threads` all cores.

    With `only_prepare` it makes its files, and has no works.
    """

    def __init__(
        self,
        contender: Contender,
        case: Case,
        threads: int | None = None,
        spins: bool | None = None,
        only_prepare: bool = False,
    ) -> None:
        self.contender = contender
        self._pipe, theirs = multiprocessing.Pipe()
        arguments = theirs, CONTENDERS.index(contender), case, only_prepare
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments, daemon=True)
        wanted = {
            "OMP_NUM_THREADS": str(threads or available_cores()),
            "GOMP_SPINCOUNT": "" if (contender.spins if spins is None else spins) else SPINS,
            "OPENVINO_CACHE_PATH": str(case.folder / "openvino"),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        with patch.dict(os.environ, {name: value for name, value in wanted.items() if value}):
            self._process.start()
        theirs.close()

    def ask(self, work: str, warm: int, repeats: int, seconds: float = _PATIENCE_S) -> None:
        """Begin to time a work: after `warm` runs, `repeats` more, or fewer where they take longer."""
        self._pipe.send((work, warm, repeats, seconds))

    def answer(self) -> Any:
        """Wait for the times in seconds; at first, for the names of the works. Raises RacerError."""
        try:
            found = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RacerError(f"ended with exit code {self._process.exitcode}") from None
        if isinstance(found, str):
            raise RacerError(found)
        return found

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, index: int, case: Case, only_prepare: bool) -> None:
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    keep_freed_memory()
    contender = CONTENDERS[index]
    torch.set_grad_enabled(False)
    try:
        contender.prepare(case, contender.dtype)
        works = {} if only_prepare else contender.build(case, contender.dtype)
        pipe.send(tuple(works))
        while True:
            work, *bounds = pipe.recv()
            pipe.send(_times(works[work], *bounds))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - whatever it is belongs into the report
        pipe.send(f"{type(error).__name__}: {error}"[:500])


def _times(work: Work, warm: int, repeats: int, seconds: float) -> list[float]:
    for _ in range(warm):
        work()
    times, end = list[float](), time.perf_counter() + seconds
    while len(times) < repeats and (not times or time.perf_counter() < end):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def write_full_size(case: Case, device: str = "cpu") -> None:
    """Write the random weights of the full-size model, in half precision, as diffusers lays them out.

    `device` is where they are drawn: on a GPU that takes a second.
    """
    import torch

    from tests.workers.engine.demo import of_transformers
    from tests.workers.engine.full_size import random_parts

    folder = case.folder / FULL_SIZE
    if folder.is_dir():
        return
    parts = random_parts(device, torch.float16)
    unfinished = folder.with_name("unfinished")
    for name in ("unet", "controlnet", "vae", "text_encoder"):
        getattr(parts, name).save_pretrained(unfinished / name)
    of_transformers(parts.tokenizer).save_pretrained(unfinished / "tokenizer")
    (unfinished / "scheduler").mkdir(exist_ok=True)
    (unfinished / "scheduler" / "scheduler_config.json").write_text(json.dumps(parts.scheduler))
    unfinished.rename(folder)
