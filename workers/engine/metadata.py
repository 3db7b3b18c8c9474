"""The metadata of an image, in the form that AUTOMATIC1111's web UI writes and reads (its "infotext").

    a red heart
    Negative prompt: fog
    Steps: 20, Sampler: UniPC, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: sd15, ..., Version: Contour 0.1.0

Every value is the one that was used, whether from the request or the configuration. Beside the web UI's own keys there
are `Prompt suffix`, which the configuration adds to the prompt, and two digests: of the input file, and of all settings
that decide what images look like. So equal texts stand for equal images.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import msgspec

from workers.engine.config import EngineConfig
from workers.engine.contract import AS_CONFIGURED, Options, Task, resolved
from workers.engine.embedding import JPEG_UNITS, XMP, embed
from workers.engine.header import read_header
from workers.engine.samplers import WEB_UI_NAMES

CONTROLNET, VERSION = "ControlNet 0", "Version"
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
    """What an image is made from, beside the configuration. `input_hash` is of the encoded input, if wanted."""

    text: str = ""
    seed: int = 0
    options: Options = AS_CONFIGURED
    input_hash: str = ""

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
        line = self.infotext(Provenance(options=Options(negative="")), (0, 0))
        return _CHARACTER_BYTES * (texts + len(line) + _NUMBERS) + len(XMP) + _BLOCK_BYTES

    def control(self, options: Options) -> str:
        """The ControlNet's input, in the format of the web UI's extension."""
        chosen = resolved(options, self._config)
        edges = options.control_image == "edges"
        values = {
            "Module": "none" if edges else "canny",
            "Model": f"{self._about.model}-canny".translate(_SEPARATORS),
            "Weight": _number(chosen.control_scale),
            **({} if edges else {"Threshold A": chosen.canny_low, "Threshold B": chosen.canny_high}),
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
            CONTROLNET: self.control(options),
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
