"""Files of kinds that the service does not take: made anew where the browser reads them, else with words that help."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, expect

from tests.page.visiting import Visit, downloaded
from tests.service.running import pixels_of, png

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
DROP = """([name, type, bytes]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([new Uint8Array(bytes)], name, {type}));
  document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""


def drawn(kind: str) -> bytes:
    """Blue on the left, orange on the right."""
    pixels = np.full((64, 96, 3), (35, 75, 220), np.uint8)
    pixels[:, 48:] = (245, 140, 25)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("name", ["own", "p.png"])
def test_formats_that_only_the_browser_reads_are_reencoded(visit: Visit, kind: str, name: str) -> None:
    own = name == "own"
    visit.page.locator("#file").set_input_files(
        {
            "name": f"p.{kind.lower()}" if own else name,
            "mimeType": f"image/{kind.lower()}" if own else "image/png",  # a wrong name does not mislead
            "buffer": drawn(kind),
        }
    )
    expect(visit.page.locator("#edges-image")).to_be_visible()
    pixels = pixels_of(downloaded(visit, visit.make())).astype(int)
    assert pixels.shape == (64, 96, 3)
    assert np.abs(pixels[:, :40] - (35, 75, 220)).max() < 12
    assert np.abs(pixels[:, 56:] - (245, 140, 25)).max() < 12


def test_a_png_named_jpg_is_sent_as_what_it_is(visit: Visit) -> None:
    visit.page.locator("#file").set_input_files({"name": "p.jpg", "mimeType": "image/jpeg", "buffer": png(96, 64)})
    expect(visit.page.locator("#edges-image")).to_be_visible()
    assert pixels_of(downloaded(visit, visit.make())).shape == (64, 96, 3)


def test_a_panorama_is_refused_by_its_own_size(visit: Visit) -> None:
    visit.page.locator("#file").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": png(5000, 100)})
    expect(visit.page.locator("#image-error")).to_contain_text("This image is 5000 x 100 (50:1)")


@pytest.mark.parametrize(
    ("name", "kind", "content", "said"),
    [
        ("IMG_0001.HEIC", "", HEIC, "This browser can't read HEIC images. Save the photo as JPEG"),
        ("IMG_0001.jpg", "image/jpeg", HEIC, "This browser can't read HEIC images."),
        (
            "scan.tiff",
            "image/tiff",
            b"II*\0" + bytes(100),
            "This browser can't read TIFF files. Save it as PNG or JPEG",
        ),
        ("paper.pdf", "application/pdf", b"%PDF-1.7\n" + bytes(100), "This browser can't read PDF files."),
        ("cut.png", "image/png", png(64, 64)[:40], "This PNG file can't be read. It may be damaged."),
        ("notes.txt", "text/plain", b"words", "That file isn't an image. Choose a PNG, JPEG or WebP."),
        ("empty.png", "image/png", b"", "That file isn't an image."),
    ],
    ids=["heic", "renamed", "tiff", "pdf", "cut", "text", "empty"],
)
@pytest.mark.parametrize("way", ["drop", "choose"])
def test_unreadable_files_are_reported_with_advice(
    visit: Visit, way: str, name: str, kind: str, content: bytes, said: str
) -> None:
    visit.upload(png(64, 64))
    if way == "drop":
        visit.page.evaluate(DROP, [name, kind, list(content)])
    else:
        file: FilePayload = {"name": name, "mimeType": kind or "application/octet-stream", "buffer": content}
        visit.page.locator("#file").set_input_files(file)
    expect(visit.page.get_by_role("alert").filter(has_text=said)).to_be_visible()
    expect(visit.page.locator("#input-image")).to_be_visible()  # the image from before is still there


def test_one_too_large_for_the_service_is_made_smaller(visit: Visit) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (400, 500, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "BMP")
    size = visit.page.evaluate(
        """async bytes => {
          const {fitting} = await import('/page/image.js');
          const fit = await fitting(new Blob([new Uint8Array(bytes)], {type: 'image/bmp'}), 60_000);
          return [fit.type, fit.size];
        }""",
        list(file.getvalue()),
    )
    assert size[0] == "image/jpeg"
    assert 0 < size[1] <= 60_000
