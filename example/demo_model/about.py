"""The page's text about the small model: the things that it can draw, and prompts to try."""

import json
from pathlib import Path

from example.demo_model.palette import COLOURS
from example.demo_model.prompts import STYLES

FILE = "about.json"  # in the model's folder; app/api/page.py reads it
SHAPES = "circles, squares, triangles, stars, hearts, rings, hexagons and blobs"
PROMPTS = (
    "a muscle man",
    "a yellow face on a purple background",
    "a cat at sunset, watercolour",
    "an ink drawing of a woman in the snow",
    "a red heart, a yellow star and a white ring on a blue background",
    "neon pink and cyan shapes on a black background",
)


def write(folder: Path) -> None:
    """Write it into a model's folder."""
    text = (
        "Demo model: it draws the edges of any image in calm colours. The prompt may name them (a red cat on a blue "
        f"background), or things and settings (a horse at sunset), or a style ({', '.join(STYLES)}); what it leaves "
        f"open, the seed decides. It also knows {SHAPES} in {len(COLOURS)} plain colours."
    )
    content = json.dumps({"text": text, "prompts": PROMPTS}, indent=2, ensure_ascii=False)
    (folder / FILE).write_text(content + "\n", "utf-8")
