"""How good a model is at 256 pixels: held-out scenes and a photograph, through the diffusers pipeline.

The photograph (photograph.jpg) is a part of NASA's portrait of the astronaut Eileen Collins, which is in the public
domain (https://flic.kr/p/r9qvLn): columns 60 to 443 of the upper 384 rows of the copy in scikit-image.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from example.demo_model.drawing import SIZE, Pixels
from example.demo_model.painter import GUIDANCE, STEPS, Painter, Painting
from example.demo_model.scenes import HELD_OUT, Scene, dense_scenes, flat_scenes, mixed_scenes
from example.demo_model.scoring import TOLERANCE, colours, edge_f1, edges

Draw: TypeAlias = Callable[[int, int], list[Scene]]  # count, seed
Paint: TypeAlias = Callable[..., list[Painting]]  # as `Painter.paint_scenes`

SCENES = 40  # of flat and of mixed styles
FEWER = 16  # scenes are enough for what is a plain yes or no
FEWEST = 2  # scenes; a single one has no other to be compared with
RESEEDED = 8  # scenes
ALONE = 3  # images
FEWEST_EDGES = 60  # pixels; grey on brown has next to none, and then there is nothing to keep
SEED = 1  # of the noise
OTHER_SEED = 1_000_001
PHOTOGRAPH = Path(__file__).with_name("photograph.jpg")
PROMPTS = (
    "a blue shape on an orange background",
    "a yellow face on a purple background",
    "neon green shapes on a black background",
    "red, white and blue regions",
)


@dataclass(frozen=True)
class Tally:
    """How many were right, of how many."""

    right: int
    of: int

    def __str__(self) -> str:
        return f"{self.right} of {self.of}"


@dataclass(frozen=True)
class Obedience:
    """How scenes of a kind were kept to: their edges (mean F1) and the colours that their captions name."""

    edges: float
    shapes: Tally
    backgrounds: Tally

    @property
    def named(self) -> str:
        """Both counts of colours."""
        return f"{self.shapes}; {self.backgrounds}"


@dataclass(frozen=True)
class Ceiling:
    """The scores of the scenes' own images after the VAE: no generated image can be expected to score more."""

    flat: Obedience
    mixed: Obedience
    photograph: float


@dataclass(frozen=True)
class Paintings:
    """The generated images to score. The last four lists are of the first flat scenes, the very last of only one."""

    flat: Sequence[Painting]
    mixed: Sequence[Painting]
    dense: Sequence[Painting]
    photograph: Sequence[Painting]
    uncontrolled: Sequence[Painting]
    reseeded: Sequence[Painting]
    repeated: Sequence[Painting]
    alone: Sequence[Painting]  # each with another seed
    seconds: Sequence[float]  # that those took


@dataclass(frozen=True)
class Scores:
    """A model's scores; edges are mean F1 within 2 pixels, differences are of 255."""

    flat: Obedience
    mixed: Obedience
    dense: float
    photograph: Mapping[str, float]  # by prompt
    uncontrolled: float  # edges, with the control off
    chance: float  # edges, against those of another scene
    ceiling: Ceiling
    reseeded: float  # edges
    difference: float  # that another seed makes
    unrepeated: float  # difference that the same seed makes
    seconds: float  # an image alone
    size: int  # bytes of weights
    guidance: float
    paintings: Paintings = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """All but the paintings, as JSON has it."""
        numbers = {name: value for name, value in vars(self).items() if name != "paintings"}
        return {
            name: value if isinstance(value, int | float | dict) else asdict(value) for name, value in numbers.items()
        }

    def table(self) -> str:
        """A table in Markdown."""
        rows = [(f"at {SIZE} px, guidance {self.guidance:g}", "score"), ("---", "---"), *self._rows()]
        return "\n".join(f"| {name} | {value} |" for name, value in rows)

    def _rows(self) -> Iterator[tuple[str, str]]:
        for name, kind in (("flat scenes", self.flat), ("mixed styles", self.mixed)):
            yield f"{name}: edge F1, {TOLERANCE} px", f"{kind.edges:.3f}"
            yield f"{name}: named colour in shapes; in backgrounds", kind.named
        yield "dense scenes: edge F1", f"{self.dense:.3f}"
        for prompt, f1 in self.photograph.items():
            yield f"photograph, “{prompt}”: edge F1", f"{f1:.3f}"
        yield "photograph, mean: edge F1", f"{mean(self.photograph.values()):.3f}"
        yield "flat scenes with the control off: edge F1", f"{self.uncontrolled:.3f}"
        yield "flat scenes against another scene's edges (chance): edge F1", f"{self.chance:.3f}"
        ceiling = self.ceiling
        yield "the VAE alone, flat; mixed: edge F1", f"{ceiling.flat.edges:.3f}; {ceiling.mixed.edges:.3f}"
        yield "the VAE alone, mixed styles: named colour in shapes; in backgrounds", ceiling.mixed.named
        yield "the VAE alone, photograph: edge F1", f"{ceiling.photograph:.3f}"
        yield "another seed: mean difference of 255; edge F1", f"{self.difference:.2f}; {self.reseeded:.3f}"
        yield "the same seed again: mean difference of 255", f"{self.unrepeated:.2f}"
        yield "an image alone, median", f"{self.seconds:.2f} s"
        yield "weights", f"{self.size / 1e6:.1f} MB"


