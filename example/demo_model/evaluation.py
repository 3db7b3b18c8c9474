"""How good a model is at 256 pixels: held-out scenes and six photographs, through the diffusers pipeline.

photographs/README.md names the source and the licence of each photograph.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from example.demo_model.drawing import SIZE, Pixels, edges
from example.demo_model.painter import GUIDANCE, STEPS, Painter, Painting
from example.demo_model.scenes import HELD_OUT, Scene, dense_scenes, flat_scenes, mixed_scenes
from example.demo_model.scoring import TOLERANCE, colours, edge_f1, edge_recall, mottle

Draw: TypeAlias = Callable[[int, int], list[Scene]]  # count, seed
Paint: TypeAlias = Callable[..., list[Painting]]  # as `Painter.paint_scenes`

SCENES = 40  # of flat and of mixed styles
FEWER = 12  # scenes are enough for what is a plain yes or no
FEWEST = 2  # scenes; a single one has no other to be compared with
RESEEDED = 8  # scenes
ALONE = 3  # images
FEWEST_EDGES = 60  # pixels; grey on brown has next to none, and then there is nothing to keep
SEED = 1  # of the noise
OTHER_SEED = 1_000_001
LARGE = 384  # pixels
FOLDER = Path(__file__).with_name("photographs")
LOOKED_AT = ("portrait", "cat", "rocket")  # while the model was tuned
PHOTOGRAPHS = (*LOOKED_AT, "cup", "street", "face")
OPEN = ("a muscle man", "a portrait of a woman in the snow")  # prompts that leave the colours to the seed
NAMED = ("a yellow face on a purple background",)
PROMPTS = (*OPEN, *NAMED, "red, white and blue regions")
LARGE_PROMPTS = (OPEN[0], NAMED[0])


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
class Clarity:
    """How well the images of photographs can be read: the recall of their edges, and their mottle (see `scoring`)."""

    recall: float  # mean
    least: float
    mottle: float  # mean
    most: float

    def __str__(self) -> str:
        return f"{self.recall:.3f}, {self.least:.3f}; {self.mottle:.1f}, {self.most:.1f}"


@dataclass(frozen=True)
class Reseeded:
    """What another seed changes, and how well its images keep the edges: mean F1, for photographs mean recall."""

    difference: float  # mean over pixels and channels, of 255
    edges: float

    def __str__(self) -> str:
        return f"{self.difference:.2f}; {self.edges:.3f}"


@dataclass(frozen=True)
class Ceiling:
    """The scores of the scenes' own images after the VAE: no generated image can be expected to score more."""

    flat: Obedience
    mixed: Obedience
    photographs: Clarity


@dataclass(frozen=True)
class Paintings:
    """The generated images to score. The last four lists are of the first flat scenes, the very last of only one.

    Those of photographs have all photographs for the first prompt, then for the next: as `photograph_scenes` has them.
    """

    flat: Sequence[Painting]
    mixed: Sequence[Painting]
    dense: Sequence[Painting]
    photographs: Sequence[Painting]  # PROMPTS
    other_photographs: Sequence[Painting]  # with another seed: OPEN, NAMED
    large: Sequence[Painting]  # 384 pixels: LARGE_PROMPTS
    uncontrolled: Sequence[Painting]
    reseeded: Sequence[Painting]
    repeated: Sequence[Painting]
    alone: Sequence[Painting]  # each with another seed
    seconds: Sequence[float]  # that those took


