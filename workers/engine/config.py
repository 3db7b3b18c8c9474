"""The `engine` section of a configuration file."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from workers.machine import computes_in_bfloat16

Positive = Annotated[int, Meta(ge=1)]
AttentionKernel: TypeAlias = Literal["auto", "sdpa", "flash", "cudnn", "efficient", "xformers", "math"]
Side = Annotated[int, Meta(ge=64, le=4096)]
_LEAST_DECODE_BYTES, _MOST_DECODE_BYTES = 2**28, 2**30  # where the memory there is decides
_LEAST_OPENVINO_BYTES, _MOST_OPENVINO_BYTES = 3 * 2**30, 12 * 2**30  # so too
MAX_THRESHOLD = 2000  # of Canny: its gradient of 8-bit values is at most 2040
FLOAT8_CAPABILITY = 8, 9  # of the first GPUs that multiply 8-bit floats: Ada; Hopper is 9.0
Chance = Annotated[float, Meta(ge=0, le=1)]


SafetensorsFile = Annotated[str, Meta(pattern=r"\.safetensors$", extra={"words": "text that ends with .safetensors"})]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a part of the model lies."""

    path: Annotated[str, Meta(min_length=1)]
    """A folder (`./x`, `../x` or `/x`, relative to the configuration file), a `.safetensors` file, or a repository on
    the hub (`owner/name`)."""
    revision: str | None = None
    """The commit of a repository: 40 hexadecimal digits."""
    file: SafetensorsFile | None = None
    """A single-file checkpoint in the folder or repository; `workers.fetch` converts it."""


@dataclass(frozen=True, kw_only=True)
class Lora(Weights):
    """A low-rank change of the model's weights."""

    file: SafetensorsFile = "pytorch_lora_weights.safetensors"
    """The file in the folder or repository."""
    scale: Annotated[float, Meta(ge=-4, le=4)] = 1.0
    """The factor of the change; 1 applies it as it is."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How noise becomes an image: a scheduler of diffusers."""

    name: Annotated[str, Meta(min_length=1)] = "UniPCMultistepScheduler"
    """Its class name."""
    steps: Annotated[int, Meta(ge=1, le=1000)] = 20
    """Denoising steps of a request that does not say how many."""
    max_steps: Annotated[int, Meta(ge=1, le=1000)] = 50
    """The most steps that a request may ask for, unless `steps` is more; each running image has memory for as many."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its options, such as `{use_karras_sigmas: true}`; others are as the model's own scheduler has them."""


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """Additions to the client's prompts."""

    suffix: str = ""
    """Text that is appended to every prompt."""
    negative: str = ""
    """The negative prompt of a request that has none."""


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """The size of images: the input is scaled to it, its aspect kept."""

    short_side: Annotated[int, Meta(ge=64, le=2048)] = 512
    """Pixels of the short side."""
    long_side: Annotated[int, Meta(ge=64, le=4096)] = 1024
    """Pixels of the long side, at most."""
    multiple: Literal[8, 16, 32, 64] = 64
    """Both sides are rounded to multiples of this."""


@dataclass(frozen=True, kw_only=True)
class Canny:
    """The edge detector's thresholds, in steps of 8-bit intensity."""

    low: Annotated[int, Meta(ge=1, le=MAX_THRESHOLD)] = 100
    """An edge goes on while the gradient is above this."""
    high: Annotated[int, Meta(ge=1, le=MAX_THRESHOLD)] = 200
    """An edge begins where the gradient is above this."""
    auto: bool = False
    """Move both thresholds until 4 to 12% of the image are edges. A request that sets a threshold is left alone."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """The file that a client gets, unless it asks for another."""

    format: Literal["jpeg", "png"] = "jpeg"
    """Its format."""
    quality: Annotated[int, Meta(ge=1, le=100)] = 95
    """JPEG's quality."""


