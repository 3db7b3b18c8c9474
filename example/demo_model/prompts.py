"""Prompts for drawings of any edge map, and the colours that each leaves to its drawing.

A prompt may name colours, or things and settings that have colours of their own, or neither: then anything goes that
looks well together. What it leaves open differs from drawing to drawing, so that a seed decides it.
"""

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from example.demo_model.palette import COLOURS, Shade, shades
from example.demo_model.tokenizer import NOUNS, WORDS, listed

SPREAD = 34.0  # of a shade's channels around a colour, either way
CONTRAST = 60.0  # of some channel, between figure and ground
KINDS = {"pair": 0.38, "figure": 0.10, "natural": 0.14, "setting": 0.12, "open": 0.14, "regions": 0.12}
STYLES = ("ink", "flat", "poster", "pastel", "neon", "gradient", "watercolour")
STYLED = 0.35  # of the prompts name their style
FILLED = 0.25  # of the prompts have a word that says nothing of colours

NATURAL: Mapping[str, Sequence[str]] = {
    shade: nouns.split()
    for shade, nouns in {
        "skin": "man woman boy girl person child lady face portrait head hand baby dancer hero soldier wrestler",
        "brown": "dog horse bear deer monkey owl lion dinosaur tree bread mushroom house castle church door chair "
        "guitar piano violin shoe boat bridge table hat book statue",
        "orange": "cat fox tiger carrot pumpkin fish leaf flower lamp butterfly",
        "grey": "cat wolf mouse elephant rabbit robot rocket ship tower statue rock mountain car sword train plane "
        "moon skull knight helmet clock",
        "white": "swan sheep rabbit cup ghost skull goat dove hen vase statue moon rocket shirt angel",
        "black": "cat crow raven horse piano penguin panda witch hat dog",
        "red": "rose apple tomato strawberry car heart dragon bus flower dress bird king crab devil tulip house",
        "green": "frog dragon snake tree leaf pear bottle parrot turtle dinosaur cactus crocodile apple plant",
        "yellow": "lemon banana sun duck sunflower bee crown bird star lion bus king queen giraffe",
        "blue": "bird whale fish dolphin butterfly dress car vase cup bicycle jeans boat planet",
        "pink": "pig flamingo rose flower cake dress tulip princess doll",
        "purple": "grape flower butterfly plum wizard queen dress",
    }.items()
}
SHADES: Mapping[str, Sequence[tuple[int, int, int]]] = {
    "skin": ((236, 188, 152), (214, 158, 118), (172, 112, 78), (122, 78, 52)),
    "brown": ((150, 96, 56), (110, 66, 40), (186, 140, 92)),
    "orange": ((232, 138, 56), (214, 112, 40), (242, 172, 92)),
    "grey": ((140, 142, 150), (100, 106, 118), (182, 184, 190)),
    "white": ((240, 238, 230), (226, 228, 236)),
    "black": ((38, 36, 42), (56, 52, 58)),
    "red": ((208, 52, 48), (176, 34, 44), (224, 86, 70)),
    "green": ((78, 150, 72), (48, 112, 64), (132, 176, 84)),
    "yellow": ((246, 214, 76), (236, 190, 48), (250, 228, 130)),
    "blue": ((56, 108, 200), (84, 150, 216), (38, 70, 150)),
    "pink": ((238, 160, 184), (226, 122, 160)),
    "purple": ((136, 80, 176), (170, 120, 200)),
}
"""A natural colour's shades, any of which its nouns may have."""

