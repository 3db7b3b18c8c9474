"""The plan of a command: input images, seeds and output files."""

import mimetypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.cli.flags import CommandError
from workers.engine.contract import Format

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
            raise CommandError(f"{target} is the image itself: choose another place by -o")
    items = tuple(Item(source, target, seed) for target, seed in zip(targets, seeds, strict=True))
    return Plan(items, file_format)


def _format_of(out: Path, wanted: Format | None) -> Format:
    found = FORMATS.get(out.suffix.lower())
    if found is None:
        raise CommandError(f"-o {out}: its format is not known; end it with one of {', '.join(FORMATS)}")
    if wanted not in (None, found):
        raise CommandError(f"-o {out} is not a {wanted}, as --format asks: leave out one of both")
    return found


def _of_folder(source: Path, out: Path | None, seeds: Sequence[int], file_format: Format) -> Plan:
    source = source.absolute() if source.name in ("", "..") else source
    folder = source.with_name(f"{source.name}-out") if out is None else out
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"-o {folder} is a file, but {source} is a folder: its images need one to go to")
    if folder.exists() and folder.samefile(source):
        raise CommandError(f"-o {folder} is the input folder itself, so results would become inputs: choose another")
    images = _images(source)
    if not images:
        raise CommandError(f"{source}: there is no image in it (sub-folders are not looked at)")
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
            raise CommandError(f"{other.name} and {item.source.name} would both become {item.target.name}: rename one")
