"""Two models side by side: the same twenty scenes painted by both, into one JPEG."""

from pathlib import Path

from tqdm import tqdm

from example.demo_model.evaluation import PROMPTS, SEED, held_out, photograph_as
from example.demo_model.painter import STEPS, Painter, Painting, drawn
from example.demo_model.scenes import Scene, dense_scenes, flat_scenes, mixed_scenes
from example.demo_model.scoring import edges
from example.demo_model.sheet import Cell, save

FLAT, MIXED, DENSE = 8, 7, 1  # scenes, and the photograph as often as it has prompts
COLUMNS = 2


def compare(one: Path, other: Path, out: Path, steps: int = STEPS) -> None:
    """Show for each scene: its edges, what `one` made of them and what `other` did, with the edge F1 of both.

    Raises FileNotFoundError where one of the folders holds no model.
    """
    scenes = twenty()
    with tqdm(total=2 * len(scenes), desc="painting", unit="image") as bar:
        painters = [Painter(folder, painted=bar.update) for folder in (one, other)]
        pairs = zip(*(painter.paint_scenes(scenes, SEED, steps=steps) for painter in painters), strict=True)
        cells = [_cell(ours, theirs, _names(one, other)) for ours, theirs in pairs]
    save(cells, COLUMNS, out)


def twenty() -> list[Scene]:
    """The scenes, the same each time; training has not seen them."""
    flat, mixed, dense = held_out(flat_scenes, FLAT), held_out(mixed_scenes, MIXED), held_out(dense_scenes, DENSE)
    return [*flat, *mixed, *dense, *map(photograph_as, PROMPTS)]


def _names(one: Path, other: Path) -> tuple[str, str]:
    """Names of the folders: their last parts, or whole paths if those are equal."""
    return (one.name, other.name) if one.name != other.name else (str(one), str(other))


def _cell(ours: Painting, theirs: Painting, names: tuple[str, str]) -> Cell:
    images = (drawn(edges(ours.scene.image)), ours.image, theirs.image)
    note = f"edges; {names[0]}, edge F1 {ours.f1:.2f}; {names[1]}, edge F1 {theirs.f1:.2f}"
    return Cell(images, ours.scene.caption, note)
