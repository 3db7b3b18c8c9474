"""The diffusion engine: slots of running images that share every denoising step.

An image may join at any step boundary and leave at any other, because the networks take a timestep per image. The
sampler's arithmetic is a matrix (`sampler.py`); batches by size hold the running state (`batch.py`).
"""

import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from scheduler.messages import Costs
from workers.engine import codec
from workers.engine.batch import JoiningImage
from workers.engine.budget import DecodeBudget
from workers.engine.codec import Pixels
from workers.engine.conditioning import Prompt
from workers.engine.config import EngineConfig
from workers.engine.contract import (
    AS_CONFIGURED,
    MAX_SIZES,
    EngineOptions,
    EngineStatus,
    OutOfMemoryError,
    StepProgress,
    Task,
    canny_of,
    ignore,
    resolved,
)
from workers.engine.denoiser import min_temperature
from workers.engine.execution import ExecutionManager, Workspace
from workers.engine.graphs import Recorder
from workers.engine.header import output_size, read_header
from workers.engine.measure import Measurements
from workers.engine.plan import Plan, Scales, Size, draw, scales_of, warnings_of
from workers.engine.runtime import AnyModel
from workers.engine.streams import Decoding, StepPacer, fetch, upload
from workers.engine.trials import Trials
from workers.logs import timed
from workers.machine import memory_limit

P = ParamSpec("P")
T = TypeVar("T")


