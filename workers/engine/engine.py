"""The diffusion engine: slots of running pictures that share every denoising step.

A picture may join at any step boundary and leave at any other, because the networks take each sample's own timestep.
The sampler's arithmetic is a matrix (`sampler.py`), the running state lies in batches by size (`batch.py`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from scheduler.messages import Costs
from workers.engine import codec
from workers.engine.batch import Newcomer, Size
from workers.engine.budget import DecodeBudget
from workers.engine.codec import Pixels
from workers.engine.conditioning import Prompt
from workers.engine.config import EngineConfig
from workers.engine.contract import (
    AS_CONFIGURED,
    MAX_SIZES,
    Condition,
    Options,
    OutOfMemoryError,
    Stepped,
    Task,
    resolved,
)
from workers.engine.denoiser import coldest
from workers.engine.graphs import Recorder
from workers.engine.header import output_size, read_header
from workers.engine.measure import Measurements
from workers.engine.plan import Plan, Scales, draw, scales_of, warnings_of
from workers.engine.runtime import AnyModel
from workers.engine.speed import Workshop
from workers.engine.startup import timed
from workers.engine.streams import Decoding, Pace, fetch, upload
from workers.engine.trials import Trials
from workers.engine.workspace import Workspace
from workers.memory import memory_limit

P = ParamSpec("P")
T = TypeVar("T")


def _on_device(
    method: Callable[Concatenate["DiffusionEngine", P], T],
) -> Callable[Concatenate["DiffusionEngine", P], T]:
    """A method that gives the device work: not while torch's compiler times kernels on it.

    It tells in the contract's words that memory is lacking; the rest of torch's message is advice to programmers.
    """

    @wraps(method)
    def run(engine: "DiffusionEngine", /, *args: P.args, **kwargs: P.kwargs) -> T:
        with torch.no_grad(), engine.turn():
            try:
                return method(engine, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                raise OutOfMemoryError(str(error).partition(". ")[0]) from error

    return run


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A picture that is ready for the device: tokens of each row, noise [noises, 4, h, w] float32, edges uint8
    [8h, 8w], its own of sampler and scales, and what its client should know."""

    prompts: tuple[tuple[int, ...], ...]
    noise: Tensor
    edges: Pixels
    plan: Plan
    scales: Scales
    warnings: tuple[str, ...] = ()


