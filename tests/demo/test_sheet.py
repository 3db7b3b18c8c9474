"""Contact sheets: every cell in its place, with its images and what is written below them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from example.demo_model.drawing import SIZE, Pixels
from example.demo_model.sheet import GAP, Cell, rows, save

RED, BLUE = (200, 30, 30), (30, 30, 200)


def plain(colour: tuple[int, int, int]) -> Pixels:
    return np.full((SIZE, SIZE, 3), colour, np.uint8)


def varied(sheet: Image.Image) -> bool:
    """Whether there is something to see, in many colours, all over the sheet."""
    rows = np.array_split(np.asarray(sheet)[::5, ::5], 4)
    return all(row.std() > 20 and len(np.unique(row.reshape(-1, 3) // 32, axis=0)) > 8 for row in rows)


def sheet_of(cells: list[Cell], columns: int, folder: Path) -> npt.NDArray[np.uint8]:
    save(rows(cells, columns), folder / "new" / "sheet.jpg")
    with Image.open(folder / "new" / "sheet.jpg") as image:
        assert image.format == "JPEG"
        return np.asarray(image)


def test_cells_are_laid_out_row_by_row(tmp_path: Path) -> None:
    cells = [Cell((plain(RED), plain(BLUE)), "a caption", "a note") for _ in range(5)]
    sheet = sheet_of(cells, 2, tmp_path)

    width, height = cells[0].size
    assert sheet.shape == (3 * (height + GAP) + GAP, 2 * (width + GAP) + GAP, 3)
    for number in range(6):
        row, column = divmod(number, 2)
        y, x = (row * (height + GAP) + GAP + 100, column * (width + GAP) + GAP + 100)
        wanted = (RED, BLUE) if number < 5 else ((255, 255, 255),) * 2
        assert np.abs(sheet[y, [x, x + SIZE]].astype(int) - wanted).max() < 10


def test_cells_of_several_sizes_do_not_overlap(tmp_path: Path) -> None:
    large = np.full((384, 384, 3), BLUE, np.uint8)
    uneven = [[Cell((plain(RED),), "", ""), Cell((large,), "", "")], [Cell((plain(RED),) * 3, "", "")]]
    save(uneven, tmp_path / "sheet.jpg")

    with Image.open(tmp_path / "sheet.jpg") as image:
        sheet = np.asarray(image).astype(int)
    assert sheet.shape[1] == 3 * SIZE + 2 * GAP  # the wider row's
    for y, x, wanted in (
        (SIZE - 9, SIZE - 9, RED),
        (380, 2 * GAP + SIZE + 375, BLUE),
        (sheet.shape[0] - 100, 3 * SIZE, RED),
    ):
        assert np.abs(sheet[y, x] - wanted).max() < 10


def test_captions_and_notes_are_written_below_the_images(tmp_path: Path) -> None:
    silent, short = (sheet_of([Cell((plain(RED),), caption, "")], 1, tmp_path) for caption in ("", "a red square"))
    below = slice(GAP + SIZE + 8, None)

    assert silent[below].min() > 200
    assert short[below].min() < 100
    assert short[below, :100].min() < 100


def test_a_long_caption_stays_within_its_cell(tmp_path: Path) -> None:
    words = " ".join(["a purple hexagon and a yellow triangle"] * 20)
    left, right = Cell((plain(RED),), words, "a note"), Cell((plain(RED),), "", "")
    sheet = sheet_of([left, right], 2, tmp_path)

    assert sheet[GAP + SIZE + 8 :, GAP + SIZE + GAP :].min() > 200
    assert sheet[-GAP:].min() > 200
