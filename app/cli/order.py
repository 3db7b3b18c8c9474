"""What is asked for on the command line beside images and places: the fields of a request, as flags."""

import argparse
import secrets
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Literal, get_args, get_origin

import msgspec

from app.cli.errors import CommandError
from app.errors import Problem
from app.params import PARAMS, RequestFields
from app.rules import Rules

SEED_BITS = 32  # of a seed that is drawn: enough, and short enough to be told
# A command makes at most so many images of one; drawn seeds are multiples, so that the seed of any tells the first.
SEEDS_APART = 64
DRAWN = " Drawn, and told, if it is not given."
FLAGS = {name: param.flags[-1] for name, param in PARAMS.items() if param.flags}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags, each by its field's name."""
    readers: Mapping[type, tuple[Callable[[str], object], str]]
    readers = {int: (_whole, "N"), float: (_number, "X"), str: (str, "TEXT")}
    for field in msgspec.structs.fields(RequestFields):
        name, param = field.name, PARAMS[field.name]
        if not param.flags or name == "text":
            continue
        told = param.meaning + DRAWN * (name == "random_seed")
        kind = next(each for each in get_args(field.type) or [field.type] if each is not NoneType)
        if get_origin(kind) is Literal:
            parser.add_argument(*param.flags, dest=name, choices=get_args(kind), help=told)
        else:
            read, metavar = readers[kind]
            parser.add_argument(*param.flags, dest=name, type=read, metavar=metavar, help=told)


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


def order(given: argparse.Namespace, rules: Rules) -> RequestFields:
    """What is asked for; `random_seed` is drawn if it is not given. Raises CommandError where it cannot be had."""
    values = {name: getattr(given, name) for name in FLAGS if name != "text"}
    if values["random_seed"] is None:
        values["random_seed"] = draw()
    for name, text in (("text", given.prompt), ("negative_prompt", given.negative_prompt)):
        if text is not None and not _is_text(text):
            raise CommandError(f"{FLAGS[name]}: it is not text in UTF-8")
    fields = RequestFields(text=given.prompt, **values)
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
