"""A contact sheet: edges and images side by side, each with its caption and score below, in one JPEG."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from example.demo_model.drawing import SIZE, Pixels
from example.demo_model.evaluation import SEED, Scores
from example.demo_model.painter import Painting, drawn
from example.demo_model.scoring import edges

COLUMNS = 3
FONT_SIZE = 17  # pixels
LINE = 22  # pixels
LETTER = 8.5  # pixels, on average
CAPTION_LINES = 2
GAP = 12  # pixels between cells
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
QUALITY = 88


@dataclass(frozen=True)
class Cell:
    """Images [256, 256, 3] in a row, and what to write below: a caption, and a note in a fainter ink."""

    images: Sequence[Pixels]
    caption: str
    note: str


def contact_sheet(scores: Scores, out: Path) -> None:
    """Show a dozen of the paintings that were scored; the last row is one scene with different seeds."""
    made = scores.paintings
    # The first flat scene is that of the last row.
    shown = [*made.flat[1:4], *made.mixed[:2], *made.dense[:1], *made.photograph[:3]]
    cells = [_cell(each, f"edge F1 {each.f1:.2f}") for each in shown]
    cells += [_cell(each, f"seed {number}, edge F1 {each.f1:.2f}") for number, each in enumerate(made.alone, SEED)]
    save(cells, COLUMNS, out)


def save(cells: Sequence[Cell], columns: int, out: Path) -> None:
    """Write the cells, all as wide as the first, row by row into a JPEG; make the folder if need be."""
    width, height = cell_size(len(cells[0].images))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), PAPER)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        _draw(sheet, cell, GAP + column * (width + GAP), GAP + row * (height + GAP))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "JPEG", quality=QUALITY)


def cell_size(images: int) -> tuple[int, int]:
    """Width and height in pixels of a cell of so many images, without the gaps."""
    return images * SIZE, SIZE + (CAPTION_LINES + 1) * LINE


def _cell(painting: Painting, note: str) -> Cell:
    return Cell((drawn(edges(painting.scene.image)), painting.image), painting.scene.caption, note)


def _draw(sheet: Image.Image, cell: Cell, left: int, top: int) -> None:
    for number, image in enumerate(cell.images):
        sheet.paste(Image.fromarray(image), (left + number * SIZE, top))
    letters = int(len(cell.images) * SIZE / LETTER)
    lines = textwrap.wrap(cell.caption, letters, max_lines=CAPTION_LINES, placeholder=" …")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (line, ink) in enumerate([*((line, INK) for line in lines), (cell.note, FAINT)]):
        pen.text((left, top + SIZE + number * LINE), line, ink, font)
