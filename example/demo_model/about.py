"""The page's text about the small model: the things that it can draw, and prompts to try."""

import json
from pathlib import Path

from example.demo_model.palette import COLOURS

FILE = "about.json"  # in the model's folder; app/api/page.py reads it
SHAPES = "circles, squares, triangles, stars, hearts, rings, hexagons and blobs"
PROMPTS = (
    "a red heart, a yellow star and a white ring on a blue background",
    "an orange circle and a blue triangle on a black background",
    "striped, green shapes on a white background",
    "neon pink and cyan shapes on a black background",
    "a mosaic of purple, yellow and orange",
    "a blue shape on an orange background",
)


def write(folder: Path) -> None:
    """Write it into a model's folder."""
    text = (
        f"Demo model: it knows {SHAPES} in {len(COLOURS)} plain colours; flat, striped, gradient or neon. "
        "Of anything else it keeps the edges."
    )
    content = json.dumps({"text": text, "prompts": PROMPTS}, indent=2, ensure_ascii=False)
    (folder / FILE).write_text(content + "\n", "utf-8")