@dataclass(frozen=True)
class Scores:
    """A model's scores; edges are mean F1 within 2 pixels."""

    flat: Obedience
    mixed: Obedience
    dense: float
    photographs: Mapping[str, Clarity]  # by name
    large: Clarity  # of all at 384 pixels
    originals: Clarity  # of the photographs themselves
    uncontrolled: float  # edges, with the control off
    chance: float  # edges, against those of another scene
    ceiling: Ceiling
    flat_seeds: Reseeded
    open_seeds: Reseeded  # photographs, and a prompt without colours
    named_seeds: Reseeded  # photographs, and a prompt that names two colours
    unrepeated: float  # mean difference of 255 that the same seed makes
    seconds: float  # an image alone
    size: int  # bytes of weights
    guidance: float
    paintings: Paintings = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """All but the paintings, as JSON has it."""
        return {name: _plain(value) for name, value in vars(self).items() if name != "paintings"}

    def table(self) -> str:
        """A table in Markdown."""
        rows = [(f"at {SIZE} px, guidance {self.guidance:g}", "score"), ("---", "---"), *self._rows()]
        return "\n".join(f"| {name} | {value} |" for name, value in rows)

    def _rows(self) -> Iterator[tuple[str, str]]:
        for name, kind in (("flat scenes", self.flat), ("mixed styles", self.mixed)):
            yield f"{name}: edge F1, {TOLERANCE} px", f"{kind.edges:.3f}"
            yield f"{name}: named colour in shapes; in backgrounds", kind.named
        yield "dense scenes: edge F1", f"{self.dense:.3f}"
        measures = "edge recall, mean and least; mottle, mean and most"
        for name, score in self.photographs.items():
            yield f"{name}{'' if name in LOOKED_AT else ' (never looked at while tuning)'}: {measures}", str(score)
        yield f"photographs at {LARGE} px: {measures}", str(self.large)
        yield "the photographs themselves: mottle, mean and most", str(self.originals).split("; ")[1]
        yield "flat scenes with the control off: edge F1", f"{self.uncontrolled:.3f}"
        yield "flat scenes against another scene's edges (chance): edge F1", f"{self.chance:.3f}"
        ceiling = self.ceiling
        yield "the VAE alone, flat; mixed: edge F1", f"{ceiling.flat.edges:.3f}; {ceiling.mixed.edges:.3f}"
        yield "the VAE alone, mixed styles: named colour in shapes; in backgrounds", ceiling.mixed.named
        yield f"the VAE alone, photographs: {measures}", str(ceiling.photographs)
        yield "another seed, flat scenes: mean difference of 255; edge F1", str(self.flat_seeds)
        yield "another seed, photographs, no colour named: difference; edge recall", str(self.open_seeds)
        yield "another seed, photographs, two colours named: difference; edge recall", str(self.named_seeds)
        yield "the same seed again: mean difference of 255", f"{self.unrepeated:.2f}"
        yield "an image alone, median", f"{self.seconds:.2f} s"
        yield "weights", f"{self.size / 1e6:.1f} MB"


def evaluate(folder: Path, guidance: float = GUIDANCE, scenes: int = SCENES, steps: int = STEPS) -> Scores:
    """Paint and score `scenes` (2 or more) flat and as many mixed scenes, and what else there is in the table.

    Fewer than six scenes mean as many photographs.

    Raises FileNotFoundError where the folder holds no model, and ValueError for fewer scenes.
    """
    if scenes < FEWEST:
        raise ValueError(f"{scenes} scenes: at least {FEWEST} are needed, for a scene's edges to be those of another")
    with tqdm(total=_count(scenes), desc="painting", unit="image") as bar:
        painter = Painter(folder, painted=bar.update)
        made = _paintings(partial(painter.paint_scenes, guidance=guidance, steps=steps), scenes)
    count = min(scenes, len(PHOTOGRAPHS))
    return Scores(
        flat=obedience(made.flat),
        mixed=obedience(made.mixed),
        dense=_kept(made.dense),
        photographs={name: clarity(made.photographs[place::count]) for place, name in enumerate(PHOTOGRAPHS[:count])},
        large=clarity(made.large),
        originals=clarity([Painting(each.scene, each.scene.image) for each in made.photographs[:count]]),
        uncontrolled=_kept(made.uncontrolled),
        chance=_chance(made.flat),
        ceiling=_ceiling(painter, made.flat, made.mixed, made.photographs[:count]),
        flat_seeds=Reseeded(_difference(made.flat, made.reseeded), _kept(made.reseeded)),
        open_seeds=_reseeded(made, OPEN),
        named_seeds=_reseeded(made, NAMED),
        unrepeated=_difference(made.flat, made.repeated),
        seconds=median(made.seconds),
        size=sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
        guidance=guidance,
        paintings=made,
    )