SETTINGS: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "sky": ((86, 150, 226), (190, 222, 246)),
    "clouds": ((150, 190, 232), (236, 240, 246)),
    "sea": ((120, 190, 220), (20, 84, 140)),
    "ocean": ((90, 164, 206), (12, 60, 112)),
    "lake": ((150, 200, 214), (44, 110, 130)),
    "beach": ((132, 200, 230), (236, 212, 160)),
    "desert": ((240, 206, 140), (214, 150, 84)),
    "grass": ((150, 200, 90), (70, 140, 56)),
    "field": ((190, 210, 110), (120, 160, 60)),
    "meadow": ((164, 208, 104), (90, 156, 70)),
    "forest": ((76, 128, 72), (26, 66, 44)),
    "jungle": ((88, 150, 70), (22, 80, 50)),
    "garden": ((170, 214, 140), (84, 150, 90)),
    "autumn": ((238, 176, 84), (176, 88, 40)),
    "spring": ((246, 208, 222), (170, 216, 150)),
    "summer": ((120, 194, 240), (250, 226, 130)),
    "winter": ((190, 208, 226), (240, 244, 248)),
    "snow": ((214, 226, 238), (248, 250, 252)),
    "ice": ((180, 220, 240), (228, 244, 250)),
    "fog": ((196, 200, 204), (224, 224, 222)),
    "rain": ((110, 124, 142), (156, 168, 182)),
    "storm": ((62, 70, 88), (112, 122, 140)),
    "sunset": ((114, 64, 132), (250, 150, 70)),
    "sunrise": ((244, 164, 144), (252, 220, 150)),
    "night": ((14, 18, 48), (40, 48, 96)),
    "moonlight": ((22, 34, 72), (84, 104, 150)),
    "space": ((8, 8, 24), (44, 24, 74)),
    "fire": ((250, 190, 60), (206, 48, 24)),
    "gold": ((250, 220, 120), (206, 150, 40)),
    "silver": ((222, 226, 232), (160, 168, 178)),
    "city": ((170, 182, 200), (110, 120, 140)),
    "street": ((190, 188, 184), (128, 126, 128)),
    "room": ((232, 214, 186), (186, 150, 116)),
    "cave": ((72, 62, 58), (34, 28, 28)),
}
"""The colours of a setting, at the top and at the bottom of the image."""

COLOURED = {noun for nouns in NATURAL.values() for noun in nouns} | set(SETTINGS)
AT = ("night", "sunset", "sunrise")
HARMONIES = ("complement", "split", "analogous", "tint", "muted")
PLACES = (
    "{thing} in the {place}",
    "{thing} in {place}",
    "{thing} on {place}",
    "{thing}, {place}",
    "{thing} by the {place}",
)
PAIRS = (
    "{a} {figure} {thing} on {b} {ground} background",
    "{a} {figure} {thing} on {b} {ground} background",
    "{a} {figure} {thing} on {b} {ground} background",
    "{a} {figure} {thing} with {b} {ground} background",
    "{a} {figure} {thing} against {b} {ground} backdrop",
    "{a} {figure} {thing}, {ground} background",
)
THINGS = ("{}", "{}", "{}", "a picture of {}", "a drawing of {}", "a portrait of {}", "a photo of {}")
REGIONS = ("{} regions", "{} regions", "an abstract pattern in {}", "a mosaic of {}", "{} abstract art")
STYLE_PHRASES: Mapping[str, Sequence[str]] = {
    "ink": ("{}, ink drawing", "an ink drawing of {}", "{}, ink", "{}, line art", "{}, pen sketch"),
    "flat": ("{}, flat", "flat {}", "{}, flat colours"),
    "poster": ("{}, poster", "a poster of {}", "{}, comic"),
    "pastel": ("{}, pastel", "pastel {}", "{}, pastel colours"),
    "neon": ("{}, neon", "neon {}", "glowing neon {}"),
    "gradient": ("{}, gradient", "a gradient picture of {}"),
    "watercolour": ("{}, watercolour", "a watercolour of {}", "{}, watercolor painting"),
}
FILLERS = listed(
    """
    beautiful happy sad smiling young strong muscle tall tiny cute angry elegant wooden stone modern ancient
    famous detailed best quality masterpiece high resolution cinematic fantasy magic royal wild sleeping running
    sitting standing flying holding wearing glasses
    """
)
SYLLABLES = listed("ba ko ri ten mal os vi dra lun qui zor pe sha no ti gru el fen ar mo")
NAMELESS = ("shape", "object", "form", "figure")