def evaluate(folder: Path, guidance: float = GUIDANCE, scenes: int = SCENES, steps: int = STEPS) -> Scores:
    """Paint and score `scenes` (2 or more) flat and as many mixed scenes, and what else there is in the table.

    Raises FileNotFoundError where the folder holds no model, and ValueError for fewer scenes.
    """
    if scenes < FEWEST:
        raise ValueError(f"{scenes} scenes: at least {FEWEST} are needed, for a scene's edges to be those of another")
    with tqdm(total=_count(scenes), desc="painting", unit="image") as bar:
        painter = Painter(folder, painted=bar.update)
        made = _paintings(partial(painter.paint_scenes, guidance=guidance, steps=steps), scenes)
    return Scores(
        flat=obedience(made.flat),
        mixed=obedience(made.mixed),
        dense=_kept(made.dense),
        photograph={each.scene.caption: each.f1 for each in made.photograph},
        uncontrolled=_kept(made.uncontrolled),
        chance=_chance(made.flat),
        ceiling=_ceiling(painter, made.flat, made.mixed, made.photograph[:1]),
        reseeded=_kept(made.reseeded),
        difference=_difference(made.flat, made.reseeded),
        unrepeated=_difference(made.flat, made.repeated),
        seconds=median(made.seconds),
        size=sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
        guidance=guidance,
        paintings=made,
    )


def _count(scenes: int) -> int:
    """How many images there are to paint."""
    return 2 * scenes + 2 * min(FEWER, scenes) + 2 * min(RESEEDED, scenes) + len(PROMPTS) + ALONE


def _paintings(paint: Paint, count: int) -> Paintings:
    scenes = held_out(flat_scenes, count)
    alone = [partial(paint, scenes[:1], SEED + number) for number in range(ALONE)]
    # The last are timed, so they come when all is warm; the arguments are painted in this order.
    return Paintings(
        paint(scenes, SEED),
        paint(held_out(mixed_scenes, count), SEED),
        paint(held_out(dense_scenes, min(FEWER, count)), SEED),
        paint([photograph_as(prompt) for prompt in PROMPTS], SEED),
        paint(scenes[:FEWER], SEED, control_scale=0.0),
        paint(scenes[:RESEEDED], OTHER_SEED),
        paint(scenes[:RESEEDED], SEED),
        *_timed(alone),
    )


def held_out(draw: Draw, count: int) -> list[Scene]:
    """The first scenes that training has not seen and that have edges to keep."""
    drawn = itertools.chain.from_iterable(draw(count, seed) for seed in itertools.count(HELD_OUT, count))
    return list(itertools.islice(filter(_has_edges, drawn), count))


def photograph_as(prompt: str) -> Scene:
    """The photograph at 256 pixels, with a prompt for its caption."""
    with Image.open(PHOTOGRAPH) as image:
        small = cv2.resize(np.asarray(image), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return Scene(np.asarray(small, np.uint8), prompt, ())


def _has_edges(scene: Scene) -> bool:
    return int(edges(scene.image).sum()) > FEWEST_EDGES


def obedience(paintings: Sequence[Painting]) -> Obedience:
    """The mean of their scores; where there are regions, the last is the background."""
    return Obedience(_kept(paintings), _named(paintings, slice(-1)), _named(paintings, slice(-1, None)))


def _named(paintings: Iterable[Painting], regions: slice) -> Tally:
    """How many of some of the scenes' regions have the colour that their caption names."""
    scenes = ((replace(each.scene, regions=each.scene.regions[regions]), each.image) for each in paintings)
    right = [named == found for scene, image in scenes for named, found in colours(scene, image)]
    return Tally(sum(right), len(right))


def _kept(paintings: Iterable[Painting]) -> float:
    return mean(each.f1 for each in paintings)


def _chance(paintings: Sequence[Painting]) -> float:
    others = [*paintings[1:], paintings[0]]
    pairs = zip(paintings, others, strict=True)
    return mean(edge_f1(edges(other.scene.image), edges(each.image)) for each, other in pairs)


def _ceiling(painter: Painter, *kinds: Sequence[Painting]) -> Ceiling:
    flat, mixed, photograph = (obedience(painter.reconstruct_scenes([each.scene for each in kind])) for kind in kinds)
    return Ceiling(flat, mixed, photograph.edges)


def _difference(ones: Iterable[Painting], others: Iterable[Painting]) -> float:
    """Mean over pixels and channels, of 255; the shorter of the two says how many are compared."""
    return mean(_apart(one.image, other.image) for one, other in zip(ones, others, strict=False))


def _apart(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(np.float64) - other).mean())


def _timed(paints: Iterable[Callable[[], list[Painting]]]) -> tuple[list[Painting], list[float]]:
    """Their images, and the seconds that each takes."""
    painted: list[Painting] = []
    seconds: list[float] = []
    for paint in paints:
        began = time.perf_counter()
        painted += paint()
        seconds.append(time.perf_counter() - began)
    return painted, seconds