@dataclass(frozen=True, kw_only=True)
class Echo:
    """The engine of `kind: echo`, which has no model and returns its input."""

    steps: Positive = 1
    """Steps that an image takes."""
    step_seconds: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds that a step takes, however many images share it."""
    batch_seconds: list[Annotated[float, Meta(ge=0)]] = field(default_factory=list)
    """Seconds of a step of 1, 2, ... images of the nominal size, instead of `step_seconds`; the last one is also for
    more. As on a GPU, each size is a batch of its own, one runs after the other, and other sizes cost by their pixels.
    """
    fixed_seconds: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds that an image takes beside its steps, half of them to prepare it and half to decode it, between steps;
    with `batch_seconds`, by its pixels."""
    reencode: bool = True
    """Decode and encode the image; `false` returns the bytes that came, unread."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Optimisations. The defaults are the fastest; none changes an image beyond rounding."""

    graphs: bool = True
    """Record each step as a CUDA graph."""
    compile: bool | Literal["auto"] = "auto"
    """Have torch compile the networks while they serve; `auto` does so on a GPU. Where OpenVINO takes them over,
    `true` changes nothing; with `false`, `runtime: auto` is torch."""
    attention: AttentionKernel = "auto"
    """The attention kernel; `auto` measures which is fastest for each shape, `sdpa` leaves the choice to torch. Where
    the kernel cannot be used, torch chooses too. Where OpenVINO runs the networks, this has no effect."""
    kernels: bool = True
    """On a GPU, use Contour's own kernels for group norms, fewer matrix products and smaller convolutions."""
    beside: bool = True
    """Run the ControlNet beside the UNet's encoder, and the VAE beside other images' steps."""
    time_convolutions: bool = False
    """Have cuDNN time its algorithms for each new shape instead of guessing; then two starts may round differently."""
    sizes: list[tuple[Side, Side]] = field(default_factory=list)
    """Sizes (width, height) whose graphs are recorded before the first request; if empty, the square of
    `size.short_side`. Others are recorded when they are first used."""
    openvino_gib: Annotated[float, Meta(ge=0)] | Literal["auto"] = "auto"
    """A worker's memory for networks that OpenVINO compiles for one size and number of images each, in GiB. Further
    sizes and numbers share one that takes any, and is slower by 6 to 9% for Stable Diffusion, by more for small models.
    `auto`: a quarter of the memory, shared by workers as they share the cores, but from 3 to 12."""
    other_sizes_gib: Annotated[float, Meta(ge=0)] = 4.0
    """GPU memory for the graphs of other sizes, in GiB."""

    def openvino_bytes(self, memory: int) -> int:
        """Bytes of what OpenVINO compiles for fixed shapes, in a worker whose share of the memory is so large."""
        if self.openvino_gib == "auto":
            return min(max(memory // 4, _LEAST_OPENVINO_BYTES), _MOST_OPENVINO_BYTES)
        return int(self.openvino_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Injected faults, for tests only. Each is the chance of a call to fail; `seed` and the process id decide which
    calls fail, so a restarted process fails at others."""

    prepare_memory: Chance = 0.0
    """The device has no memory left to prepare an image."""
    step_memory: Chance = 0.0
    """The device has no memory left for a step."""
    finish_memory: Chance = 0.0
    """The device has no memory left to finish an image."""
    exit: Chance = 0.0
    """The process ends after a step that it has not reported."""
    hang: Chance = 0.0
    """A step takes `hang_seconds`."""
    hang_seconds: Annotated[float, Meta(ge=0)] = 3600.0
    """How long it takes then."""
    seed: int = 0
    """Which faults happen."""

    @property
    def wanted(self) -> bool:
        """Whether anything is to go wrong."""
        return any((self.prepare_memory, self.step_memory, self.finish_memory, self.exit, self.hang))


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How images look, and how many a worker makes at once."""

    kind: Literal["diffusion", "echo"] = "diffusion"
    """`diffusion` makes images with a model; `echo` returns the input, for load tests."""
    runtime: Literal["auto", "torch", "openvino", "onnxruntime"] = "auto"
    """The runtime of the networks. `auto` is torch on a GPU, and on a CPU OpenVINO if it is installed, else torch.
    OpenVINO takes over from torch while the service runs, as soon as it has converted and compiled the networks."""
    onnx: Annotated[str, Meta(min_length=1)] = "~/.cache/contour/onnx"
    """The folder where `workers.convert` puts the files that `onnxruntime` reads."""
    onnx_provider: Literal["auto", "tensorrt"] = "auto"
    """The provider of `onnxruntime`: `auto` is CUDA on a GPU, else the CPU; `tensorrt` compiles the files for the GPU,
    which takes minutes at the first start. Without TensorRT it is the same as `auto`, with a warning in the log."""
    model: Weights | None = None
    """The model: UNet, VAE, text encoder and tokenizer, as diffusers lays them out."""
    controlnet: Weights | None = None
    """The ControlNet."""
    vae: Weights | None = None
    """Another VAE than the model's own to decode images with: an AutoencoderKL, or an AutoencoderTiny such as TAESD,
    which is faster and less exact."""
    loras: list[Lora] = field(default_factory=list)
    """LoRAs that are fused into the weights at start."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The number format to compute in; `auto` is float16 on a GPU, bfloat16 on a CPU that has instructions for it, and
    else float32. ONNX files are in float32 or float16."""
    quantisation: Literal["none", "fp8", "fp8-emulated"] = "none"
    """`fp8` computes the linear layers of the UNet and the ControlNet in 8-bit floats, which changes images a little;
    for GPUs with compute capability 8.9 or higher. `fp8-emulated` makes such images on any device, slowly."""
    slots: Annotated[int, Meta(ge=1, le=64)] = 4
    """Images that a worker makes at the same time."""
    decode_bytes: Annotated[int, Meta(ge=64 * 2**20)] | Literal["auto"] = "auto"
    """Memory in which a worker decodes a large image, one at a time; small ones have a quarter more. `auto` is an
    eighth of the machine's memory, at least 256 MiB and at most 1 GiB."""
    guidance_scale: Annotated[float, Meta(ge=0, le=50)] = 7.5
    """How closely the prompt is followed; up to 1 is no guidance, at half the work of a step."""
    control_scale: Annotated[float, Meta(ge=0, le=2)] = 1.0
    """How closely the edges are followed; 0 ignores them."""
    sampler: Sampler = field(default_factory=Sampler)
    prompt: Prompting = field(default_factory=Prompting)
    size: Sizing = field(default_factory=Sizing)
    canny: Canny = field(default_factory=Canny)
    output: Output = field(default_factory=Output)
    speed: Speed = field(default_factory=Speed)
    echo: Echo = field(default_factory=Echo)
    faults: Faults = field(default_factory=Faults)

    def dtype_on(self, *, cuda: bool) -> str:
        """The number format to compute in."""
        if self.dtype != "auto":
            return self.dtype
        if cuda:
            return "float16"
        return "bfloat16" if self.runtime != "onnxruntime" and computes_in_bfloat16() else "float32"

    def runtime_on(self, *, cuda: bool) -> str:
        """The runtime of the networks: torch, openvino or onnxruntime."""
        if self.runtime != "auto":
            return self.runtime
        # OpenVINO takes over from torch as compiled networks do, and would run the networks without quantisation.
        suits = not cuda and self.dtype != "float16" and self.speed.compile is not False and self.quantisation == "none"
        return "openvino" if suits and installed("openvino") else "torch"

    def decode_budget(self, memory: int) -> int:
        """Bytes in which a worker decodes images, where there is so much memory in all."""
        if self.decode_bytes == "auto":
            return min(max(memory // 8, _LEAST_DECODE_BYTES), _MOST_DECODE_BYTES)
        return self.decode_bytes


def installed(package: str) -> bool:
    """Whether a package can be imported. A mere folder of its name, in the working directory say, is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def rows_of(guidance_scale: float) -> int:
    """Rows of an image in a batch: unconditional and conditional with guidance, else one."""
    return 2 if guidance_scale > 1 else 1