def vocabulary() -> list[str]:
    """Texts with every word of prompts, but for those that nobody knows."""
    phrases = [*PLACES, *PAIRS, *THINGS, *REGIONS, *(each for style in STYLE_PHRASES.values() for each in style)]
    nouns = [noun for nouns in NATURAL.values() for noun in nouns]
    return [re.sub(r"{.*?}", " ", " ".join(phrases)), *nouns, *SETTINGS, *AT, *FILLERS, *COLOURS, *NAMELESS, "at"]


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what its drawing has been given: shades of figure and ground, or of each region; the style.

    `below` is the ground's shade at the bottom of the image, where that is another. `named` are the colours of figure
    and ground, where the prompt has both.
    """

    text: str
    figure: Shade
    ground: Shade
    below: Shade
    style: str
    regions: tuple[Shade, ...] = ()
    named: tuple[str, str] | None = None


def prompt(rng: np.random.Generator) -> Prompt:
    """Any prompt."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    style = str(rng.choice(STYLES))
    named = rng.random() < STYLED
    if not named and style in ("neon", "pastel"):
        style = "poster"  # they change named colours, so a prompt has to ask for them
    made = _MAKERS[kind](rng, style)
    text = made.text
    if named:
        text = _any(STYLE_PHRASES[style], rng).format(text)
    return Prompt(text, made.figure, made.ground, made.below, style, made.regions, made.named)


def _pair(rng: np.random.Generator, style: str) -> Prompt:
    figure, ground = (str(colour) for colour in rng.choice(COLOURS, 2, replace=False))
    one, other = shades([figure, ground], rng, SPREAD)
    words = {"a": _article(figure), "b": _article(ground), "figure": figure, "ground": ground, "thing": _thing(rng)}
    return Prompt(_any(PAIRS, rng).format(**words), one, other, other, style, named=(figure, ground))


def _figure(rng: np.random.Generator, style: str) -> Prompt:
    """A colour for the figure alone."""
    colour = str(rng.choice(COLOURS))
    figure = shades([colour], rng, SPREAD)[0]
    ground, below = _open_ground(figure, rng)
    return Prompt(f"{_article(colour)} {colour} {_thing(rng)}", figure, ground, below, style)


def _natural(rng: np.random.Generator, style: str) -> Prompt:
    noun, figure = _natural_thing(rng)
    ground, below = _open_ground(figure, rng)
    return Prompt(_any(THINGS, rng).format(_with_article(noun, rng)), figure, ground, below, style)


def _setting(rng: np.random.Generator, style: str) -> Prompt:
    place = str(rng.choice(list(SETTINGS)))
    ground, below = (_varied(colour, rng) for colour in SETTINGS[place])
    for _ in range(12):
        if rng.random() < 0.6:
            noun, figure = _natural_thing(rng)
        elif rng.random() < 0.5:
            noun, figure = _open_thing(rng), _any_shade(rng)
        else:
            colour = str(rng.choice(COLOURS))
            noun, figure = f"{colour} {_thing(rng)}", shades([colour], rng, SPREAD)[0]
        if _apart(figure, ground, below):
            break
    thing = _with_article(noun, rng)
    text = f"{thing} at {place}" if place in AT else _any(PLACES, rng).format(thing=thing, place=place)
    return Prompt(text, figure, ground, below, style)


def _open(rng: np.random.Generator, style: str) -> Prompt:
    """Nothing about colours: those of figure and ground are drawn together."""
    figure, ground = _harmony(rng)
    noun = _open_thing(rng)
    return Prompt(_any(THINGS, rng).format(_with_article(noun, rng)), figure, ground, ground, style)


def _regions(rng: np.random.Generator, style: str) -> Prompt:
    names = [str(colour) for colour in rng.choice(COLOURS, int(rng.integers(2, 5)), replace=False)]
    drawn = tuple(shades(names, rng, SPREAD))
    words = f"{', '.join(names[:-1])} and {names[-1]}"
    return Prompt(_any(REGIONS, rng).format(words), drawn[0], drawn[-1], drawn[-1], style, drawn)


