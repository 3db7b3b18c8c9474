"""Captions of images: the parts by colour and noun, the background, and the style, in varied words."""

from collections.abc import Sequence

import numpy as np

from example.demo_model.layouts import GROUND, Layout, Part
from example.demo_model.tokenizer import NOUNS

PLURALS = ("shapes", "lines", "curves", "strokes")  # of the nouns that layouts have
SYNONYMS = {"circle": ("circle", "circle", "disc"), "square": ("square", "square", "box")}
STAND_IN_ODDS = 0.45  # of another noun for a nameless form: any noun then means "what the edges show"

GROUNDS = (
    "{things} on {ground} background",
    "{things} on {ground} background",
    "{things} on {ground} background",
    "{things} with {ground} background",
    "{things} against {ground} backdrop",
    "{things} over {ground} background",
)
REGIONS = (
    "an abstract pattern in {colours}",
    "{colours} regions",
    "{colours} regions",
    "{colours} abstract art",
    "a mosaic of {colours}",
    "an abstract picture in {colours}",
)
FLAT = ("{}", "{}", "{}", "{}", "a drawing of {}", "a picture of {}", "flat {}", "{}, flat")
STYLED = ("{caption}, {style}", "{caption}, {style}", "a {style} picture of {caption}")
NEON = ("neon {things} on a black background", "{things}, neon, black background", "glowing neon {things}, dark")


def caption(layout: Layout, style: str, rng: np.random.Generator) -> tuple[str, dict[int, str]]:
    """A caption, and the noun in it by the index of the part that it stands for."""
    if not layout.has_ground:
        return _regions(layout, style, rng), {}
    nouns = {index: _noun(part, rng) for index, part in enumerate(layout.parts) if part.noun != GROUND}
    order = [int(index) for index in rng.permutation(list(nouns))]
    named = [f"{layout.parts[index].colour} {nouns[index]}" for index in order]
    if style == "neon":
        return _any(NEON, rng).format(things=_listed(named, rng)), nouns
    things = _listed([_with_article(name) for name in named], rng)
    ground = layout.parts[0].colour
    if rng.random() < 0.12:
        return _styled(f"{things}, {ground} background", style, rng), nouns
    return _styled(_any(GROUNDS, rng).format(things=things, ground=_with_article(ground)), style, rng), nouns


def plain_caption(layout: Layout) -> str:
    """The one caption without any choice: "a red circle and a blue star on a white background"."""
    phrases = [_with_article(f"{part.colour} {part.noun}") for part in layout.parts[1:]]
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]
    return f"{listed} on {_with_article(layout.parts[0].colour)} background"


def _regions(layout: Layout, style: str, rng: np.random.Generator) -> str:
    if style == "neon":
        lit = _listed([part.colour for part in layout.parts[1:]], rng)
        noun = str(rng.choice(("shapes", "shapes", "regions", "lights")))
        return _any(NEON, rng).format(things=f"{lit} {noun}")
    colours = [part.colour for part in layout.parts]
    listed = _listed([colours[int(index)] for index in rng.permutation(len(colours))], rng)
    return _styled(_any(REGIONS, rng).format(colours=listed), style, rng)


def _noun(part: Part, rng: np.random.Generator) -> str:
    if part.kind is None and rng.random() < STAND_IN_ODDS:
        return str(rng.choice(NOUNS))
    return _any(SYNONYMS.get(part.noun, (part.noun,)), rng)


def _styled(plain: str, style: str, rng: np.random.Generator) -> str:
    if style == "flat":
        return _any(FLAT, rng).format(plain)
    return _any(STYLED, rng).format(caption=plain, style=style)


def _with_article(phrase: str) -> str:
    """With "a" or "an", unless it is of several things."""
    if phrase.endswith(PLURALS):
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _listed(phrases: Sequence[str], rng: np.random.Generator) -> str:
    if len(phrases) == 1:
        return phrases[0]
    if rng.random() < 0.5:
        return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return " and ".join(phrases)


def _any(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