class DiffusionEngine:
    """Stable Diffusion with a ControlNet on one device; implements `contract.Engine`.

    `recorder` stands in for the device's own. `trials` are told what may end this process.
    """

    def __init__(
        self, config: EngineConfig, model: AnyModel, recorder: Recorder | None = None, trials: Trials | None = None
    ) -> None:
        self.slots = config.slots
        self._config = config
        self._model = model
        self._budget = DecodeBudget(config.decode_budget(memory_limit()))
        self._workshop = Workshop(config, model, recorder, trials)
        self.turn = self._workshop.turns.take
        self._homes: dict[int, Workspace] = {}  # slot -> where it runs
        self._finals: dict[int, tuple[Workspace, Tensor]] = {}  # slot -> final latents that wait for `finish`
        self._pace = Pace(model.device)
        side = config.size.short_side
        self._coldest = coldest(model.dtype)
        self._nominal: Size = (side // model.latent_scale, side // model.latent_scale)
        width, height = output_size(2 * side, side, config.size)
        self._wide: Size = (height // model.latent_scale, width // model.latent_scale)
        self._measurements = Measurements(self, side, self._workshop.recipe.buckets)

    @property
    def calls(self) -> int:
        """Denoising steps of a picture that asks for no number of its own."""
        return self._model.plans.usual.calls

    @torch.no_grad()
    def warm_up(self) -> Costs:
        """Record and run everything once, measure it, and begin to compile."""
        with timed("buffers made and graphs recorded"):
            self._workshop.set_up()
        with timed("costs measured"):
            self._measurements.take_all()
        with timed("colours of previews fitted to the VAE"):
            if (shown := self._show(torch.zeros(4, *self._nominal, device=self._model.device))) is not None:
                shown.wait()
        self._workshop.start_compiling()
        return self.costs()

    def costs(self) -> Costs:
        """Of the nominal picture, the square of `size.short_side`; a bucket's step as it is since it was compiled."""
        return self._measurements.costs()

    @_on_device
    def measure_again(self, is_idle: Callable[[], bool]) -> bool:
        """Run placeholder images again, until somebody needs the engine."""
        return self._measurements.refresh(is_idle)

    def prepare(self, task: Task) -> Prepared:
        """Decode, resize, find edges, tokenise, and draw the noise.

        All on the CPU: so a seed means the same on every device. Raises BadPictureError and BadOptionError.
        """
        options, chosen = task.options, resolved(task.options, self._config)
        plan, scales = self._model.plans.of(chosen.steps), scales_of(chosen, self._config, self._coldest)
        header = read_header(task.picture)
        width, height = size = output_size(header.width, header.height, self._config.size)
        with self._budget.spend_on(header, size):
            pixels = codec.decode_to(task.picture, width, height)
        edges = codec.grey(pixels) if options.control_image == "edges" else codec.edges(pixels, chosen.canny)
        shape = (4, height // self._model.latent_scale, width // self._model.latent_scale)
        noise = draw(task.seed, shape, plan.matrix.noises)
        prompts = self._prompts(task)
        warnings = (*(prompt.warning for prompt in prompts), *warnings_of(options, scales, edges))
        return Prepared(
            tuple(prompt.tokens for prompt in prompts), noise, edges, plan, scales, tuple(filter(None, warnings))
        )

    @_on_device
    def admit(self, slot: int, prepared: Prepared) -> None:
        """Put a prepared picture into a free slot.

        Raises ValueError when the slot is taken or not there, and OutOfMemoryError.
        """
        if not 0 <= slot < self.slots or slot in self._homes or slot in self._finals:
            raise ValueError(f"slot {slot} is not free")
        self._homes[slot] = self._workshop.with_room(lambda: self._place(slot, prepared))

    @_on_device
    def step(self) -> list[Stepped]:
        """Advance every running picture by one denoising step, each size in a batch of its own.

        Before that, take over what has been compiled; do so now and then when nothing runs, too. Raises
        OutOfMemoryError: then all that runs is to be discarded, as some of it may have advanced.
        """
        for size, bucket in self._workshop.upgrade():
            if bucket is not None:
                self._measurements.take(bucket, None if size == self._nominal else size)
        self._pace.wait()
        stepped = [progress for batch in self._workshop.spaces.busy() for progress in batch.advance()]
        self._pace.mark()
        for picture in stepped:
            if picture.done == picture.total:
                self._retire(picture.slot)
        return stepped

    def latents(self, slot: int) -> Tensor:
        """The final latents [4, h, w], float32, of a picture that took its last step. Raises ValueError before that."""
        return self._final(slot)[1]

    @_on_device
    def finish(self, slot: int) -> Decoding:
        """Have a picture that took its last step decoded, and free its slot.

        Raises ValueError before that, and OutOfMemoryError: then it is still there.
        """
        workspace, latents = self._final(slot)
        decoding = self._workshop.with_room(lambda: workspace.decoder.start(latents))
        del self._finals[slot]
        return decoding

    def discard(self, slot: int) -> None:
        """Drop the picture in a slot. Raises ValueError when there is none."""
        if slot in self._homes:
            self._homes.pop(slot).batch.remove(slot)
        elif slot in self._finals:
            del self._finals[slot]
        else:
            raise ValueError(f"slot {slot} is empty")

    def collect(self, decoding: object) -> Pixels:
        """RGB pixels uint8 [height, width, 3] of what `finish` returned, when the device is done with them."""
        assert isinstance(decoding, Decoding)
        return decoding.wait()

    def encode(self, pixels: object, options: Options = AS_CONFIGURED) -> bytes:
        """The picture file that the client gets."""
        return codec.encode(np.asarray(pixels, np.uint8), self._config.output, options.format, options.quality)

    @_on_device
    def preview(self, slot: int) -> Decoding | None:
        """Have the device colour the latents that a running picture's last step points at.

        None before its first, where the sampler does not tell, and where no colours were found. Raises ValueError
        when it does not run, and OutOfMemoryError.
        """
        if slot not in self._homes:
            raise ValueError(f"slot {slot} holds no picture that runs")
        latents = self._homes[slot].batch.estimate(slot)
        return None if latents is None else self._show(latents)

    def draw(self, preview: object) -> bytes:
        """A small JPEG, a pixel for each of the latents, of what `preview` returned."""
        return codec.thumbnail(self.collect(preview))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Pixels:
        """RGB pixels of latents [4, h, w], waited for."""
        workspace = self._workshop.spaces.of((latents.shape[1], latents.shape[2]))
        return workspace.decoder.start(latents.to(self._model.device)).wait()

    def rehearsal(self, bucket: int, size: Size | None = None) -> Callable[[], None]:
        """What takes a step of so many images of a size, nominal by default, that there are not.

        Where the engine has no buffers for the other size, they are made now, and dropped with this.
        """
        space = self._workshop.spaces.of(self._nominal) if size is None else self._workshop.space(size)
        return torch.no_grad()(partial(space.batch.rehearse, bucket))

    def rehearsable(self) -> list[tuple[Size, int]]:
        """Steps of other sizes, as (size, bucket), that can be rehearsed at no lasting cost of memory.

        They are those of the sizes used last, in buckets that images ran in or that have graphs. Where another size
        costs little, it is a step of one image of 2:1 as well: most sizes lie between that and the nominal one.
        """
        sizes = {size: space.batch.used for size, space in self._workshop.spaces.latest() if space.batch.used}
        if self._workshop.light:
            sizes.setdefault(self._wide, self._workshop.recipe.buckets[:1])
        sizes.pop(self._nominal, None)
        return [(size, bucket) for size, buckets in list(sizes.items())[:MAX_SIZES] for bucket in buckets]

    def pixels(self, size: Size) -> tuple[int, int]:
        """Width and height of an image whose latents have a size."""
        return size[1] * self._model.latent_scale, size[0] * self._model.latent_scale

    def condition(self) -> Condition:
        """Kernels, graphs and fallbacks."""
        return self._workshop.condition()

    def settle(self, seconds: float) -> bool:
        """Wait until the engine is as fast as it gets, with nothing running; whether it was before time was up."""
        deadline = time.monotonic() + seconds
        while not (settled := self._workshop.settled()) and time.monotonic() < deadline:
            self.step()
            time.sleep(0.01)
        return settled

    def synchronize(self) -> None:
        """Wait until the device has done all it was told."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)

    def _place(self, slot: int, prepared: Prepared) -> Workspace:
        workspace = self._workshop.spaces.of((prepared.noise.shape[2], prepared.noise.shape[3]))
        noise = upload(prepared.noise, self._model.device)
        hint, text = self._hint(prepared.edges), self._text(prepared.prompts)
        plan = self._workshop.placed(prepared.plan)
        workspace.batch.admit(slot, Newcomer(noise, hint, text, plan, prepared.scales))
        return workspace

    def _show(self, latents: Tensor) -> Decoding | None:
        colours = self._workshop.colours
        return None if colours is None else fetch(colours(latents))

    def _final(self, slot: int) -> tuple[Workspace, Tensor]:
        if slot not in self._finals:
            raise ValueError(f"slot {slot} holds no picture that took its last step")
        return self._finals[slot]

    def _retire(self, slot: int) -> None:
        workspace = self._homes.pop(slot)
        self._finals[slot] = (workspace, workspace.batch.final_latents(slot))
        workspace.batch.remove(slot)

    def _hint(self, edges: Pixels) -> Tensor:
        picture = upload(torch.from_numpy(edges), self._model.device).to(self._model.dtype) / 255
        return self._model.hint(picture)

    def _prompts(self, task: Task) -> tuple[Prompt, ...]:
        """Prompts of an image's rows; the unconditional row comes first."""
        tokens, positive = self._model.tokens, self._model.tokens.positive(task.text)
        return (tokens.negative(task.options.negative), positive) if self._workshop.recipe.rows == 2 else (positive,)

    def _text(self, prompts: tuple[tuple[int, ...], ...]) -> Tensor:
        """Keys and values of an image's rows [rows, 77, total]."""
        return torch.stack([self._workshop.keys_values(prompt) for prompt in prompts])