_MAKERS = {
    "pair": _pair,
    "figure": _figure,
    "natural": _natural,
    "setting": _setting,
    "open": _open,
    "regions": _regions,
}


def _thing(rng: np.random.Generator) -> str:
    """A noun that means whatever the edges show."""
    noun = str(rng.choice(NOUNS)) if rng.random() < 0.8 else str(rng.choice(NAMELESS))
    return _filled(noun, rng)


def _open_thing(rng: np.random.Generator) -> str:
    """A noun that says nothing of colours."""
    if rng.random() < 0.3:
        return _made_up(rng)
    while (noun := _thing(rng)).split()[-1] in COLOURED:
        pass
    return noun


def _natural_thing(rng: np.random.Generator) -> tuple[str, Shade]:
    natural = str(rng.choice(list(NATURAL)))
    noun = str(rng.choice(NATURAL[natural]))
    options = [name for name, nouns in NATURAL.items() if noun in nouns]
    colours = SHADES[str(rng.choice(options))]
    return _filled(noun, rng), _varied(colours[int(rng.integers(len(colours)))], rng)


def _filled(noun: str, rng: np.random.Generator) -> str:
    if rng.random() > FILLED:
        return noun
    return f"{rng.choice(FILLERS + WORDS) if rng.random() < 0.8 else _made_up(rng)} {noun}"


def _made_up(rng: np.random.Generator) -> str:
    """A word that nobody knows: people's prompts are full of them."""
    return "".join(str(each) for each in rng.choice(SYLLABLES, int(rng.integers(2, 4))))


def _open_ground(figure: Shade, rng: np.random.Generator) -> tuple[Shade, Shade]:
    for _ in range(20):
        if rng.random() < 0.25:
            pair = list(SETTINGS.values())[int(rng.integers(len(SETTINGS)))]
            ground, below = (_varied(colour, rng) for colour in pair)
        else:
            ground = below = _any_shade(rng)
        if _apart(figure, ground, below):
            break
    return ground, below


def _harmony(rng: np.random.Generator) -> tuple[Shade, Shade]:
    """Two shades of hues that go together, one of them lighter."""
    hue, kind = rng.uniform(0, 360), str(rng.choice(HARMONIES))
    turn = {"complement": 180.0, "split": 150.0, "analogous": 40.0, "tint": 0.0, "muted": 120.0}[kind]
    vivid = rng.uniform(0.45, 0.85) * (0.45 if kind == "muted" else 1.0)
    light, dark = rng.uniform(0.72, 0.92), rng.uniform(0.22, 0.5)
    one = _from_hue(hue, vivid * rng.uniform(0.5, 1.0), light)
    other = _from_hue(hue + turn * rng.choice((-1, 1)), vivid, dark)
    return (one, other) if rng.random() < 0.5 else (other, one)


def _from_hue(hue: float, saturation: float, lightness: float) -> Shade:
    return np.array(colorsys.hls_to_rgb(hue % 360 / 360, lightness, saturation), np.float32) * 255


def _any_shade(rng: np.random.Generator) -> Shade:
    return _from_hue(rng.uniform(0, 360), rng.uniform(0.1, 0.9), rng.uniform(0.12, 0.93))


def _varied(colour: Sequence[float], rng: np.random.Generator) -> Shade:
    offset = rng.uniform(-0.5, 0.5) * SPREAD * 0.8 + rng.uniform(-0.5, 0.5, 3) * SPREAD * 0.6
    return np.clip(np.array(colour) + offset, 0, 255).astype(np.float32)


def _apart(one: Shade, *grounds: Shade) -> bool:
    return bool(np.abs(one - np.mean(grounds, axis=0)).max() >= CONTRAST)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _with_article(noun: str, rng: np.random.Generator) -> str:
    return noun if rng.random() < 0.15 else f"{_article(noun)} {noun}"


def _any(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
