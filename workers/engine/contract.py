"""What a worker process asks of an engine, and the words they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from scheduler.messages import Costs
from workers.engine.config import Canny, EngineConfig

Format: TypeAlias = Literal["jpeg", "png", "webp"]
ControlImage: TypeAlias = Literal["photo", "edges"]
Embedding: TypeAlias = Literal["full", "source", "none"]


MAX_SIZES = 8  # in an engine's costs, beside the nominal one


class UnusableModelError(Exception):
    """The configured model cannot run on this machine, however often it is tried; the message says why."""


class BadImageError(ValueError):
    """The input cannot be read as an image; the message is for the client."""


class BadOptionError(ValueError):
    """What a task asks for cannot be done by this model or sampler; the message is for the client."""


class HasWarnings(Protocol):
    """What `Engine.prepare` returns. `warnings`: sentences for the client, about a request that was not followed
    to the letter."""

    @property
    def warnings(self) -> tuple[str, ...]: ...  # noqa: D102 - said above


Prepared = TypeVar("Prepared", bound=HasWarnings)
T = TypeVar("T")


class OutOfMemoryError(RuntimeError):
    """There is not enough memory for what was asked; the engine is as it was before, and works on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a task wants otherwise than the configuration says; None is as configured.

    `negative` is what the image should not show. `control_image`: the input is a photo, in which edges are found, or
    an edge map, white on black, which is used as it is. `temperature`, in (0, 1], divides the logits of the softmax in
    the ControlNet's attention layers, and nothing else; in half precision, below 1/256 it counts as that. `format` is
    the file's, and so is `quality` (1 .. 100, of a JPEG or WebP). `previews`: somebody wants to watch.
    `embed_metadata`: what the file tells of itself: all that made it, only that a model made it, or nothing.
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


AS_CONFIGURED = Options()


class Resolved(NamedTuple):
    """Options by their names in a request, with the configured value of each that the request leaves out.

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


def resolved(options: Options, config: EngineConfig) -> Resolved:
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


def _either(wanted: T | None, configured: T) -> T:
    return configured if wanted is None else wanted


@dataclass(frozen=True, slots=True)
class Task:
    """One image to make: the encoded input, the prompt, the seed (-2**63 .. 2**64 - 1), and what else is wanted."""

    image: bytes | memoryview
    text: str
    seed: int
    options: Options = AS_CONFIGURED


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A running image after a step: `done` of its `total` steps are taken; equal means that it waits for `finish`."""

    slot: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How an engine runs at present, for the log and the metrics: what it chose, holds, and had to give up.

    `attention`: (shape, kernel), where a shape is "rows x heads, queries x keys x head size" as in "2x8 4096x4096x40".
    `graphs`: (kind, count) of captured graphs, in `graph_bytes` bytes of device memory.
    `fallbacks`: (reason, times) that a slower way was taken because the faster one failed.
    """

    attention: tuple[tuple[str, str], ...] = ()
    graphs: tuple[tuple[str, int], ...] = ()
    graph_bytes: int = 0
    fallbacks: tuple[tuple[str, int], ...] = ()


class Engine(Protocol[Prepared]):
    """Makes images, several at a time, each at its own step.

    `prepare`, `collect`, `encode` and `draw` may be called from any thread, several at once. All else is called from
    one thread, the only one that talks to the device. Slots are numbered 0 .. slots - 1.

    `prepare`, `admit`, `step`, `finish`, `preview` and `encode` may raise OutOfMemoryError. Any other error, but for a
    BadImageError, is a fault; of those that talk to the device, after it nothing is to be expected of that any more.
    """

    slots: int

    def warm_up(self) -> Costs:
        """Run everything once and measure it. Called once, before anything else."""

    def costs(self) -> Costs:
        """What was measured last; equal to what it was before if nothing has been measured since."""

    def measure_again(self, is_idle: Callable[[], bool]) -> bool:
        """Measure the costs once more, while no slot is taken: the machine may have been busy before.

        False, with the costs as they were, when it ended early: as `is_idle`, asked all the time, was false, say.
        """

    def prepare(self, task: Task) -> Prepared:
        """Decode, resize, find edges, tokenise: all that needs no device.

        Raises BadImageError and BadOptionError.
        """

    def admit(self, slot: int, prepared: Prepared) -> None:
        """Put a prepared image into a free slot; it takes part in the next step."""

    def step(self) -> Sequence[StepProgress]:
        """Advance every unfinished image by one denoising step. Nothing to advance: an empty sequence."""

    def finish(self, slot: int) -> object:
        """Have an image that took its last step decoded, free its slot, and return what `collect` takes.

        The device may decode it beside the next steps of others.
        """

    def discard(self, slot: int) -> None:
        """Drop the image in a slot, at whatever step it is, and free the slot."""

    def collect(self, decoding: object) -> object:
        """Wait until the device has decoded a finished image, and return what `encode` takes."""

    def encode(self, pixels: object, options: Options = AS_CONFIGURED) -> bytes:
        """The bytes of the image file that the client gets, in the format and the quality that it asks for."""

    def preview(self, slot: int) -> object | None:
        """Have the device show what a running image looks like so far, and return what `draw` takes.

        None: there is nothing to show. It costs next to nothing beside a step, and waits for nothing.
        """

    def draw(self, preview: object) -> bytes:
        """Wait until the device has shown it, and return a small JPEG."""

    def status(self) -> EngineStatus:
        """How the engine runs at present; equal to the last one if nothing has changed."""
