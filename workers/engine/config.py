"""The `engine` section of a configuration file."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
AttentionKernel: TypeAlias = Literal["auto", "sdpa", "flash", "cudnn", "efficient", "xformers", "math"]
Side = Annotated[int, Meta(ge=64, le=4096)]
_LEAST_DECODE_BYTES, _MOST_DECODE_BYTES = 2**28, 2**30  # where the memory there is decides
Chance = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a part of the model lies: a local folder, or a hub repository with its pinned revision (a commit hash).

    A single-file checkpoint is named by its own path, or by `file` in a repository; `workers.fetch` converts it.
    """

    path: Annotated[str, Meta(min_length=1)]
    revision: str | None = None
    file: Annotated[str, Meta(pattern=r"\.safetensors$")] | None = None


@dataclass(frozen=True, kw_only=True)
class Lora(Weights):
    """A low-rank change of the model's weights, in a file of a folder or repository, weighed by `scale`."""

    file: Annotated[str, Meta(pattern=r"\.safetensors$")] = "pytorch_lora_weights.safetensors"
    scale: Annotated[float, Meta(ge=-4, le=4)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A diffusers scheduler by class name, with its options, e.g. `{use_karras_sigmas: true}`.

    A request may ask for up to `max_steps`, or for `steps` if these are more; each picture that runs has memory for as
    many.
    """

    name: Annotated[str, Meta(min_length=1)] = "UniPCMultistepScheduler"
    steps: Annotated[int, Meta(ge=1, le=1000)] = 20
    max_steps: Annotated[int, Meta(ge=1, le=1000)] = 50
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """What is added to the client's words: `suffix` is appended, `negative` is what the picture should not show."""

    suffix: str = ""
    negative: str = ""


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """The picture is scaled so that its short side is `short_side` pixels and the long one at most `long_side`, both
    rounded to multiples of `multiple`."""

    short_side: Annotated[int, Meta(ge=64, le=2048)] = 512
    long_side: Annotated[int, Meta(ge=64, le=4096)] = 1024
    multiple: Literal[8, 16, 32, 64] = 64


@dataclass(frozen=True, kw_only=True)
class Canny:
    """Thresholds of the edge detector, in steps of 8-bit intensity."""

    low: Annotated[int, Meta(ge=1, le=2000)] = 100
    high: Annotated[int, Meta(ge=1, le=2000)] = 200


@dataclass(frozen=True, kw_only=True)
class Output:
    """The file that the client gets; `quality` is JPEG's."""

    format: Literal["jpeg", "png"] = "jpeg"
    quality: Annotated[int, Meta(ge=1, le=100)] = 95


@dataclass(frozen=True, kw_only=True)
class Echo:
    """`kind: echo`: no model, the picture comes back after `steps` of `step_seconds` each.

    `reencode: false` returns the very bytes that came, unread.
    """

    steps: Positive = 1
    step_seconds: Annotated[float, Meta(ge=0)] = 0.0
    reencode: bool = True


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What is done for speed; none of it changes a picture beyond rounding. The defaults are the fastest.

    `graphs`: record each step as a CUDA graph, for pictures of `sizes` (width, height; the square of `size.short_side`
    if empty) before the first request, for others at first use while these take up to `other_sizes_gib` of the GPU's
    memory. `compile`: have torch compile the networks while they serve (auto: on a GPU). `attention`: a kernel, or the
    fastest for each shape, measured at start (auto); sdpa leaves it to torch, as where one cannot be used. `beside`:
    run the ControlNet beside the UNet's encoder, and the VAE beside the steps of others. `time_convolutions`: have
    cuDNN time its algorithms when a shape is first met, instead of guessing; then two starts may round differently.
    """

    graphs: bool = True
    compile: bool | Literal["auto"] = "auto"
    attention: AttentionKernel = "auto"
    beside: bool = True
    time_convolutions: bool = False
    sizes: list[tuple[Side, Side]] = field(default_factory=list)
    other_sizes_gib: Annotated[float, Meta(ge=0)] = 4.0


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong on purpose, to test everything around an engine: never where pictures are wanted.

    Each is a chance per call. `prepare_memory`, `step_memory`, `finish_memory`: the device has no memory left.
    `exit`: the process ends when a step is taken and not yet reported. `hang`: a step takes `hang_seconds`.
    `seed` and the process id decide, so that a process that is started again has another fate.
    """

    prepare_memory: Chance = 0.0
    step_memory: Chance = 0.0
    finish_memory: Chance = 0.0
    exit: Chance = 0.0
    hang: Chance = 0.0
    hang_seconds: Annotated[float, Meta(ge=0)] = 3600.0
    seed: int = 0

    @property
    def wanted(self) -> bool:
        """Whether anything is to go wrong."""
        return any((self.prepare_memory, self.step_memory, self.finish_memory, self.exit, self.hang))


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything that decides what a picture looks like, and how many are made at once (`slots` per worker).

    `runtime` is what runs the networks. `onnxruntime` reads the files that `workers.convert` put into the folder
    `onnx`. `decode_bytes` is the memory in which a worker decodes a large image, one at a time; small ones have a
    quarter more (auto: an eighth of the memory there is, at least 256 MiB, at most 1 GiB).
    """

    kind: Literal["diffusion", "echo"] = "diffusion"
    runtime: Literal["torch", "onnxruntime"] = "torch"
    onnx: Annotated[str, Meta(min_length=1)] = "~/.cache/contour/onnx"
    model: Weights | None = None
    controlnet: Weights | None = None
    loras: list[Lora] = field(default_factory=list)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    slots: Annotated[int, Meta(ge=1, le=64)] = 4
    decode_bytes: Annotated[int, Meta(ge=64 * 2**20)] | Literal["auto"] = "auto"
    guidance_scale: Annotated[float, Meta(ge=0, le=50)] = 7.5
    control_scale: Annotated[float, Meta(ge=0, le=2)] = 1.0
    sampler: Sampler = field(default_factory=Sampler)
    prompt: Prompting = field(default_factory=Prompting)
    size: Sizing = field(default_factory=Sizing)
    canny: Canny = field(default_factory=Canny)
    output: Output = field(default_factory=Output)
    speed: Speed = field(default_factory=Speed)
    echo: Echo = field(default_factory=Echo)
    faults: Faults = field(default_factory=Faults)

    def dtype_on(self, *, cuda: bool) -> str:
        """The number format to compute in: `auto` is float16 on a GPU and float32 elsewhere."""
        return ("float16" if cuda else "float32") if self.dtype == "auto" else self.dtype

    def decode_budget(self, memory: int) -> int:
        """Bytes in which a worker decodes images, where there is so much memory in all."""
        if self.decode_bytes == "auto":
            return min(max(memory // 8, _LEAST_DECODE_BYTES), _MOST_DECODE_BYTES)
        return self.decode_bytes


def rows_of(guidance_scale: float) -> int:
    """Rows of a picture in a batch: where it is not guided, the unconditional one is left out."""
    return 2 if guidance_scale > 1 else 1
