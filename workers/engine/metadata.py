"""The metadata of an image, in the form that AUTOMATIC1111's web UI writes and reads (its "infotext").

    a red heart
    Negative prompt: fog
    Steps: 20, Sampler: UniPC, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: sd15, ..., Version: Contour 0.1.0

Every value is the one that was used, whether from the request or the configuration. Beside the web UI's own keys there
are `Prompt suffix`, which the configuration adds to the prompt, and two digests: of the input file, and of all settings
that decide what images look like. So equal texts stand for equal images.

The text is kept where the web UI writes it and where it, ComfyUI and others look for it: in the text chunk `parameters`
of a PNG, in EXIF's UserComment of a JPEG or WebP. XMP beside it says that a model made the image, and is the same for
all images. Layouts: PNG 3rd edition 11.3.3; Exif 2.32 4.5 and 4.6; RFC 9649 2.7; XMP part 3, 1.1.

The blocks are put into the file as it was encoded, so its pixels stay as they are. OpenCV's `imencodeWithMetadata` does
not serve: 5.0 writes a JPEG's XMP without the header that marks it, and a PNG's with bytes of other memory after it.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from struct import pack

import msgspec

from workers.engine.config import EngineConfig
from workers.engine.contract import AS_CONFIGURED, EngineOptions, Task, canny_of, resolved
from workers.engine.header import PNG_SIGNATURE, png_chunk, read_header
from workers.engine.samplers import WEB_UI_NAMES

CONTROLNET, VERSION = "ControlNet 0", "Version"
THRESHOLDS, AUTOMATIC = "Canny thresholds", "automatic"
_DIGEST_DIGITS = 16  # of hexadecimal: 64 bits
# Keys of `engine` that do not change what an image looks like.
_MEANS = ("slots", "speed", "faults", "onnx", "onnx_provider", "runtime", "decode_bytes")
_SDE = ("sde-dpmsolver", "sde-dpmsolver++")
_SCHEDULES = {
    "use_karras_sigmas": "Karras",
    "use_exponential_sigmas": "Exponential",
    "use_beta_sigmas": "Beta",
}
_CHARACTER_BYTES = 4  # at most, in UTF-8 as in UTF-16
# Characters by which an image's own numbers may be longer; bytes of a file's blocks beside the text and the XMP.
_NUMBERS, _BLOCK_BYTES = 1000, 300
_SEPARATORS = str.maketrans(dict.fromkeys(',:\n\r"', " "))  # what ControlNet's extension cannot read in a value


@dataclass(frozen=True, slots=True)
class About:
    """How images name the service: its model, and its name with the version."""

    model: str = ""
    software: str = "Contour"


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of an image, without the configuration. `input_hash` is of the encoded input, if wanted.

    `thresholds` (low, high) are the edge detector's if the image decided them.
    """

    text: str = ""
    seed: int = 0
    options: EngineOptions = AS_CONFIGURED
    input_hash: str = ""
    thresholds: tuple[int, int] | None = None

    @classmethod
    def of(cls, task: Task) -> "Provenance":
        """That of a task."""
        wanted = task.options.embed_metadata == "full"
        return cls(task.text, task.seed, task.options, digest(task.image) if wanted else "")


