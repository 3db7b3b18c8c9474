"""Metadata of image files, as other programs read it."""

import hashlib
import io
import json
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.workers.infotext import SOURCE, infotext_of, parameters_of, parse_generation_parameters, source_of
from workers.engine import codec
from workers.engine.config import Echo, EngineConfig, Output, Prompting, Sampler
from workers.engine.contract import Embedding, EngineOptions, Format, Task
from workers.engine.header import read_header
from workers.engine.metadata import JPEG_UNITS, About, Metadata, Provenance, embed, fitted, holds, sampler_name

FORMATS: list[Format] = ["jpeg", "png", "webp"]
ABOUT = About("dreamshaper #8", "Contour 1.2")
CONFIG = EngineConfig(prompt=Prompting(suffix=", best quality", negative="monochrome, lowres"))
NOISE = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
IMAGE = b"an encoded input"
PROMPTS = [
    "a red heart",
    "",
    'a red heart, and a: yellow "star" \\ it\'s',
    "two\nlines",
    "Steps: 20",
    "Steps: 20, Sampler: Euler, CFG scale: 3, Seed: 9, Size: 1x1",
    "Steps: 20, Sampler: Euler, CFG scale: 3, Seed: 9, Size: 1x1\nModel: none",
    "<x:xmpmeta> & </rdf:RDF> ]]> <?xpacket?>",
    "\N{HEAVY BLACK HEART} \N{PILE OF POO} \u4e00\u9f98 \u05d0\u05d1",
    "caf\xe9 \xa0 \x85 \x1f end",
    "x" * 10_000,
]


def made(text: str, embedding: Embedding = "full", **options: object) -> Provenance:
    return Provenance.of(Task(IMAGE, text, 7, EngineOptions(embed_metadata=embedding, **options)))  # type: ignore[arg-type]


def plain(file_format: Format, pixels: codec.Pixels = NOISE) -> bytes:
    return codec.encode(pixels, CONFIG.output, file_format)


def written(made_from: Provenance, file_format: Format = "png", config: EngineConfig = CONFIG) -> bytes:
    """The file of an image."""
    return Metadata(config, ABOUT).embed(plain(file_format), made_from)


def read(made_from: Provenance, config: EngineConfig = CONFIG) -> dict[str, str]:
    """What the web UI reads of it."""
    return parameters_of(written(made_from, config=config))


def pixels_of(file: bytes) -> list[object]:
    """As two decoders see them."""
    with Image.open(io.BytesIO(file)) as image:
        seen = np.asarray(image.convert("RGB"))
    return [seen.tobytes(), np.asarray(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)).tobytes()]


# ---------------------------------------------------------------------------------------------------------- the text


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_the_web_ui_reads_the_prompt_and_all_else(prompt: str, file_format: Format) -> None:
    found = parameters_of(written(made(prompt), file_format))
    assert found == {
        "Prompt": prompt.strip(),
        "Negative prompt": "monochrome, lowres",
        "Steps": "20",
        "Sampler": "UniPC",
        "CFG scale": "7.5",
        "Seed": "7",
        "Size-1": "96",
        "Size-2": "64",
        "Model": "dreamshaper #8",
        "ControlNet 0": "Module: canny, Model: dreamshaper #8-canny, Weight: 1, Threshold A: 100, Threshold B: 200",
        "Temperature": "1",
        "Prompt suffix": ", best quality",
        "Input hash": hashlib.sha256(IMAGE).hexdigest()[:16],
        "Config hash": found["Config hash"],
        "Version": "Contour 1.2",
    }


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_a_negative_prompt_comes_back_as_well(prompt: str) -> None:
    assert read(made("a", negative=prompt))["Negative prompt"] == prompt.strip()


def test_options_take_precedence_over_the_configuration() -> None:
    options: dict[str, Any] = {"steps": 9, "guidance_scale": 3.25, "control_scale": 0.1}
    found = read(made("a", temperature=1 / 3, canny_low=90, canny_high=30, **options))
    assert (found["Steps"], found["CFG scale"], found["Temperature"]) == ("9", "3.25", "0.3333333333333333")
    assert found["ControlNet 0"].endswith("Weight: 0.1, Threshold A: 30, Threshold B: 90")
    assert read(made("a", guidance_scale=0.5))["CFG scale"] == "1"  # there is none below 1, either
    edges = read(made("a", control_image="edges"))["ControlNet 0"]
    assert edges == "Module: none, Model: dreamshaper #8-canny, Weight: 1"


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**32, 2**64 - 1])
def test_a_seed_has_all_its_digits(seed: int) -> None:
    assert read(replace(made("a"), seed=seed))["Seed"] == str(seed)


