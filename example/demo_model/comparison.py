"""Two models side by side: the same twenty scenes, or the same photographs, painted by both, into one JPEG."""

from pathlib import Path

from tqdm import tqdm

from example.demo_model.drawing import SIZE, edges
from example.demo_model.evaluation import LARGE, LARGE_PROMPTS, PROMPTS, SEED, held_out, photograph_scenes
from example.demo_model.painter import STEPS, Painter, Painting, drawn
from example.demo_model.scenes import Scene, dense_scenes, flat_scenes, mixed_scenes
from example.demo_model.sheet import Cell, legibility, rows, save

FLAT, MIXED, DENSE = 8, 7, 1  # scenes, and a photograph as often as there are prompts
COLUMNS = 2


def compare(one: Path, other: Path, out: Path, photographs: bool = False, steps: int = STEPS) -> None:
    """Show for each scene: its edges, what `one` made of them and what `other` did, with the scores of both.

    With `photographs`, the scenes are the six photographs at 256 and 384 pixels, and they are shown as well.

    Raises FileNotFoundError where one of the folders holds no model.
    """
    sides = (SIZE, LARGE)
    kinds = [photograph_scenes(LARGE_PROMPTS, side=side) for side in sides] if photographs else [twenty()]
    with tqdm(total=2 * sum(map(len, kinds)), desc="painting", unit="image") as bar:
        painters = [Painter(folder, painted=bar.update) for folder in (one, other)]
        made = [[painter.paint_scenes(kind, SEED, steps=steps) for painter in painters] for kind in kinds]
    cell = _photograph_cell if photographs else _cell
    cells = [[cell(ours, theirs, _names(one, other)) for ours, theirs in zip(*kind, strict=True)] for kind in made]
    save(list(zip(*cells, strict=True)) if photographs else rows(cells[0], COLUMNS), out)


def twenty() -> list[Scene]:
    """The scenes, the same each time; training has not seen them."""
    flat, mixed, dense = held_out(flat_scenes, FLAT), held_out(mixed_scenes, MIXED), held_out(dense_scenes, DENSE)
    return [*flat, *mixed, *dense, *photograph_scenes(PROMPTS, 1)]


def _names(one: Path, other: Path) -> tuple[str, str]:
    """Names of the folders: their last parts, or whole paths if those are equal."""
    return (one.name, other.name) if one.name != other.name else (str(one), str(other))


def _cell(ours: Painting, theirs: Painting, names: tuple[str, str]) -> Cell:
    images = (drawn(edges(ours.scene.image)), ours.image, theirs.image)
    note = f"edges; {names[0]}, edge F1 {ours.f1:.2f}; {names[1]}, edge F1 {theirs.f1:.2f}"
    return Cell(images, ours.scene.caption, note)


def _photograph_cell(ours: Painting, theirs: Painting, names: tuple[str, str]) -> Cell:
    images = (ours.scene.image, drawn(edges(ours.scene.image)), ours.image, theirs.image)
    note = f"photograph; edges; {names[0]}, {legibility(ours)}; {names[1]}, {legibility(theirs)}"
    return Cell(images, ours.scene.caption, note)