class Metadata:
    """Writes the metadata of a configuration's images."""

    def __init__(self, config: EngineConfig, about: About) -> None:
        self._config = config
        self._about = about
        self._is_unread = config.kind == "echo" and not config.echo.reencode
        usual = EngineConfig()
        means = {name: getattr(usual, name) for name in _MEANS}
        output = replace(config.output, format=usual.output.format)  # which a request may choose, and a file shows
        # As a dictionary: msgspec would leave out fields with default values.
        decisive = asdict(replace(config, **means, output=output))
        self._digest = digest(msgspec.json.encode(decisive, order="sorted"))

    def embed(self, file: bytes, made_from: Provenance) -> bytes:
        """The file of an image with the metadata that its options ask for.

        What `echo.reencode: false` returns unread stays as it is.
        """
        wanted = made_from.options.embed_metadata
        if wanted == "none" or self._is_unread:
            return file
        if wanted == "source":
            return embed(file, None)
        header = read_header(file)
        text = self.infotext(made_from, (header.width, header.height))
        return embed(file, fitted(text) if header.format == "JPEG" else text)

    def infotext(self, made_from: Provenance, size: tuple[int, int]) -> str:
        """The text of an image of a size (width, height)."""
        negative = resolved(made_from.options, self._config).negative_prompt
        said = [made_from.text, f"Negative prompt: {negative}"] if negative else [made_from.text]
        values = {**self._values(made_from, size), VERSION: self._about.software}
        line = ", ".join(f"{name}: {_quoted(value)}" for name, value in values.items() if value)
        return "\n".join([*said, line]).strip()

    def largest(self, max_text_chars: int) -> int:
        """An upper bound of the bytes that metadata adds to a file, where a prompt has at most so many characters."""
        texts = max_text_chars + max(max_text_chars, len(self._config.prompt.negative))
        line = self.infotext(Provenance(options=EngineOptions(negative="")), (0, 0))
        return _CHARACTER_BYTES * (texts + len(line) + _NUMBERS) + len(XMP) + _BLOCK_BYTES

    def control(self, options: EngineOptions, thresholds: tuple[int, int] | None = None) -> str:
        """The ControlNet's input, in the format of the web UI's extension, with the image's own thresholds, if any."""
        chosen = resolved(options, self._config)
        edges = options.control_image == "edges"
        low, high = thresholds or (chosen.canny_low, chosen.canny_high)
        values = {
            "Module": "none" if edges else "canny",
            "Model": f"{self._about.model}-canny".translate(_SEPARATORS),
            "Weight": _number(chosen.control_scale),
            **({} if edges else {"Threshold A": low, "Threshold B": high}),
        }
        return ", ".join(f"{name}: {value}" for name, value in values.items())

    def _values(self, made_from: Provenance, size: tuple[int, int]) -> Mapping[str, str]:
        config, options = self._config, made_from.options
        chosen = resolved(options, config)
        return {
            "Steps": str(chosen.steps),
            "Sampler": sampler_name(config),
            "Schedule type": next((name for key, name in _SCHEDULES.items() if config.sampler.options.get(key)), ""),
            # Up to 1 there is no guidance, as at 1.
            "CFG scale": _number(max(chosen.guidance_scale, 1.0)),
            "Seed": str(made_from.seed),
            "Size": f"{size[0]}x{size[1]}",
            "Model": self._about.model,
            CONTROLNET: self.control(options, made_from.thresholds),
            THRESHOLDS: AUTOMATIC if canny_of(options, config).auto and options.control_image == "photo" else "",
            "Temperature": _number(chosen.temperature),
            "Prompt suffix": config.prompt.suffix,
            "Input hash": made_from.input_hash,
            "Config hash": self._digest,
        }


def sampler_name(config: EngineConfig) -> str:
    """The sampler by the web UI's name, or by diffusers' where the web UI has none."""
    sampler = config.sampler
    name = WEB_UI_NAMES.get(sampler.name, sampler.name)
    sde = sampler.name == "DPMSolverMultistepScheduler" and sampler.options.get("algorithm_type") in _SDE
    return f"{name} SDE" if sde else name


def fitted(text: str) -> str:
    """The text, cut to fit a JPEG's EXIF: in the prompts, as other programs parse the last line.

    That line then names the digest of the whole text.
    """
    whole = text.encode("utf-16-be", "replace")
    if len(whole) <= 2 * JPEG_UNITS:
        return text
    prompts, _, line = text.rpartition("\n")
    before, version, after = line.rpartition(f", {VERSION}: ")
    line = f"\n{before}, Prompts cut: the whole has hash {digest(whole)}{version}{after}"
    room = 2 * JPEG_UNITS - len(line.encode("utf-16-be", "replace"))
    return _cut(prompts, max(room, 0)) + line


def _cut(prompts: str, room: int) -> str:
    """Cut prompt and negative prompt to `room` bytes of UTF-16; the longer one loses more."""
    positive, mark, negative = prompts.partition("\nNegative prompt: ")
    texts = [each.encode("utf-16-be", "replace") for each in (positive, mark + negative)]
    half = room // 4 * 2
    rooms = [max(half, room - len(texts[1])), max(half, room - len(texts[0]))]
    # Half a pair of surrogates is left out.
    return "".join(text[:most].decode("utf-16-be", "ignore") for text, most in zip(texts, rooms, strict=True))