def test_samplers_have_the_web_uis_names_where_it_has_one() -> None:
    def named(name: str, **options: object) -> str:
        return sampler_name(EngineConfig(sampler=Sampler(name=name, options=options)))

    assert named("UniPCMultistepScheduler") == "UniPC"
    assert named("EulerAncestralDiscreteScheduler") == "Euler a"
    assert named("DPMSolverMultistepScheduler") == "DPM++ 2M"
    assert named("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++") == "DPM++ 2M SDE"
    assert named("DEISMultistepScheduler") == "DEISMultistepScheduler"
    karras = EngineConfig(sampler=Sampler(options={"use_karras_sigmas": True}))
    assert read(made("a"), karras)["Schedule type"] == "Karras"


@pytest.mark.parametrize("model", ["a, b", 'a"b', "a: b\nc", " a ", "\\", "\N{HEAVY BLACK HEART}"])
def test_a_model_by_any_name_is_read(model: str) -> None:
    metadata = Metadata(EngineConfig(), About(model, "Contour 1.2"))
    found = parse_generation_parameters(metadata.infotext(made("a"), (8, 8)))
    assert (found["Model"], found["Version"]) == (model, "Contour 1.2")
    assert len(found["ControlNet 0"].split(", ")) == 5  # its own reader splits there


def test_equal_texts_stand_for_equal_images() -> None:
    """Each thing that decides what an image looks like changes the text; what only decides how it is made does not."""
    text = written(made("a"))
    for other in (made("b"), made("a", steps=9), replace(made("a"), seed=8), replace(made("a"), input_hash="1")):
        assert written(other) != text
    for config in (
        replace(CONFIG, output=Output(quality=80)),
        replace(CONFIG, prompt=replace(CONFIG.prompt, suffix="")),
        replace(CONFIG, sampler=Sampler(options={"solver_order": 3})),
    ):
        assert read(made("a"), config)["Config hash"] != read(made("a"))["Config hash"]
    same = replace(CONFIG, slots=9, output=Output(format="png"), runtime="onnxruntime", decode_bytes=2**28)
    assert read(made("a"), same) == read(made("a"))
    assert read(made("a", steps=20, guidance_scale=7.5, negative="monochrome, lowres")) == read(made("a"))


# ---------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("shape", [(64, 96, 3), (1, 1, 3), (63, 97, 3)])
def test_pixels_stay_as_they_are(file_format: Format, shape: tuple[int, ...]) -> None:
    before = plain(file_format, np.resize(NOISE, shape))
    for text in (None, "a", "\N{HEAVY BLACK HEART}", "aa"):  # of odd and even lengths
        after = embed(before, text)
        assert pixels_of(after) == pixels_of(before)
        assert read_header(after) == read_header(before)
        assert (source_of(after), infotext_of(after)) == (SOURCE, text)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_source_tells_no_prompt_and_none_is_nothing(file_format: Format) -> None:
    source = written(made("a secret prompt", "source"), file_format)
    assert (source_of(source), infotext_of(source)) == (SOURCE, None)
    assert not any(word in source for word in (b"secret", b"s\0e\0c", b"Contour"))
    assert written(made("a secret prompt", "none"), file_format) == plain(file_format)


def test_images_that_echo_does_not_read_stay_unchanged() -> None:
    config = EngineConfig(kind="echo", echo=Echo(reencode=False))
    assert Metadata(config, ABOUT).embed(b"any bytes", made("a")) == b"any bytes"