def _on_device(
    method: Callable[Concatenate["DiffusionEngine", P], T],
) -> Callable[Concatenate["DiffusionEngine", P], T]:
    """A method that gives the device work, and so waits while torch's compiler times kernels on it.

    An out-of-memory error becomes the contract's, without torch's advice to programmers.
    """

    @wraps(method)
    def run(engine: "DiffusionEngine", /, *args: P.args, **kwargs: P.kwargs) -> T:
        with torch.no_grad(), engine.hold_device():
            try:
                return method(engine, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                raise OutOfMemoryError(str(error).partition(". ")[0]) from error

    return run


@dataclass(frozen=True, eq=False, slots=True)
class Draft:
    """An image without its edges: tokens of each row, noise [noises, C, h, w] float32, its plan and scales."""

    prompts: tuple[tuple[int, ...], ...]
    noise: Tensor
    plan: Plan
    scales: Scales


@dataclass(frozen=True, eq=False, slots=True)
class Prepared(Draft):
    """An image that is ready for the device, with its edges, uint8 [height, width], and warnings for the client.

    `thresholds` (low, high) are the edge detector's if they are automatic.
    """

    edges: Pixels
    warnings: tuple[str, ...] = ()
    thresholds: tuple[int, int] | None = None


class DiffusionEngine:
    """Stable Diffusion with a ControlNet on one device; implements `contract.Engine`.

    `recorder` replaces the device's own. `trials` records what may end this process.
    """

    def __init__(
        self, config: EngineConfig, model: AnyModel, recorder: Recorder | None = None, trials: Trials | None = None
    ) -> None:
        self.slots = config.slots
        self._config = config
        self._model = model
        self._budget = DecodeBudget(config.decode_budget(memory_limit()))
        self._execution = ExecutionManager(config, model, recorder, trials)
        self.hold_device = self._execution.device_lock.hold
        self._begun: dict[int, Workspace] = {}  # slot -> where its image will run
        self._workspaces: dict[int, Workspace] = {}  # slot -> where its image runs
        self._finished_latents: dict[int, tuple[Workspace, Tensor]] = {}  # slot -> what waits for `finish`
        self._pacer = StepPacer(model.device)
        side = config.size.short_side
        self._min_temperature = min_temperature(model.dtype)
        self._nominal: Size = (side // model.latent_scale, side // model.latent_scale)
        width, height = output_size(2 * side, side, config.size)
        self._wide: Size = (height // model.latent_scale, width // model.latent_scale)
        self._measurements = Measurements(self, side, self._execution.shape.buckets)

    @property
    def calls(self) -> int:
        """Model calls of an image with the configured number of steps."""
        return self._model.plans.usual.calls

    @torch.no_grad()
    def warm_up(self) -> Costs:
        """Record and run everything once, measure it, and start to compile."""
        with timed("Made buffers and recorded graphs"):
            self._execution.set_up()
        with timed("Measured costs"):
            self._measurements.take_all()
        with timed("Fitted the colours of previews to the VAE"):
            blank = torch.zeros(self._model.latent_channels, *self._nominal, device=self._model.device)
            if (shown := self._show(blank)) is not None:
                shown.wait()
        self._execution.start_compiling()
        return self.costs()

    def costs(self) -> Costs:
        return self._measurements.costs()

    @_on_device
    def measure_again(self, is_idle: Callable[[], bool]) -> bool:
        return self._measurements.refresh(is_idle)

    def prepare(self, task: Task, on_draft: Callable[[Draft], object] = ignore) -> Prepared:
        """Tokenise, draw the noise, then decode, resize and find edges.

        All on the CPU, so that a seed means the same on every device. Decoding takes longest, and the text encoder
        needs none of it: so `on_draft` gets everything else before. Raises BadImageError and BadOptionError.
        """
        options, chosen = task.options, resolved(task.options, self._config)
        plan, scales = self._model.plans.of(chosen.steps), scales_of(chosen, self._config, self._min_temperature)
        header = read_header(task.image)
        width, height = size = output_size(header.width, header.height, self._config.size)
        prompts = self._prompts(task)
        tokens = tuple(prompt.tokens for prompt in prompts)
        scale = self._model.latent_scale
        shape = (self._model.latent_channels, height // scale, width // scale)
        noise = draw(task.seed, shape, plan.noises)
        on_draft(Draft(tokens, noise, plan, scales))
        with self._budget.spend_on(header, size):
            pixels = codec.decode_to(task.image, width, height)
        thresholds, canny = None, canny_of(options, self._config)
        if options.control_image == "edges":
            edges = codec.grey(pixels)
        else:
            edges, used = codec.edges_and_thresholds(pixels, canny)
            thresholds = used if canny.auto else None
        warnings = (*(prompt.warning for prompt in prompts), *warnings_of(options, scales, edges))
        return Prepared(tokens, noise, plan, scales, edges, tuple(filter(None, warnings)), thresholds)

    @_on_device
    def begin(self, slot: int, draft: Draft) -> None:
        """Encode the text of an image, and put all but its hint into a free slot.

        Raises ValueError when the slot is taken or not there, and OutOfMemoryError, after which the slot is still free.
        """
        if not 0 <= slot < self.slots or any(slot in each for each in self._taken):
            raise ValueError(f"slot {slot} is not free")
        self._begun[slot] = self._execution.with_room(lambda: self._load(slot, draft))

    @_on_device
    def admit(self, slot: int, prepared: Prepared) -> None:
        """Put a prepared image into its slot: a free one, or where it has begun.

        Raises ValueError when the slot is taken or not there, and OutOfMemoryError, after which the slot is free.
        """
        if slot not in self._begun:
            self.begin(slot, prepared)
        workspace = self._begun[slot]
        try:
            self._execution.with_room(lambda: workspace.batch.admit(slot, workspace.hint(prepared.edges)))
        except BaseException:
            self.discard(slot)
            raise
        self._workspaces[slot] = self._begun.pop(slot)

    @_on_device
    def step(self) -> list[StepProgress]:
        """Advance every running image by one denoising step, each size in its own batch.

        Before that, switch to what has been compiled; so call this now and then when nothing runs, too. Raises
        OutOfMemoryError; then discard all running images, as some may have advanced.
        """
        for size, bucket in self._execution.upgrade():
            if bucket is not None:
                self._measurements.take(bucket, None if size == self._nominal else size)
        self._pacer.wait()
        stepped = [progress for batch in self._execution.spaces.busy() for progress in batch.advance()]
        if stepped:
            self._pacer.mark()
        for each in stepped:
            if each.done == each.total:
                self._retire(each.slot)
        return stepped

    def latents(self, slot: int) -> Tensor:
        """The final latents [C, h, w], float32, of an image after its last step. Raises ValueError before that."""
        return self._final(slot)[1]

    @_on_device
    def finish(self, slot: int) -> Decoding:
        """Decode an image after its last step, and free its slot.

        Raises ValueError before that, and OutOfMemoryError, after which the image is still in its slot.
        """
        workspace, latents = self._final(slot)
        decoding = self._execution.with_room(lambda: workspace.decoder.start(latents))
        del self._finished_latents[slot]
        return decoding

    def discard(self, slot: int) -> None:
        for images in (self._begun, self._workspaces):
            if slot in images:
                images.pop(slot).batch.remove(slot)
                return
        if slot not in self._finished_latents:
            raise ValueError(f"slot {slot} is empty")
        del self._finished_latents[slot]

    def collect(self, decoding: object) -> Pixels:
        """Wait for what `finish` returned: RGB pixels, uint8 [height, width, 3]."""
        assert isinstance(decoding, Decoding)
        return decoding.wait()

    def encode(self, pixels: object, options: EngineOptions = AS_CONFIGURED) -> bytes:
        return codec.encode(np.asarray(pixels, np.uint8), self._config.output, options.format, options.quality)

    @_on_device
    def preview(self, slot: int) -> Decoding | None:
        """Colour the denoised latents that a running image's last step predicts.

        None before its first step, where the sampler does not predict them, and where no colours could be fitted.
        Raises ValueError for a slot without a running image, and OutOfMemoryError.
        """
        if slot not in self._workspaces:
            raise ValueError(f"slot {slot} holds no running image")
        latents = self._workspaces[slot].batch.estimate(slot)
        return None if latents is None else self._show(latents)

    def draw(self, preview: object) -> bytes:
        """A small JPEG of what `preview` returned, with a pixel per latent."""
        return codec.thumbnail(self.collect(preview))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Pixels:
        """Decode latents [C, h, w] to RGB pixels, and wait for them."""
        workspace = self._execution.spaces.of((latents.shape[1], latents.shape[2]))
        return workspace.decoder.start(latents.to(self._model.device)).wait()

    def dummy_run(self, bucket: int, size: Size | None = None) -> Callable[[], None]:
        """A function that runs one step of a bucket on placeholder images, of nominal size by default.

        It owns the buffers for another size, if the engine has none.
        """
        space = self._execution.spaces.of(self._nominal) if size is None else self._execution.space(size)
        return torch.no_grad()(partial(space.batch.dummy_run, bucket))

    def dummy_runs(self) -> list[tuple[Size, int]]:
        """The dummy runs of other sizes, as (size, bucket), that take no memory for good.

        These are the sizes used last, in buckets that images ran in or that have graphs. Where another size costs
        little, also one image of 2:1, as most sizes lie between that and the nominal one.
        """
        sizes = {size: space.batch.used for size, space in self._execution.spaces.latest() if space.batch.used}
        if self._execution.light:
            sizes.setdefault(self._wide, self._execution.shape.buckets[:1])
        sizes.pop(self._nominal, None)
        return [(size, bucket) for size, buckets in list(sizes.items())[:MAX_SIZES] for bucket in buckets]

    def pixels(self, size: Size) -> tuple[int, int]:
        return size[1] * self._model.latent_scale, size[0] * self._model.latent_scale

    def status(self) -> EngineStatus:
        return self._execution.status()

    def wait_until_compiled(self, seconds: float) -> bool:
        """With nothing running, wait until all is compiled; False if that takes longer."""
        deadline = time.monotonic() + seconds
        while not (done := self._execution.all_compiled()) and time.monotonic() < deadline:
            self.step()
            time.sleep(0.01)
        return done

    def synchronize(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)

    @property
    def _taken(self) -> tuple[Container[int], ...]:
        return self._begun, self._workspaces, self._finished_latents

    def _load(self, slot: int, draft: Draft) -> Workspace:
        text = self._text(draft.prompts)  # first, as it takes the device longest
        workspace = self._execution.spaces.of((draft.noise.shape[2], draft.noise.shape[3]))
        noise, schedule = upload(draft.noise, self._model.device), self._execution.schedule(draft.plan)
        workspace.batch.load(slot, JoiningImage(noise, text, schedule, draft.scales))
        return workspace

    def _show(self, latents: Tensor) -> Decoding | None:
        colours = self._execution.colours
        return None if colours is None else fetch(colours(latents))

    def _final(self, slot: int) -> tuple[Workspace, Tensor]:
        if slot not in self._finished_latents:
            raise ValueError(f"slot {slot} holds no image that has taken its last step")
        return self._finished_latents[slot]

    def _retire(self, slot: int) -> None:
        workspace = self._workspaces.pop(slot)
        self._finished_latents[slot] = (workspace, workspace.batch.final_latents(slot))
        workspace.batch.remove(slot)

    def _prompts(self, task: Task) -> tuple[Prompt, ...]:
        """The prompts of an image's rows, the unconditional one first."""
        tokens, positive = self._model.tokens, self._model.tokens.positive(task.text)
        return (tokens.negative(task.options.negative), positive) if self._execution.shape.rows == 2 else (positive,)

    def _text(self, prompts: tuple[tuple[int, ...], ...]) -> Tensor:
        """Keys and values of an image's rows [rows, 77, total]."""
        return torch.stack([self._execution.keys_values(prompt) for prompt in prompts])
