"""The options of a request as command-line flags."""

import argparse
import secrets
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Literal, get_args, get_origin

import msgspec

from app.errors import Problem
from app.params import PARAMS, RequestFields
from app.rules import Rules

SEED_BITS = 32  # of a random seed: enough, and short enough to be typed again
# Random seeds are multiples of this, the most images of one input, so that the seed of any image tells the first.
SEEDS_APART = 64
DRAWN = " Random, and printed, if it is not given."
FLAGS = {name: param.flags[-1] for name, param in PARAMS.items() if param.flags}


class CommandError(Exception):
    """The command or the configuration is wrong; the message says why, and what to do."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option."""
    readers: Mapping[type, tuple[Callable[[str], object], str]]
    readers = {int: (_whole, "N"), float: (_number, "X"), str: (str, "TEXT")}
    for field in msgspec.structs.fields(RequestFields):
        name, param = field.name, PARAMS[field.name]
        if not param.flags or name == "text":
            continue
        help_text = param.meaning + DRAWN * (name == "random_seed")
        kind = next(each for each in get_args(field.type) or [field.type] if each is not NoneType)
        if get_origin(kind) is Literal:
            parser.add_argument(*param.flags, dest=name, choices=get_args(kind), help=help_text)
        else:
            read, metavar = readers[kind]
            parser.add_argument(*param.flags, dest=name, type=read, metavar=metavar, help=help_text)


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


def random_seed() -> int:
    """A random first seed."""
    return secrets.randbits(SEED_BITS) // SEEDS_APART * SEEDS_APART


def first_seed(seed: int, images: int) -> int:
    """The first seed of so many images, by any of them, if it was random."""
    return seed if images == 1 else seed // SEEDS_APART * SEEDS_APART


def parse_flags(given: argparse.Namespace, rules: Rules) -> RequestFields:
    """Parse the flags; `random_seed` is random if it is not given. Raises CommandError."""
    values = {name: getattr(given, name) for name in FLAGS if name != "text"}
    if values["random_seed"] is None:
        values["random_seed"] = random_seed()
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
    """Python passes bytes that are not UTF-8 as half surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
