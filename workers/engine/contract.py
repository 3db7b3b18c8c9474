"""The interface between a worker process and its engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from scheduler.messages import Costs
from workers.engine.config import Canny, EngineConfig

Format: TypeAlias = Literal["jpeg", "png", "webp"]
ControlImage: TypeAlias = Literal["photo", "edges"]
Embedding: TypeAlias = Literal["full", "source", "none"]


MAX_SIZES = 8  # other sizes in an engine's costs


class UnusableModelError(Exception):
    """The configured model can never run on this machine; the message says why."""


class BadImageError(ValueError):
    """The input cannot be read as an image; the message is for the client."""


class BadOptionError(ValueError):
    """This model or sampler cannot do what a task asks for; the message is for the client."""


class PreparedTask(Protocol):
    """The result of `Engine.prepare`. `warnings` tell the client where its request could not be followed exactly.

    `thresholds` (low, high) are the edge detector's if the image decided them, else None.
    """

    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def thresholds(self) -> tuple[int, int] | None: ...


Prepared = TypeVar("Prepared", bound=PreparedTask)
T = TypeVar("T")


class OutOfMemoryError(RuntimeError):
    """Not enough memory for a call. The engine is as before, and goes on working."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The options of a task; None is the configured value.

    `negative` is the negative prompt. `control_image`: the input is a photo, in which edges are found, or an edge map,
    white on black, which is used as it is. `temperature`, in (0, 1], divides the logits of the softmax in the
    ControlNet's attention layers, and nothing else; half precision allows no less than 1/256. `format` and `quality`
    (1 .. 100, of a JPEG or WebP) are the file's. `previews`: make previews. `embed_metadata`: the file's metadata name
    everything that made it, only that a model made it, or nothing.
    """

    negative: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    control_scale: float | None = None
    canny_low: int | None = None
    canny_high: int | None = None
    control_image: ControlImage = "photo"
    temperature: float = 1.0
    format: Format | None = None
    quality: int | None = None
    previews: bool = False
    embed_metadata: Embedding = "none"


AS_CONFIGURED = EngineOptions()


class Resolved(NamedTuple):
    """EngineOptions by their names in a request, with the configured value of each that the request leaves out.

    Here None becomes the configured value, and nowhere else, but for a file's format and quality (`codec`). The
    thresholds are in order, whichever a client calls low.
    """

    negative_prompt: str
    steps: int
    guidance_scale: float
    control_scale: float
    canny_low: int
    canny_high: int
    temperature: float

    @property
    def canny(self) -> Canny:
        """The edge detector's thresholds."""
        return Canny(low=self.canny_low, high=self.canny_high)


def resolved(options: EngineOptions, config: EngineConfig) -> Resolved:
    """The options of a task, completed by the configuration."""
    low, high = _either(options.canny_low, config.canny.low), _either(options.canny_high, config.canny.high)
    return Resolved(
        _either(options.negative, config.prompt.negative),
        _either(options.steps, config.echo.steps if config.kind == "echo" else config.sampler.steps),
        _either(options.guidance_scale, config.guidance_scale),
        _either(options.control_scale, config.control_scale),
        min(low, high),
        max(low, high),
        options.temperature,
    )


def canny_of(options: EngineOptions, config: EngineConfig) -> Canny:
    """The edge detector of a task; a task that sets a threshold turns automatic ones off."""
    thresholds = resolved(options, config).canny
    set_by_task = options.canny_low is not None or options.canny_high is not None
    return replace(thresholds, auto=config.canny.auto and not set_by_task)


def _either(wanted: T | None, configured: T) -> T:
    return configured if wanted is None else wanted


@dataclass(frozen=True, slots=True)
class Task:
    """One image to make: the encoded input, the prompt, the seed (-2**63 .. 2**64 - 1), and its options."""

    image: bytes | memoryview
    text: str
    seed: int
    options: EngineOptions = AS_CONFIGURED


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A running image after `done` of its `total` steps; after the last it waits for `finish`."""

    slot: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How an engine runs, for the log and the metrics.

    `attention`: (shape, kernel), where a shape is "rows x heads, queries x keys x head size" as in "2x8 4096x4096x40".
    `graphs`: (kind, count) of captured graphs, in `graph_bytes` bytes of device memory.
    `fallbacks`: (reason, count) of faster ways that failed, so that a slower one was taken.
    """

    attention: tuple[tuple[str, str], ...] = ()
    graphs: tuple[tuple[str, int], ...] = ()
    graph_bytes: int = 0
    fallbacks: tuple[tuple[str, int], ...] = ()


def ignore(draft: object) -> None:
    """For a caller of `Engine.prepare` that begins nothing before the image is prepared."""


class Engine(Protocol[Prepared]):
    """Makes images, several at a time, each at its own step.

    `prepare`, `collect`, `encode` and `draw` are thread-safe. One thread calls all other methods, and it alone gives
    the device work. Slots are numbered 0 .. slots - 1.

    `prepare`, `begin`, `admit`, `step`, `finish`, `preview` and `encode` may raise OutOfMemoryError. Any error but that
    and the documented ones is a fault; if it comes from a method that uses the device, that can no longer be used.
    """

    slots: int

    def warm_up(self) -> Costs:
        """Run everything once and measure it. Called once, before anything else."""

    def costs(self) -> Costs:
        """The latest measurements."""

    def measure_again(self, is_idle: Callable[[], bool]) -> bool:
        """Measure the costs again, while no slot is taken: the machine may have been busy before.

        Return False, with the costs unchanged, if it ended early, for example because `is_idle` returned False.
        """

    def prepare(self, task: Task, on_draft: Callable[[Any], object] = ignore) -> Prepared:
        """Tokenise, decode, resize, find edges: everything before the device.

        `on_draft` is called with the argument of `begin` before the image is decoded, unless there is nothing to begin.
        Raises BadImageError and BadOptionError.
        """

    def begin(self, slot: int, draft: Any) -> None:
        """Have the device do for a free slot what needs no image, such as encoding the text; else `admit` does it."""

    def admit(self, slot: int, prepared: Prepared) -> None:
        """Put a prepared image into its slot; it takes part in the next step.

        The slot must be free, or the image begun there. After an error it is free.
        """

    def step(self) -> Sequence[StepProgress]:
        """Advance every unfinished image by one denoising step, and return their progress."""

    def finish(self, slot: int) -> object:
        """Start to decode an image after its last step, free its slot, and return the argument of `collect`.

        The device may decode beside the next steps of others.
        """

    def discard(self, slot: int) -> None:
        """Drop the image in a slot, begun or at any step, and free the slot."""

    def collect(self, decoding: object) -> object:
        """Wait until the device has decoded a finished image, and return the argument of `encode`."""

    def encode(self, pixels: object, options: EngineOptions = AS_CONFIGURED) -> bytes:
        """The image file for the client, in its format and quality."""

    def preview(self, slot: int) -> object | None:
        """Start a preview of a running image, and return the argument of `draw`; None if there is nothing to show.

        It costs very little compared with a step, and does not wait.
        """

    def draw(self, preview: object) -> bytes:
        """Wait for a preview, and return a small JPEG."""

    def status(self) -> EngineStatus:
        """How the engine runs at present."""
