"""The plan of a command: from its flags to the options of a request, seeds, input images and output files."""

import argparse
import mimetypes
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import msgspec

from app.errors import joined
from app.params import PARAMS, RequestFields, Rules, drawn_seed
from workers.engine.contract import Format

# Random seeds are multiples of this, the most images of one input, so that the seed of any image tells the first.
SEEDS_APART = 64
DRAWN = " Random if it is not given, and then printed."
FLAGS = {name: param.flags[-1] for name, param in PARAMS.items() if param.flags}


class CommandError(Exception):
    """The command or the configuration is wrong; the message says why, and what to do."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option."""
    readers: dict[type, tuple[Callable[[str], Any], str]]
    readers = {int: (_reader(int, "a whole number"), "N"), float: (_reader(float, "a number"), "X"), str: (str, "TEXT")}
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


def _reader(kind: Callable[[str], object], name: str) -> Callable[[str], object]:
    def read(text: str) -> object:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None

    return read


def first_seed(seed: int, images: int) -> int:
    """The random seed of the first of `images` images, from the seed of any of them."""
    return seed if images == 1 else seed // SEEDS_APART * SEEDS_APART


def parse_flags(given: argparse.Namespace, rules: Rules) -> RequestFields:
    """Parse the flags; `random_seed` is random if it is not given. Raises CommandError."""
    values = {name: getattr(given, name) for name in FLAGS if name != "text"}
    if values["random_seed"] is None:
        values["random_seed"] = drawn_seed() // SEEDS_APART * SEEDS_APART
    for name, text in (("text", given.prompt), ("negative_prompt", given.negative_prompt)):
        if text is not None and not _is_text(text):
            raise CommandError(f"{FLAGS[name]} is not valid UTF-8")
    fields = RequestFields(text=given.prompt, **values)
    if problems := list(rules.faults(fields)):
        problem = joined(problems)
        raise CommandError(f"{FLAGS[problem.field or 'text']}: {problem.detail}")
    return fields


def _is_text(text: str) -> bool:
    """Whether an argument is UTF-8: Python passes other bytes as half surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


# ------------------------------------------------------------------------------------------- inputs and outputs


FORMATS: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SUFFIXES: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True, slots=True)
class Item:
    """One image to generate."""

    source: Path
    target: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All images to generate, in order, in one format. `folder` is the output folder of an input folder, else None."""

    items: tuple[Item, ...]
    file_format: Format
    folder: Path | None = None


def plan(source: Path, out: Path | None, seeds: Sequence[int], configured: Format, wanted: Format | None) -> Plan:
    """Plan the results of an image, or of each image in a folder: one per seed. Raises CommandError."""
    if source.is_dir():
        return _of_folder(source, out, seeds, wanted or configured)
    if not source.exists():
        raise CommandError(f"{source}: there is no such file or folder")
    return _of_file(source, out, seeds, configured, wanted)


def _of_file(source: Path, out: Path | None, seeds: Sequence[int], configured: Format, wanted: Format | None) -> Plan:
    if out is None or out.is_dir():
        file_format = wanted or configured
        folder = source.parent if out is None else out
        targets = [folder / f"{source.stem}-{seed}{SUFFIXES[file_format]}" for seed in seeds]
    else:
        file_format = _format_of(out, wanted)
        targets = [out] if len(seeds) == 1 else [out.with_stem(f"{out.stem}-{seed}") for seed in seeds]
    for target in targets:
        if target.exists() and target.samefile(source):
            raise CommandError(f"{target} is the input image itself; choose another file with -o")
    items = tuple(Item(source, target, seed) for target, seed in zip(targets, seeds, strict=True))
    return Plan(items, file_format)


def _format_of(out: Path, wanted: Format | None) -> Format:
    found = FORMATS.get(out.suffix.lower())
    if found is None:
        raise CommandError(f"-o {out}: unknown image format; use one of {', '.join(FORMATS)}")
    if wanted not in (None, found):
        raise CommandError(f"-o {out} is not a {wanted}, as --format asks; leave one of them out")
    return found


def _of_folder(source: Path, out: Path | None, seeds: Sequence[int], file_format: Format) -> Plan:
    source = source.absolute() if source.name in ("", "..") else source
    folder = source.with_name(f"{source.name}-out") if out is None else out
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"-o {folder} is a file, but {source} is a folder: the results need a folder")
    if folder.exists() and folder.samefile(source):
        raise CommandError(
            f"-o {folder} is the input folder itself, so results would become inputs; choose another folder"
        )
    images = _images(source)
    if not images:
        raise CommandError(f"{source}: no images in this folder (sub-folders are not searched)")
    stems = Counter(image.stem for image in images)
    items = tuple(
        Item(image, folder / f"{_name(image, stems, seed, seeds)}{SUFFIXES[file_format]}", seed)
        for image in images
        for seed in seeds
    )
    _refuse_clashes(items)
    return Plan(items, file_format, folder)


def _images(folder: Path) -> list[Path]:
    """The files with names of images, also of formats that are not supported, which are reported later."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (mimetypes.guess_type(path.name)[0] or "").startswith("image/")
        and (path.is_file() or (path.is_symlink() and not path.exists()))  # a broken link is reported later
    )


def _name(image: Path, stems: Counter[str], seed: int, seeds: Sequence[int]) -> str:
    name = image.stem if stems[image.stem] == 1 else image.name
    return name if len(seeds) == 1 else f"{name}-{seed}"


def _refuse_clashes(items: Sequence[Item]) -> None:
    sources: dict[Path, Path] = {}
    for item in items:
        other = sources.setdefault(item.target, item.source)
        if other != item.source:
            raise CommandError(
                f"{other.name} and {item.source.name} would both become {item.target.name}; rename one of them"
            )
