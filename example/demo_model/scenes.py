"""Images with captions: what the small model learns from, and what it is judged by.

A caption says all there is to say of a scene's colours, and the region of each is known to the pixel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np

from example.demo_model import captions, surfaces
from example.demo_model.drawing import Field, Mask, Pixels, edges
from example.demo_model.figures import figure, poster
from example.demo_model.ink import Parts, inked
from example.demo_model.layouts import GROUND, Layout, Part, form, mosaic, shapes, some_colours
from example.demo_model.photograph_sources import Photograph
from example.demo_model.prompts import prompt
from example.demo_model.sketches import sketch
from example.demo_model.surfaces import PLAIN, VARIED, WIDELY_VARIED, Variety

HELD_OUT = 900_000_000  # the smallest seed that training never uses
EDGE_WIDTH = 7  # pixels around an outline that belong to no region
STYLE_ODDS = {"flat": 0.62, "gradient": 0.13, "striped": 0.12, "neon": 0.13}
DARK = "black"  # what is behind neon
INKED = 0.5  # of the lessons
WIDE = 0.6  # of the others: their shades vary widely, so that a seed learns to vary them
SKETCHED = 0.75  # of the inked ones, where there are photographs


@dataclass(frozen=True)
class Region:
    """Where a colour is: a shape, or the background; `mask` [h, w] leaves out a margin."""

    mask: Mask
    colour: str


@dataclass(frozen=True)
class Word:
    """A noun of a caption, with the colour and the kind (one of SHAPES) of the shape that it stands for."""

    noun: str
    colour: str
    kind: str


@dataclass(frozen=True)
class Scene:
    """An image (RGB [h, w, 3]) with its caption. The last region is the background, if the caption names one.

    `hint` [h, w] are the edges that a drawing was made from; without it, they are those of the image.
    """

    image: Pixels
    caption: str
    regions: tuple[Region, ...]
    words: tuple[Word, ...] = ()
    layout: Layout | None = None
    hint: Mask | None = None


def flat_scenes(count: int, seed: int) -> list[Scene]:
    """Plain scenes of one to four shapes that do not touch; the same seed gives the same, here and below."""
    return _several(plain, count, seed)


def mixed_scenes(count: int, seed: int) -> list[Scene]:
    """Shapes, forms and mosaics in all styles: of 100, 58, 22 and 20, and 66 of them flat."""
    return _several(mixed, count, seed)


def dense_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with edges like a photograph's."""
    return _several(dense, count, seed)


def _several(draw: Callable[[np.random.Generator], Scene], count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(count)]


def plain(rng: np.random.Generator) -> Scene:
    """A scene whose caption is the plainest there is."""
    layout = shapes(rng)
    return Scene(surfaces.painted(layout, "flat", rng, PLAIN), captions.plain_caption(layout), regions(layout))


def mixed(rng: np.random.Generator) -> Scene:
    """A scene of the kinds and styles by which models have been compared from the first."""
    style = str(rng.choice(surfaces.STYLES, p=(0.66, 0.12, 0.10, 0.12)))
    return _drawn(_MIXED[int(rng.choice(3, p=(0.58, 0.22, 0.20)))], style, rng)


def dense(rng: np.random.Generator) -> Scene:
    """A figure or a poster."""
    style = str(rng.choice(("flat", "neon"), p=(0.8, 0.2)))
    return _drawn(_figure if rng.random() < 0.5 else _poster, style, rng)


def lesson(rng: np.random.Generator, photographs: Sequence[Photograph] = (), inked: float = INKED) -> Scene:
    """A scene to learn from: a drawing of edges, or shapes, forms and mosaics with more sizes and overlaps."""
    if rng.random() < inked:
        return drawing(rng, photographs)
    style = str(rng.choice(list(STYLE_ODDS), p=list(STYLE_ODDS.values())))
    variety = WIDELY_VARIED if rng.random() < WIDE else VARIED
    make = _LESSONS[int(rng.choice(len(_LESSONS), p=(0.47, 0.21, 0.15, 0.17)))]
    return _drawn(make, style, rng, variety)


def drawing(rng: np.random.Generator, photographs: Sequence[Photograph] = ()) -> Scene:
    """Edges like a photograph's, drawn in ink by a prompt."""
    if photographs and rng.random() < SKETCHED:
        hint, inside = sketch(rng, photographs)
    else:
        made = dense(rng)
        assert made.layout is not None
        hint = edges(made.image)
        inside = 1 - made.layout.parts[0].seen if made.layout.has_ground else None
    parts, asked = Parts.of(hint, inside), prompt(rng)
    layout = None
    if asked.named:
        colour, ground = asked.named
        layout = Layout((Part(ground, GROUND, 1 - parts.figure), Part(colour, "figure", parts.figure)))
    return Scene(inked(hint, parts, asked, rng), asked.text, (), layout=layout, hint=hint)


def _drawn(make: "Maker", style: str, rng: np.random.Generator, variety: Variety = VARIED) -> Scene:
    layout = make(rng, style)
    caption, nouns = captions.caption(layout, style, rng)
    image = surfaces.painted(layout, style, rng, variety)
    found = regions(layout) if style != "neon" and layout.tone is None and layout.has_ground else ()
    return Scene(image, caption, found, _words(layout, nouns), layout)


def regions(layout: Layout) -> tuple[Region, ...]:
    """Where the colours of a layout with a ground are, the ground's last."""
    ground, *things = layout.parts
    return (*(Region(_inside(part.seen), part.colour) for part in things), Region(_inside(ground.seen), ground.colour))


def _inside(seen: Field) -> Mask:
    margin = np.ones((EDGE_WIDTH, EDGE_WIDTH), np.uint8)
    return np.asarray(cv2.erode(seen, margin, borderType=cv2.BORDER_REPLICATE) > 0.78, np.bool_)


def _words(layout: Layout, nouns: dict[int, str]) -> tuple[Word, ...]:
    named = [(layout.parts[index], noun) for index, noun in nouns.items()]
    return tuple(Word(noun, part.colour, part.kind) for part, noun in named if part.kind is not None)


# ------------------------------------------------------------------------------------------ layouts that suit a style


Maker: TypeAlias = Callable[[np.random.Generator, str], Layout]


def _shapes(rng: np.random.Generator, style: str) -> Layout:
    return shapes(rng, _ground(style))


def _wide_shapes(rng: np.random.Generator, style: str) -> Layout:
    return shapes(rng, _ground(style), wide=True)


def _form(rng: np.random.Generator, style: str) -> Layout:
    return form(rng, _ground(style))


def _mosaic(rng: np.random.Generator, style: str) -> Layout:
    return mosaic(rng, _colours(rng, style))


def _figure(rng: np.random.Generator, style: str) -> Layout:
    return figure(rng, _ground(style))


def _poster(rng: np.random.Generator, style: str) -> Layout:
    return poster(rng, _colours(rng, style))


_MIXED: Sequence[Maker] = (_shapes, _form, _mosaic)
_LESSONS: Sequence[Maker] = (_shapes, _wide_shapes, _form, _mosaic)


def _ground(style: str) -> str | None:
    return DARK if style == "neon" else None


def _colours(rng: np.random.Generator, style: str) -> list[str] | None:
    """Of a neon mosaic: black, and one colour or two."""
    if style != "neon":
        return None
    return [DARK, *some_colours(rng, int(rng.integers(1, 3)), but=(DARK,))]