def digest(data: bytes | memoryview) -> str:
    """The beginning of the SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:_DIGEST_DIGITS]


def _number(number: float) -> str:
    """A number with all its digits, without the ".0" of a whole one."""
    return str(int(number)) if number == int(number) else repr(number)


def _quoted(value: str) -> str:
    """Quoted as by the web UI, and where its reader would strip spaces or quotes."""
    is_plain = value == value.strip() and not any(mark in value for mark in ',:"\n\r')
    return value if is_plain else json.dumps(value, ensure_ascii=False)


# -------------------------------------------------------------------------------------------------------- into the file


KEYWORD = "parameters"
EXIF_IFD, USER_COMMENT, UNICODE = 0x8769, 0x9286, b"UNICODE\0"  # two tags, and what begins a comment in UTF-16
# IPTC's word for what a trained model has made; cameras' own images and composites have others.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()

_LONG, _UNDEFINED = 4, 7  # types of EXIF values
_IFD_BYTES = 2 + 12 + 4  # of a directory with one entry
_TIFF_HEADER = pack(">2sHI", b"MM", 42, 8)
_JPEG, _JPEG_EXIF, _JPEG_XMP = b"\xff\xd8", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_MAX_SEGMENT = 0xFFFF  # bytes of a JPEG segment, with the two of its length
# UTF-16 units that fit into the EXIF of a JPEG.
JPEG_UNITS = (_MAX_SEGMENT - 2 - len(_JPEG_EXIF + _TIFF_HEADER + UNICODE) - 2 * _IFD_BYTES) // 2
_PNG_HEADER = len(PNG_SIGNATURE) + 25  # IHDR is always first, and always as long
_WEBP_EXIF, _WEBP_XMP, _WEBP_ALPHA = 0x08, 0x04, 0x10  # flags of VP8X
_LOSSLESS_ALPHA = 0x10  # of the last byte of a VP8L header


def embed(file: bytes, text: str | None) -> bytes:
    """The PNG, JPEG or WebP file with the XMP in it, and a text if there is one; a JPEG may have no room for it.

    Raises BadImageError for another file.
    """
    blocks, view = _blocks(file, text), memoryview(file)
    if file.startswith(PNG_SIGNATURE):
        at = _PNG_HEADER
    elif file.startswith(_JPEG):
        has_jfif = file[2:4] == b"\xff\xe0"  # which comes first, by its own rules
        at = 4 + struct.unpack_from(">H", file, 4)[0] if has_jfif else 2
    else:
        return _webp(file, _WEBP_XMP if text is None else _WEBP_XMP | _WEBP_EXIF, blocks)
    return b"".join((view[:at], blocks, view[at:]))


def holds(file: bytes, text: str) -> bool:
    """Whether a file has its text and XMP as `embed` writes them, not as another program saved it."""
    return _blocks(file, text) in file


def _blocks(file: bytes, text: str | None) -> bytes:
    """The blocks to put into a file, by its format."""
    if text is not None:
        text = text.replace("\0", "\ufffd")  # it would end the text for some readers
    if file.startswith(PNG_SIGNATURE):
        return _PNG_XMP if text is None else _png_text(text) + _PNG_XMP
    exif = b"" if text is None else _exif(text)
    if not file.startswith(_JPEG):
        return _riff(b"EXIF", exif) + _WEBP_XMP_CHUNK if exif else _WEBP_XMP_CHUNK
    has_room = 0 < len(exif) <= _MAX_SEGMENT - 2 - len(_JPEG_EXIF)
    return _segment(_JPEG_EXIF + exif) + _JPEG_XMP_SEGMENT if has_room else _JPEG_XMP_SEGMENT


def _png_text(text: str) -> bytes:
    try:
        return png_chunk(b"tEXt", KEYWORD.encode() + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _international(KEYWORD, text.encode(errors="replace"))


def _international(keyword: str, text: bytes) -> bytes:
    """Text in UTF-8: not compressed, of no language, under no translated keyword."""
    return png_chunk(b"iTXt", keyword.encode() + b"\0" * 5 + text)


def _segment(body: bytes) -> bytes:
    """An APP1 segment."""
    return pack(">2sH", b"\xff\xe1", len(body) + 2) + body


def _webp(file: bytes, flags: int, blocks: bytes) -> bytes:
    """Turn the encoder's file of one chunk into one of several, which begins with a list of them."""
    header, view = read_header(file), memoryview(file)
    name = file[12:16]
    if name == b"VP8X":
        flags, view = flags | file[20], view[18:]
    elif name == b"VP8L" and file[24] & _LOSSLESS_ALPHA:
        flags |= _WEBP_ALPHA
    width, height = (header.width - 1).to_bytes(3, "little"), (header.height - 1).to_bytes(3, "little")
    body = (b"WEBP", pack("<4sII", b"VP8X", 10, flags), width, height, view[12:], blocks)
    return b"".join((pack("<4sI", b"RIFF", sum(map(len, body))), *body))


def _riff(name: bytes, body: bytes) -> bytes:
    return pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2)


def _exif(text: str) -> bytes:
    """A block of EXIF with a UserComment, in UTF-16 of the block's own byte order, which is big-endian."""
    comment = UNICODE + text.encode("utf-16-be", "replace")
    first = _ifd(EXIF_IFD, _LONG, 1, len(_TIFF_HEADER) + _IFD_BYTES)
    second = _ifd(USER_COMMENT, _UNDEFINED, len(comment), len(_TIFF_HEADER) + 2 * _IFD_BYTES)
    return b"".join((_TIFF_HEADER, first, second, comment))


def _ifd(tag: int, kind: int, count: int, value: int) -> bytes:
    """A directory of one entry, and none after it; a value of more than four bytes is an offset."""
    return pack(">HHHIII", 1, tag, kind, count, value, 0)


_PNG_XMP = _international("XML:com.adobe.xmp", XMP)
_JPEG_XMP_SEGMENT = _segment(_JPEG_XMP + XMP)
_WEBP_XMP_CHUNK = _riff(b"XMP ", XMP)
