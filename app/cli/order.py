"""What is asked for on the command line beside pictures and places: the fields of a request, as flags."""

import argparse
import secrets
from collections.abc import Callable, Mapping
from typing import get_args

from app.cli.errors import CommandError
from app.errors import Problem
from app.fields import Fields, Rules
from workers.engine.contract import ControlImage

SEED_BITS = 32  # of a seed that is drawn: enough, and short enough to be told
# A command makes at most so many images of one; drawn seeds are multiples, so that the seed of any tells the first.
SEEDS_APART = 64
# The flag of each field; their ranges are those of the service.
FLAGS = {
    "text": "prompt",
    "negative_prompt": "--negative",
    "random_seed": "--seed",
    "number_of_images": "--number",
    "steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "control_scale": "--control-scale",
    "canny_low": "--canny-low",
    "canny_high": "--canny-high",
    "control_image": "--control-image",
    "temperature": "--temperature",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags, each by its field's name."""

    def add(field: str, kind: type, text: str, *short: str, default: object = None) -> None:
        readers: Mapping[type, tuple[Callable[[str], object], str]]
        readers = {int: (_whole, "N"), float: (_number, "X"), str: (str, "TEXT")}
        read, metavar = readers[kind]
        parser.add_argument(*short, FLAGS[field], dest=field, type=read, default=default, metavar=metavar, help=text)

    add("random_seed", int, "the same seed makes the same picture; drawn, and told, if it is not given")
    add("number_of_images", int, "of each picture make so many, with this seed, the next, and so on", "-n", default=1)
    add("negative_prompt", str, "what the picture should not show")
    add("steps", int, "denoising steps")
    add("guidance_scale", float, "how closely the prompt is followed")
    add("control_scale", float, "how closely the edges are followed")
    add("canny_low", int, "lower threshold of the edge detector")
    add("canny_high", int, "upper threshold of the edge detector")
    parser.add_argument(
        FLAGS["control_image"],
        choices=get_args(ControlImage),
        help="what the pictures are: photos, in which edges are found, or edges already, white on black",
    )
    add("temperature", float, "above 0 and up to 1: sharpens the attention of the ControlNet", default=1.0)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def draw() -> int:
    """The first seed of a command."""
    return secrets.randbits(SEED_BITS) // SEEDS_APART * SEEDS_APART


def first_seed(seed: int, images: int) -> int:
    """The first of the seeds of so many images, by any of them, where it was drawn."""
    return seed if images == 1 else seed // SEEDS_APART * SEEDS_APART


def order(given: argparse.Namespace, rules: Rules) -> Fields:
    """What is asked for; `random_seed` is drawn if it is not given. Raises CommandError where it cannot be had."""
    values = {name: getattr(given, name) for name in FLAGS if name != "text"}
    if values["random_seed"] is None:
        values["random_seed"] = draw()
    for name, text in (("text", given.prompt), ("negative_prompt", given.negative_prompt)):
        if text is not None and not _is_text(text):
            raise CommandError(f"{FLAGS[name]}: it is not text in UTF-8")
    fields = Fields(text=given.prompt, **values)
    try:
        rules.check(fields)
    except Problem as problem:
        raise CommandError(f"{FLAGS[problem.field or 'text']}: {problem.detail}") from None
    return fields


def _is_text(text: str) -> bool:
    """Bytes of an argument that are not UTF-8 arrive as half surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