@pytest.mark.parametrize("text", ["a", "\N{HEAVY BLACK HEART}"])
def test_a_png_has_its_texts_before_the_pixels_in_sound_chunks(text: str) -> None:
    file, at, names = embed(plain("png"), text), 8, []
    while at < len(file):
        length, name = struct.unpack_from(">I4s", file, at)
        (checksum,) = struct.unpack_from(">I", file, at + 8 + length)
        assert checksum == zlib.crc32(file[at + 4 : at + 8 + length])
        names.append(name)
        at += 12 + length
    assert names[:4] == [b"IHDR", b"tEXt" if text.isascii() else b"iTXt", b"iTXt", b"IDAT"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_nothing_ends_a_text_early(file_format: Format) -> None:
    assert infotext_of(embed(plain(file_format), "a\0b")) == "a\N{REPLACEMENT CHARACTER}b"


def riff_chunks(file: bytes) -> dict[bytes, bytes]:
    assert struct.unpack_from("<I", file, 4)[0] == len(file) - 8
    at, found = 12, {}
    while at < len(file):
        name, length = struct.unpack_from("<4sI", file, at)
        found[name] = file[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    assert at == len(file)
    return found


@pytest.mark.parametrize("text", ["a", None])
def test_a_webp_says_which_chunks_it_has_and_how_large_it_is(text: str | None) -> None:
    found = riff_chunks(embed(plain("webp"), text))
    assert list(found) == [b"VP8X", b"VP8 ", *([b"EXIF"] if text else []), b"XMP "]
    assert found[b"VP8X"] == bytes([0x0C if text else 0x04, 0, 0, 0, 95, 0, 0, 63, 0, 0])


def test_other_webp_files_keep_what_they_are() -> None:
    """Lossless, with and without alpha, and one that is of several chunks already."""
    transparent = Image.fromarray(np.dstack([NOISE, NOISE[:, :, :1]]), "RGBA")
    for mode, lossless, flags in (("RGB", True, 0x04), ("RGBA", True, 0x14), ("RGBA", False, 0x14)):
        buffer = io.BytesIO()
        transparent.convert(mode).save(buffer, "WEBP", lossless=lossless, exact=True)
        after = embed(buffer.getvalue(), None)
        assert riff_chunks(after)[b"VP8X"][0] == flags
        with Image.open(buffer) as old, Image.open(io.BytesIO(after)) as new:
            assert (new.mode, new.tobytes()) == (old.mode, old.tobytes())
        assert source_of(after) == SOURCE


@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 10, "optimize": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_any_jpeg_is_read_as_before(mode: str, options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(buffer, "JPEG", **options)
    after = embed(buffer.getvalue(), "a")
    assert pixels_of(after) == pixels_of(buffer.getvalue())
    assert (source_of(after), infotext_of(after)) == (SOURCE, "a")


def test_exif_is_in_the_byte_order_it_says() -> None:
    file = embed(plain("jpeg"), "a\N{HEAVY BLACK HEART}")
    at = file.index(b"Exif\0\0") + 6
    assert file[at : at + 4] == b"MM\0*"
    assert "a\N{HEAVY BLACK HEART}".encode("utf-16-be") in file


def test_a_prompt_that_a_jpeg_has_no_room_for_is_cut_and_the_rest_can_be_read() -> None:
    heart = "\N{PILE OF POO}"
    for positive, negative in ((heart * 10_000, heart * 10_000), ("p" * 60_000, "n"), ("p", "n" * 60_000)):
        cut, whole = (
            parameters_of(written(made(positive, negative=negative), file_format)) for file_format in ("jpeg", "png")
        )
        assert (whole["Prompt"], whole["Negative prompt"]) == (positive, negative)
        assert len(cut.pop("Prompts cut")) > 16
        shorter = [cut.pop("Prompt"), cut.pop("Negative prompt")]
        assert all(text and long.startswith(text) for text, long in zip(shorter, (positive, negative), strict=True))
        assert sum(len(text.encode("utf-16-be")) for text in shorter) > 60_000
        assert cut.items() <= whole.items()
    assert len(fitted("x" * 99_999 + "\nSteps: 1, Version: Contour 1").encode("utf-16-be")) <= 2 * JPEG_UNITS


def test_a_jpeg_with_no_room_at_all_has_its_source_alone() -> None:
    config = EngineConfig(prompt=Prompting(suffix="s" * 70_000))
    file = written(made("a"), "jpeg", config)
    assert (source_of(file), infotext_of(file)) == (SOURCE, None)
    assert parameters_of(written(made("a"), "webp", config))["Prompt suffix"] == "s" * 70_000


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_file_grows_by_more_than_is_reckoned_with(file_format: Format) -> None:
    most = 5_000
    config = EngineConfig(
        prompt=Prompting(suffix="\N{PILE OF POO}" * 300, negative="\N{PILE OF POO}" * 6_000),
        sampler=Sampler(options={"use_karras_sigmas": True}),
    )
    about = About('"' * 100, "Contour 100.100.100")
    for options in (
        EngineOptions(
            embed_metadata="full", steps=1000, temperature=0.12345678901234567, guidance_scale=49.12345678901234
        ),
        EngineOptions(embed_metadata="full", negative="\N{PILE OF POO}" * most, control_scale=1.2345678901234567),
    ):
        metadata, before = Metadata(config, about), plain(file_format)
        task = Task(IMAGE, "\N{PILE OF POO}" * most, -(2**63), options)
        grown = len(metadata.embed(before, Provenance.of(task))) - len(before)
        assert grown <= metadata.largest(most)


def test_a_file_that_another_program_has_saved_does_not_hold_what_was_written() -> None:
    for file_format in FORMATS:
        file = embed(plain(file_format), "a")
        assert holds(file, "a")
        assert not holds(file, "b")
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(file)) as image:
            image.save(buffer, file_format.upper(), exif=image.getexif(), xmp=image.info["xmp"])
        assert not holds(buffer.getvalue(), "a")


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("file_format", FORMATS)
def test_exiftool_reads_it_and_finds_nothing_wrong(file_format: Format, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(written(made("a \N{HEAVY BLACK HEART}\nb"), file_format))
    command = ["exiftool", "-json", "-a", "-validate", "-warning", "-XMP:all", "-UserComment", "-Parameters", str(path)]
    (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    told = found["Parameters" if file_format == "png" else "UserComment"]
    assert parse_generation_parameters(told)["Prompt"] == "a \N{HEAVY BLACK HEART}\nb"
    assert found["DigitalSourceType"] == SOURCE
    # Of a JPEG's EXIF, it misses what cameras write of their lenses and colours.
    assert "Missing required JPEG" in str(found["Warning"]) if file_format == "jpeg" else found["Validate"] == "OK"
