"""How others read what an image file says of itself: AUTOMATIC1111's web UI, by its own rules, and XMP readers."""

import io
import json
import re
from xml.etree import ElementTree as ET

from PIL import Image

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
# modules/infotext_utils.py of AUTOMATIC1111/stable-diffusion-webui, 1.10.
RE_PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
RE_IMAGESIZE = re.compile(r"^(\d+)x(\d+)$")


def parse_generation_parameters(text: str) -> dict[str, str]:
    """As the function of that name, but for its defaults of what old versions left out."""
    found: dict[str, str] = {}
    prompt = negative = ""
    done_with_prompt = False
    *lines, last = text.strip().split("\n")
    if len(RE_PARAM.findall(last)) < 3:
        lines.append(last)
        last = ""
    for each in lines:
        line = each.strip()
        if line.startswith("Negative prompt:"):
            done_with_prompt = True
            line = line[16:].strip()
        if done_with_prompt:
            negative += ("" if negative == "" else "\n") + line
        else:
            prompt += ("" if prompt == "" else "\n") + line
    for name, said in RE_PARAM.findall(last):
        value = json.loads(said) if said[0] == '"' and said[-1] == '"' else said
        if (size := RE_IMAGESIZE.match(value)) is not None:
            found[f"{name}-1"], found[f"{name}-2"] = size.groups()
        else:
            found[name] = value
    return {"Prompt": prompt, "Negative prompt": negative, **found}


def infotext_of(file: bytes) -> str | None:
    """The text, from where the web UI looks for it: a PNG's `parameters`, else EXIF's UserComment, as piexif does."""
    with Image.open(io.BytesIO(file)) as image:
        if image.format == "PNG":
            text = image.info.get("parameters")
            return None if text is None else str(text)
        comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if comment is None:
        return None
    assert comment[:8] == b"UNICODE\0"
    return str(comment[8:].decode("utf-16-be"))


def parameters_of(file: bytes) -> dict[str, str]:
    """What the web UI makes of it."""
    text = infotext_of(file)
    assert text is not None
    return parse_generation_parameters(text)


def source_of(file: bytes) -> str | None:
    """The DigitalSourceType in the file's XMP, read as XML; None without XMP."""
    with Image.open(io.BytesIO(file)) as image:
        xmp = image.info.get("xmp")
    if xmp is None:
        return None
    packet = re.sub(rb"<\?xpacket.*?\?>", b"", xmp)
    (found,) = ET.fromstring(packet).iter(SOURCE_TYPE)
    return found.text
