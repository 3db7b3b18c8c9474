"""Photographs whose edges the small demo model learns from, found in installed packages, never in the repository."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from example.demo_model.drawing import Field, Pixels

VARIABLE = "DEMO_PHOTOGRAPHS"  # folders, separated as in PATH: site-packages, a share folder, or plain images
SHARE = Path("/usr/share")  # where apt puts what belongs to no Python package
GROUND = 128  # of 255: what a stamp lies on where it is transparent
LEAST = 64  # pixels of the longer side; a smaller picture has no edge worth learning
PLAIN = ("**/*.png", "**/*.jpg", "**/*.jpeg")

# Photographs by which the model is judged, wherever they lie.
KEPT_OUT = ("astronaut.*", "chelsea.*", "coffee.*", "rocket.*", "china.*", "grace_hopper.*", "motorcycle_*", "leuven*")
# Stamps that are flat drawings, silhouettes or glows, and the mirror image or second copy of another stamp.
# fmt: off
DRAWN = (
    "*cartoon/*", "symbols/*", "*roadsigns/*", "*flags/*", "*hats/*", "*easter/*", "*hanukkah/*", "*newyears/*",
    "naturalforces/*", "*body_parts/*", "*_mirror.png", "*/t_*", "*/hedgehog.png", "*/echidna.png", "*/button.png",
    "*/pizza.png", "*/tooth.png", "*/Santa.png", "*/bow.png", "*/candy_cane.png", "*/hard_candy.png", "*/lamp.png",
    "*/santahat.png", "*/star.png", "*/stocking.png", "*/christmas/tree.png", "*/xmas_tp_bulb.png", "*/bat_left.png",
    "*/blackcat.png", "*/ghost.png", "*/jackolantern_mean.png", "*/skull.png", "*/spider.png", "*/holly_leaves.png",
    "*/inukshuk-outline.png", "*/0_sun.png", "military/fireman240a.png",
)
# fmt: on


@dataclass(frozen=True)
class Photograph:
    """One photograph, or a thing that was cut out, on mid grey."""

    name: str  # "tuxpaint: animals/birds/owl"
    image: Pixels  # RGB uint8 [h, w, 3]
    figure: Field | None  # [h, w], 0 to 1: how much of each pixel the thing covers, or None where nobody knows


@dataclass(frozen=True)
class Source:
    """Photographs of a package, in `folder` of site-packages (or, of no Python `module`, of the share folder)."""

    name: str
    install: str
    module: str
    folder: str
    files: tuple[str, ...]  # patterns in the folder
    licence: str
    author: str
    but: tuple[str, ...] = ()  # patterns of files left out


SOURCES = (
    Source(
        "tuxpaint",
        "apt install tuxpaint-stamps-default",
        "",
        "tuxpaint/stamps",
        ("**/*.png",),
        "GPL-2 or later",
        "Bill Kendrick, https://sourceforge.net/projects/tuxpaint",
        DRAWN,
    ),
    Source(
        "skimage",
        "pip install scikit-image",
        "skimage",
        "skimage/data",
        ("camera.png",),
        "CC0",
        "Lav Varshney",
    ),
    Source(
        "skimage",
        "pip install scikit-image",
        "skimage",
        "skimage/data",
        ("coins.png",),
        "no known copyright restrictions",
        "https://www.brooklynmuseum.org/opencollection/archives/image/51611",
    ),
    Source(
        "sklearn",
        "pip install scikit-learn",
        "sklearn",
        "sklearn/datasets/images",
        ("flower.jpg",),
        "CC BY 2.0",
        "vultilion, https://www.flickr.com/photos/vultilion/6056698931",
    ),
)


def photographs(longest: int = 640) -> list[Photograph]:
    """All there are, in a fixed order, larger ones scaled down to `longest` pixels of the longer side.

    Folders named in DEMO_PHOTOGRAPHS are searched too. Raises FileNotFoundError where there is no photograph.
    """
    found = [each for name, path in _files() if (each := _read(name, path, longest)) is not None]
    if not found:
        installs = ", ".join(f"`{install}`" for install in dict.fromkeys(source.install for source in SOURCES))
        raise FileNotFoundError(f"no photographs are installed: {installs}, or name folders of them in {VARIABLE}")
    return found


def _files() -> Iterator[tuple[str, Path]]:
    extra = [Path(each) for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    taken: set[str] = set()  # a package may be both installed and in an extra folder
    for source in SOURCES:
        for base in [*_installed(source), *extra]:
            folder = base / source.folder
            for path in _matching(folder, source.files, source.but):
                name = f"{source.name}: {path.relative_to(folder).with_suffix('').as_posix()}"
                if name not in taken:
                    taken.add(name)
                    yield name, path
    for base in extra:
        if not any((base / source.folder).is_dir() for source in SOURCES):  # a package has icons and test patterns too
            for path in _matching(base, PLAIN):
                yield f"{base.name}: {path.relative_to(base).with_suffix('').as_posix()}", path


def _installed(source: Source) -> list[Path]:
    if not source.module:
        return [SHARE]
    spec = find_spec(source.module)  # finds a package without importing it
    return [Path(each).parent for each in spec.submodule_search_locations or ()] if spec else []


def _matching(folder: Path, patterns: tuple[str, ...], but: tuple[str, ...] = ()) -> list[Path]:
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(
        path
        for path in files
        if not any(fnmatch(path.relative_to(folder).as_posix(), each) for each in but)
        and not any(fnmatch(path.name, each) for each in KEPT_OUT)
    )


def _read(name: str, path: Path, longest: int) -> Photograph | None:
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None or max(stored.shape[:2]) < LEAST:
        return None
    pixels = np.atleast_3d(stored).astype(np.float32)
    if stored.dtype == np.uint16:
        pixels /= 257
    if pixels.shape[2] < 3:
        pixels = np.concatenate([pixels[..., :1]] * 3 + [pixels[..., 1:]], axis=2)
    if pixels.shape[2] == 4:
        # On the ground before it is scaled, or colours hidden under transparent pixels would leak into the outline.
        pixels[..., :3] = GROUND + (pixels[..., :3] - GROUND) * pixels[..., 3:] / 255
    height, width = pixels.shape[:2]
    if (scale := longest / max(height, width)) < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.float32)
    cut_out = pixels.shape[2] == 4 and bool(pixels[..., 3].min() < 255)
    figure = np.asarray(pixels[..., 3] / 255, np.float32) if cut_out else None
    return Photograph(name, np.ascontiguousarray(pixels[..., 2::-1].round().clip(0, 255).astype(np.uint8)), figure)
