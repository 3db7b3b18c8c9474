"""A contact sheet: edges and images side by side, each with its caption and score below, in one JPEG."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from example.demo_model.drawing import Pixels, edges
from example.demo_model.evaluation import NAMED, OPEN, SEED, Scores, clarity
from example.demo_model.painter import Painting, drawn

COLUMNS = 3
WIDE = 2  # columns of cells with three images
FONT_SIZE = 17  # pixels
LINE = 22  # pixels
LETTER = 8.5  # pixels, on average
CAPTION_LINES = 2
GAP = 12  # pixels between cells
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
QUALITY = 88


@dataclass(frozen=True)
class Cell:
    """Images [side, side, 3] in a row, and what to write below: a caption, and a note in a fainter ink."""

    images: Sequence[Pixels]
    caption: str
    note: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, without the gaps."""
        side = len(self.images[0])
        return len(self.images) * side, side + (CAPTION_LINES + 1) * LINE


def contact_sheet(scores: Scores, out: Path) -> None:
    """Show what was scored: the photographs, each with two seeds, some scenes, and one of them with three seeds."""
    made = scores.paintings
    count, reseeded = len(scores.photographs), len((*OPEN, *NAMED))
    places = [place + count * (place % reseeded) for place in range(count)]  # each prompt in turn
    pairs = [_pair(made.photographs[place], made.other_photographs[place]) for place in places]
    # The first flat scene is that of the last row.
    scenes = [_cell(each, f"edge F1 {each.f1:.2f}") for each in (*made.flat[1:4], *made.mixed[:2], *made.dense[:1])]
    seeds = [_cell(each, f"seed {number}, edge F1 {each.f1:.2f}") for number, each in enumerate(made.alone, SEED)]
    save([*rows(pairs, WIDE), *rows(scenes, COLUMNS), seeds], out)


def rows(cells: Sequence[Cell], columns: int) -> list[Sequence[Cell]]:
    """Split cells into rows of so many; the last can be shorter."""
    return [cells[start : start + columns] for start in range(0, len(cells), columns)]


def save(rows: Sequence[Sequence[Cell]], out: Path) -> None:
    """Write rows of cells into a JPEG; make the folder if need be."""
    width = max(sum(cell.size[0] + GAP for cell in row) for row in rows)
    heights = [max(cell.size[1] for cell in row) + GAP for row in rows]
    sheet = Image.new("RGB", (width + GAP, sum(heights) + GAP), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for cell in row:
            _draw(sheet, cell, left, top)
            left += cell.size[0] + GAP
        top += height
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "JPEG", quality=QUALITY)


def legibility(painting: Painting) -> str:
    """Recall and mottle of an image of a photograph."""
    score = clarity([painting])
    return f"recall {score.recall:.2f}, mottle {score.mottle:.1f}"


def _pair(painting: Painting, other: Painting) -> Cell:
    images = (drawn(edges(painting.scene.image)), painting.image, other.image)
    return Cell(images, painting.scene.caption, f"{legibility(painting)}; another seed: {legibility(other)}")


def _cell(painting: Painting, note: str) -> Cell:
    return Cell((drawn(edges(painting.scene.image)), painting.image), painting.scene.caption, note)


def _draw(sheet: Image.Image, cell: Cell, left: int, top: int) -> None:
    side = len(cell.images[0])
    for number, image in enumerate(cell.images):
        sheet.paste(Image.fromarray(image), (left + number * side, top))
    letters = int(cell.size[0] / LETTER)
    lines = textwrap.wrap(cell.caption, letters, max_lines=CAPTION_LINES, placeholder=" …")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (line, ink) in enumerate([*((line, INK) for line in lines), (cell.note, FAINT)]):
        pen.text((left, top + side + number * LINE), line, ink, font)
