"""Images of one size that run together, each at its own step and with its own number of steps.

This is step-level continuous batching. The state of a running image is its history: its noise, and the noise that the
networks predicted at each step so far. The latents of its next step are one row of its sampler's matrix times that
history (`sampler.py`). So a step is the same arithmetic whatever the sampler, and images at different steps, of
different numbers of steps, share one batch and one CUDA graph.

Example: slot 0 runs image A, at step 7 of 20; slot 2 runs image B, which joins now with 30 steps. The next step runs
bucket 2, the smallest batch size that holds both. On the device it

1. gathers entries [0, 2]: each history, and row 7 of A's matrix and row 0 of B's; row times history gives the latents,
2. runs the networks on both, with A's time projection of its call 7 and B's of its call 0,
3. scatters: A's prediction goes to column 7 of A's history, B's to column 0 of B's, and both counters grow by one.

All three read the device's own counters and index tensors, and no number from Python. So one recorded graph serves
every later step of this bucket, whoever is in it. With three images in buckets of 1, 2 and 4, one entry is padding: it
points at an extra entry of the buffers that belongs to no image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from workers.engine.compiling import Seconds, Serving, Upgradable, always
from workers.engine.conditioning import TEXT_TOKENS
from workers.engine.contract import StepProgress
from workers.engine.denoiser import Predict, StepInputs
from workers.engine.graphs import Graphs, Work
from workers.engine.plan import DeviceSchedule, Scales, Size
from workers.engine.runtime import AnyModel
from workers.engine.streams import upload

_TRIAL_GUIDANCE = 2.0  # both rows count, and rounding errors are not multiplied by more


@dataclass(frozen=True, slots=True)
class JoiningImage:
    """An image to join, but for its hint: noise [noises, C, h, w], keys and values [rows, 77, total].

    The image begins with the first noise; the sampler draws the others at its steps.
    """

    noise: Tensor
    text: Tensor
    schedule: DeviceSchedule
    scales: Scales


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The shape of all batches of an engine: S slots, and the rows of an image."""

    slots: int
    rows: int  # 2 with guidance (unconditional, conditional), else 1
    buckets: tuple[int, ...]  # batch sizes, ascending, up to S


@dataclass(frozen=True, slots=True)
class _Buffers:
    """The inputs and outputs of a step, always at the same addresses, as a recorded graph requires.

    There is one entry per slot and one that belongs to no image, for padding and dummy runs. N is the largest number of
    model calls.
    """

    history: Tensor  # [S + 1, columns, C, h, w] float32: each call's noise prediction, then from column N the noises
    weights: Tensor  # [S + 1, N + 1, columns] float32: row k makes the latents of call k, the last row the final ones
    times: Tensor  # [S + 1, N + 1, total]: the time projections at each call
    scales: Tensor  # [S + 1, 3] float32, see `Scales`
    step: Tensor  # [S + 1] calls made
    hint: Tensor  # [S + 1, h, w, channels]: channels last, so that gathering needs no second copy
    text: Tensor  # [S + 1, rows, 77, total] keys and values of the UNet's layers, then of the ControlNet's
    chosen: dict[int, Tensor]  # bucket -> [bucket] the entries to run