def _count(scenes: int) -> int:
    """How many images there are to paint."""
    photographed = min(scenes, len(PHOTOGRAPHS)) * len((*PROMPTS, *OPEN, *NAMED, *LARGE_PROMPTS))
    return 2 * scenes + 2 * min(FEWER, scenes) + 2 * min(RESEEDED, scenes) + photographed + ALONE


def _paintings(paint: Paint, count: int) -> Paintings:
    scenes = held_out(flat_scenes, count)
    alone = [partial(paint, scenes[:1], SEED + number) for number in range(ALONE)]
    # The last are timed, so they come when all is warm; the arguments are painted in this order.
    return Paintings(
        paint(scenes, SEED),
        paint(held_out(mixed_scenes, count), SEED),
        paint(held_out(dense_scenes, min(FEWER, count)), SEED),
        paint(photograph_scenes(PROMPTS, count), SEED),
        paint(photograph_scenes((*OPEN, *NAMED), count), OTHER_SEED),
        paint(photograph_scenes(LARGE_PROMPTS, count, LARGE), SEED),
        paint(scenes[:FEWER], SEED, control_scale=0.0),
        paint(scenes[:RESEEDED], OTHER_SEED),
        paint(scenes[:RESEEDED], SEED),
        *_timed(alone),
    )


def held_out(draw: Draw, count: int) -> list[Scene]:
    """The first scenes that training has not seen and that have edges to keep."""
    drawn = itertools.chain.from_iterable(draw(count, seed) for seed in itertools.count(HELD_OUT, count))
    return list(itertools.islice(filter(_has_edges, drawn), count))


def photograph_scenes(prompts: Sequence[str], count: int = len(PHOTOGRAPHS), side: int = SIZE) -> list[Scene]:
    """The first photographs, `side` pixels wide and high, as often as there are prompts, which are their captions."""
    images = [_photograph(name, side) for name in PHOTOGRAPHS[:count]]
    return [Scene(image, prompt, ()) for prompt in prompts for image in images]


def _photograph(name: str, side: int) -> Pixels:
    with Image.open(FOLDER / f"{name}.jpg") as image:
        return np.asarray(cv2.resize(np.asarray(image), (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _has_edges(scene: Scene) -> bool:
    return int(edges(scene.image).sum()) > FEWEST_EDGES


def obedience(paintings: Sequence[Painting]) -> Obedience:
    """The mean of their scores; where there are regions, the last is the background."""
    return Obedience(_kept(paintings), _named(paintings, slice(-1)), _named(paintings, slice(-1, None)))


def clarity(paintings: Sequence[Painting]) -> Clarity:
    """Of images of photographs."""
    hints = [edges(each.scene.image) for each in paintings]
    recall = [edge_recall(hint, edges(each.image)) for hint, each in zip(hints, paintings, strict=True)]
    mottles = [mottle(each.image, hint) for hint, each in zip(hints, paintings, strict=True)]
    return Clarity(mean(recall), min(recall), mean(mottles), max(mottles))


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
    flat, mixed, photographed = (painter.reconstruct_scenes([each.scene for each in kind]) for kind in kinds)
    return Ceiling(obedience(flat), obedience(mixed), clarity(photographed))


def _reseeded(made: Paintings, prompts: Sequence[str]) -> Reseeded:
    """Of the photographs with those prompts."""
    ones, others = (
        [each for each in paintings if each.scene.caption in prompts]
        for paintings in (made.photographs, made.other_photographs)
    )
    return Reseeded(_difference(ones, others), clarity(others).recall)


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


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