class Batch:
    """Runs up to S images of one size, in parts that fit the buckets."""

    def __init__(self, model: AnyModel, shape: BatchShape, size: Size, predict: Predict, graphs: Graphs) -> None:
        self._model = model
        self._shape = shape
        self._size = size
        self.graphs = graphs
        # Recording runs the step, so only the entry of no image is chosen before it.
        self._steps = {
            bucket: Upgradable(graphs, bucket, predict, partial(self._step, bucket), partial(self._choose, bucket, ()))
            for bucket in shape.buckets
        }
        self._buckets = shape.buckets
        self._buffers = self._allocate()
        self._loaded: dict[int, DeviceSchedule] = {}  # by slot, of images without a hint so far
        self._running: dict[int, StepProgress] = {}  # by slot, as the host counts
        self._estimates: dict[int, Tensor | None] = {}  # by slot, as in its schedule
        self._chosen: dict[int, Sequence[int]] = {}  # bucket -> slots that the device was last given
        self._side_by_side: dict[int, slice | None] = {}  # bucket -> the chosen entries, if they can be read in place
        self._used: set[int] = set()  # buckets that images ran in

    def __len__(self) -> int:
        return len(self._loaded) + len(self._running)

    @property
    def size(self) -> int:
        """Bytes of device memory, without the graphs."""
        held = self._buffers
        return sum(each.nbytes for each in (held.history, held.weights, held.times, held.hint, held.text))

    @property
    def upgraded(self) -> int:
        """The number of buckets that run compiled networks."""
        return sum(step.upgraded for step in self._steps.values())

    @property
    def kept(self) -> int:
        """The number of buckets whose compiled networks were slower."""
        return sum(step.kept for step in self._steps.values())

    @property
    def used(self) -> tuple[int, ...]:
        """The buckets that images ran in or that have graphs: running them again takes no more memory."""
        return tuple(bucket for bucket in self._buckets if bucket in self._used or bucket in self.graphs)

    def plain_buckets(self) -> list[int]:
        """The buckets that images ran in without compiled networks."""
        return [bucket for bucket in self._used if not self._steps[bucket].upgraded]

    def load(self, slot: int, image: JoiningImage) -> None:
        """Write all of an image but its hint, which comes later, into the entry of a free slot."""
        buffers, first_noise, calls = self._buffers, self._model.plans.layout.calls, image.schedule.calls
        # Weights of later columns are zero, but zero times an infinity of the slot's last image would be NaN.
        buffers.history[slot].zero_()
        buffers.history[slot, first_noise : first_noise + len(image.noise)].copy_(image.noise, non_blocking=True)
        buffers.weights[slot, : calls + 1].copy_(image.schedule.weights)
        buffers.times[slot, :calls].copy_(image.schedule.times)
        for n, scale in enumerate(image.scales):
            buffers.scales[slot, n] = scale
        buffers.step[slot] = 0
        buffers.text[slot].copy_(image.text)
        self._loaded[slot] = image.schedule

    def admit(self, slot: int, hint: Tensor) -> None:
        """Let a loaded image with its hint embedding [channels, h, w] take part from the next step on."""
        self._buffers.hint[slot].copy_(hint.permute(1, 2, 0))
        schedule = self._loaded.pop(slot)
        self._running[slot] = StepProgress(slot, 0, schedule.calls)
        self._estimates[slot] = schedule.estimates

    def remove(self, slot: int) -> None:
        """Forget an image, loaded or running."""
        if self._loaded.pop(slot, None) is None:
            del self._running[slot], self._estimates[slot]

    def advance(self) -> list[StepProgress]:
        """Take one step with all images; return the progress of each.

        Raises torch.OutOfMemoryError when memory does not even suffice for one image at a time.
        """
        waiting = list(self._running)
        while waiting:
            bucket = next((b for b in self._buckets if b >= len(waiting)), self._buckets[-1])
            part = waiting[:bucket]
            try:
                self._run(part, bucket)
            except torch.OutOfMemoryError as error:
                self._do_without(bucket, error)
            else:
                self._used.add(bucket)
                waiting = waiting[bucket:]
        stepped = [replace(each, done=each.done + 1) for each in self._running.values()]
        self._running = {each.slot: each for each in stepped}
        return stepped

    def final_latents(self, slot: int) -> Tensor:
        """The latents [C, h, w] of an image after its last call."""
        weights = self._buffers.weights[slot, self._running[slot].total]
        latents: Tensor = torch.tensordot(weights, self._buffers.history[slot], dims=1)
        return latents

    def estimate(self, slot: int) -> Tensor | None:
        """The denoised latents [C, h, w] that an image's last call predicts.

        None before its first call, and where the sampler's schedule is unknown.
        """
        estimates, done = self._estimates[slot], self._running[slot].done
        if estimates is None or not done:
            return None
        latents: Tensor = torch.tensordot(estimates[done - 1], self._buffers.history[slot], dims=1)
        return latents

    def prepare(self, bucket: int) -> None:
        """Record a bucket's step, if possible, before it is needed."""
        self._steps[bucket].prepare()

    def upgrade(self, bucket: int, predict: Predict, times: Tensor, serving: Serving = always) -> Seconds:
        """Run a bucket with other networks from the next step on, if they agree with the present and are not slower.

        `times` [N, total] are time projections for the comparison. Raises what `Upgradable.offer` does.
        """
        inputs, dtype = self._random_inputs(bucket, times), self._model.rounding_dtype
        return self._steps[bucket].offer(predict, lambda networks: networks(inputs), dtype, serving)

    def dummy_run(self, bucket: int) -> None:
        """Run one step of a bucket on the entry of no image, to warm up and to time it."""
        self._run((), bucket)

    def try_out(self, bucket: int, predict: Predict) -> None:
        """Run networks on a bucket's shapes and drop the result. Safe from any thread, beside any step."""
        predict(self._padding(bucket))

    def _run(self, slots: Sequence[int], bucket: int) -> None:
        def use(step: Work) -> None:
            self._choose(bucket, slots)
            step()

        self._steps[bucket].run(use, real=bool(slots))

    def _choose(self, bucket: int, slots: Sequence[int]) -> None:
        if self._chosen.get(bucket) != slots:
            entries = [*slots, *[self._shape.slots] * (bucket - len(slots))]
            self._buffers.chosen[bucket].copy_(upload(torch.tensor(entries), self._model.device))
            self._chosen[bucket] = slots
            self._side_by_side[bucket] = self._in_place(entries)

    def _do_without(self, bucket: int, error: torch.OutOfMemoryError) -> None:
        """Free memory, or else run smaller buckets from now on. Raises the error when there is no smaller one."""
        if self.graphs.make_room():
            return
        smaller = tuple(each for each in self._buckets if each < bucket)
        if not smaller:
            raise error
        self._buckets = smaller
        self.graphs.fallbacks.note("step: out of memory", f"{self._size}: batches of at most {smaller[-1]} from now on")

    def _step(self, bucket: int, predict: Predict) -> None:
        """One step of the chosen entries. The host takes no part: this is what a graph records."""
        chosen = self._buffers.chosen[bucket]
        self._scatter(chosen, predict(self._gather(chosen, self._side_by_side.get(bucket))))

    def _padding(self, bucket: int) -> StepInputs:
        return self._gather(torch.full((bucket,), self._shape.slots, device=self._model.device))

    def _random_inputs(self, bucket: int, times: Tensor) -> StepInputs:
        """Inputs of a bucket's step as they may occur: noise, at timesteps spread over the schedule."""
        inputs, generator = self._padding(bucket), torch.Generator(self._model.device).manual_seed(bucket)
        for tensor in (inputs.latents, inputs.text, inputs.hint):
            tensor.normal_(generator=generator)
        inputs.times.copy_(times[[n * len(times) // bucket for n in range(bucket)]])
        inputs.guidance_scale.fill_(_TRIAL_GUIDANCE)
        return inputs

    def _in_place(self, entries: Sequence[int]) -> slice | None:
        """The entries as a slice, if they are neighbours and the host takes part in each step.

        All but the networks of a step of the small model took 0.31 ms with copies of history, text and hint, and takes
        0.08 ms without.
        """
        if self._model.device.type != "cpu" or self.graphs.recorded:
            return None
        first, end = entries[0], entries[0] + len(entries)
        return slice(first, end) if list(entries) == [*range(first, end)] else None

    def _gather(self, chosen: Tensor, in_place: slice | None = None) -> StepInputs:
        """The inputs of the chosen entries; with `in_place` parts of the buffers, which nothing may change."""
        buffers, dtype, rows = self._buffers, self._model.dtype, chosen if in_place is None else in_place
        step = buffers.step[rows]
        history, weights = buffers.history[rows], buffers.weights[chosen, step]
        latents = torch.bmm(weights[:, None], history.flatten(2)).view(-1, *history.shape[2:])
        guidance, control, inverse_temperature = buffers.scales[rows].unbind(1)
        return StepInputs(
            latents.to(dtype, memory_format=torch.channels_last),
            buffers.times[chosen, step],
            buffers.text[rows],
            buffers.hint[rows],
            control.to(dtype),
            guidance,
            inverse_temperature.to(dtype),
        )

    def _scatter(self, chosen: Tensor, noise: Tensor) -> None:
        buffers = self._buffers
        step = buffers.step[chosen]
        buffers.history.index_put_((chosen, step), noise)
        # The counter last: a step that fails before this line can be repeated.
        buffers.step.index_put_((chosen,), step + 1)
        buffers.step[self._shape.slots :].zero_()

    def _allocate(self) -> _Buffers:
        model, shape = self._model, self._shape
        entries, layout = shape.slots + 1, model.plans.layout

        def zeros(*sizes: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=model.device)

        return _Buffers(
            history=zeros(entries, layout.columns, model.latent_channels, *self._size, dtype=torch.float32),
            weights=zeros(entries, layout.calls + 1, layout.columns, dtype=torch.float32),
            # One more than are used: the compiler's thread may read the padding's counter just before it is zeroed.
            times=zeros(entries, layout.calls + 1, model.time_width, dtype=model.dtype),
            scales=torch.ones(entries, len(Scales._fields), device=model.device),
            step=zeros(entries, dtype=torch.int64),
            hint=zeros(entries, *self._size, model.hint_channels, dtype=model.dtype),
            text=zeros(entries, shape.rows, TEXT_TOKENS, model.text.width, dtype=model.dtype),
            chosen={b: torch.full((b,), shape.slots, device=model.device) for b in shape.buckets},
        )
