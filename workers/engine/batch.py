"""Pictures of one size that run together, each at its own step of its own number of steps.

The state of a running picture is its history: every noise prediction so far, and its noise. The latents of its next
call are a row of the sampler's matrix times that history (`sampler.py`), so a step needs to know no sampler: each
picture brings its own matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from workers.engine.conditioning import TEXT_TOKENS
from workers.engine.contract import Stepped
from workers.engine.denoiser import Moment, Predict
from workers.engine.graphs import Graphs, Work
from workers.engine.plan import Placed, Scales
from workers.engine.runtime import AnyModel
from workers.engine.streams import upload
from workers.engine.takeover import Place

_TRIAL_GUIDANCE = 2.0  # such that both rows count, and rounding errors are not multiplied by more
Size = tuple[int, int]  # height and width of the latents


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A picture to join: noise [noises, 4, h, w], hint embedding [channels, h, w], keys and values [rows, 77, total].

    The first noise is what the picture begins with, the others are what the sampler draws at its steps.
    """

    noise: Tensor
    hint: Tensor
    text: Tensor
    plan: Placed
    scales: Scales


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all pictures of an engine have in common: their greatest number S, and how many rows each has."""

    slots: int
    rows: int  # without guidance the unconditional one is left out
    buckets: tuple[int, ...]  # the batch sizes that are run, ascending, up to S


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What the step reads and writes. They stay where they are, so that a step can be recorded and replayed.

    There is one entry a slot, and one more that is nobody's: it fills up a bucket, and is run for rehearsal. With N
    model calls at most, and 1 row a picture or 2 under guidance (unconditional, conditional):
    """

    history: Tensor  # [S + 1, columns, 4, h, w] float32: each call's noise prediction, and from N on the noises
    weights: Tensor  # [S + 1, N + 1, columns] float32: of these, for each call's latents and the final ones
    times: Tensor  # [S + 1, N, total]: the time projections at each call
    scales: Tensor  # [S + 1, 3] float32, see `Scales`
    step: Tensor  # [S + 1] calls made
    hint: Tensor  # [S + 1, h, w, channels]: as the channels-last layout has it, so that gathering it is all
    text: Tensor  # [S + 1, rows, 77, total] keys and values of the UNet's layers, then of the ControlNet's
    chosen: dict[int, Tensor]  # bucket -> [bucket] the entries that it runs


class Batch:
    """Runs up to S pictures of one size, in parts that fit the buckets."""

    def __init__(self, model: AnyModel, recipe: Recipe, size: Size, predict: Predict, graphs: Graphs) -> None:
        self._model = model
        self._recipe = recipe
        self._size = size
        self.graphs = graphs
        # Recording runs the step: of nobody's entry then, which is as good as new after it.
        self._places = {
            bucket: Place(graphs, bucket, predict, partial(self._step, bucket), partial(self._choose, bucket, ()))
            for bucket in recipe.buckets
        }
        self._buckets = recipe.buckets
        self._buffers = self._allocate()
        self._running: dict[int, Stepped] = {}  # by slot, as the host knows it
        self._estimates: dict[int, Tensor | None] = {}  # by slot, as in its plan
        self._chosen: dict[int, Sequence[int]] = {}  # bucket -> slots, as the device was told
        self._used: set[int] = set()  # buckets that images ran in

    def __len__(self) -> int:
        return len(self._running)

    @property
    def size(self) -> int:
        """Bytes of device memory, without the graphs."""
        held = self._buffers
        return sum(each.nbytes for each in (held.history, held.weights, held.times, held.hint, held.text))

    @property
    def upgraded(self) -> int:
        """How many buckets run compiled networks."""
        return sum(place.upgraded for place in self._places.values())

    @property
    def used(self) -> tuple[int, ...]:
        """The buckets that images ran in or that have graphs: to run them once more takes no more memory."""
        return tuple(bucket for bucket in self._buckets if bucket in self._used or bucket in self.graphs)

    def admit(self, slot: int, newcomer: Newcomer) -> None:
        """Let a picture take part from the next step on."""
        buffers, first_noise, calls = self._buffers, self._model.plans.extent.calls, newcomer.plan.calls
        # What is not there yet is weighed with zero, but zero times a leftover infinity would not be zero.
        buffers.history[slot].zero_()
        buffers.history[slot, first_noise : first_noise + len(newcomer.noise)].copy_(newcomer.noise, non_blocking=True)
        buffers.weights[slot, : calls + 1].copy_(newcomer.plan.weights)
        buffers.times[slot, :calls].copy_(newcomer.plan.times)
        for n, scale in enumerate(newcomer.scales):
            buffers.scales[slot, n] = scale
        buffers.step[slot] = 0
        buffers.hint[slot].copy_(newcomer.hint.permute(1, 2, 0))
        buffers.text[slot].copy_(newcomer.text)
        self._running[slot] = Stepped(slot, 0, calls)
        self._estimates[slot] = newcomer.plan.estimates

    def remove(self, slot: int) -> None:
        """Let a picture go."""
        del self._running[slot], self._estimates[slot]

    def advance(self) -> list[Stepped]:
        """Take one step with all pictures; return how far each is, of its own number of calls.

        Raises torch.OutOfMemoryError when there is not enough memory for one; with enough for fewer, these are run.
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
        """The latents [4, h, w] of a picture that has made all its calls."""
        weights = self._buffers.weights[slot, self._running[slot].total]
        latents: Tensor = torch.tensordot(weights, self._buffers.history[slot], dims=1)
        return latents

    def estimate(self, slot: int) -> Tensor | None:
        """The latents [4, h, w] that a picture's last call points at. None before its first, and where the sampler
        does not tell."""
        estimates, done = self._estimates[slot], self._running[slot].done
        if estimates is None or not done:
            return None
        latents: Tensor = torch.tensordot(estimates[done - 1], self._buffers.history[slot], dims=1)
        return latents

    def prepare(self, bucket: int) -> None:
        """Record a bucket's step, if that can be done, before it is needed."""
        self._places[bucket].prepare()

    def upgrade(self, bucket: int, predict: Predict, times: Tensor) -> None:
        """Run a bucket with other networks from the next step on, if they agree with those that it runs with.

        `times` [N, total] are time projections to try them with. Raises what `Place.offer` does.
        """
        moment = self._invented(bucket, times)
        self._places[bucket].offer(predict, lambda networks: networks(moment), self._model.dtype)

    def rehearse(self, bucket: int) -> None:
        """Take a step of a bucket without pictures in it: it takes as long as any, and nothing comes of it."""
        self._run((), bucket)

    def try_out(self, bucket: int, predict: Predict) -> None:
        """Run networks on a bucket's shapes, and drop what they predict; from any thread, whatever else runs."""
        predict(self._of_nobody(bucket))

    def _run(self, slots: Sequence[int], bucket: int) -> None:
        def use(step: Work) -> None:
            self._choose(bucket, slots)
            step()

        self._places[bucket].run(use, real=bool(slots))

    def _choose(self, bucket: int, slots: Sequence[int]) -> None:
        if self._chosen.get(bucket) != slots:
            entries = [*slots, *[self._recipe.slots] * (bucket - len(slots))]
            self._buffers.chosen[bucket].copy_(upload(torch.tensor(entries), self._model.device))
            self._chosen[bucket] = slots

    def _do_without(self, bucket: int, error: torch.OutOfMemoryError) -> None:
        """Make room, or else run smaller parts from now on. Raises the error when there are none."""
        if self.graphs.make_room():
            return
        smaller = tuple(each for each in self._buckets if each < bucket)
        if not smaller:
            raise error
        self._buckets = smaller
        self.graphs.fallbacks.note("step: out of memory", f"{self._size}: from now on {smaller[-1]} at a time")

    def _step(self, bucket: int, predict: Predict) -> None:
        """One step of the chosen entries, on the device alone."""
        chosen = self._buffers.chosen[bucket]
        self._scatter(chosen, predict(self._gather(chosen)))

    def _of_nobody(self, bucket: int) -> Moment:
        return self._gather(torch.full((bucket,), self._recipe.slots, device=self._model.device))

    def _invented(self, bucket: int, times: Tensor) -> Moment:
        """What a step of a bucket may look like, laid out like any: noise, at timesteps all along the way."""
        moment, generator = self._of_nobody(bucket), torch.Generator(self._model.device).manual_seed(bucket)
        for tensor in (moment.latents, moment.text, moment.hint):
            tensor.normal_(generator=generator)
        moment.times.copy_(times[[n * len(times) // bucket for n in range(bucket)]])
        moment.guidance_scale.fill_(_TRIAL_GUIDANCE)
        return moment

    def _gather(self, chosen: Tensor) -> Moment:
        buffers, dtype = self._buffers, self._model.dtype
        step = buffers.step[chosen]
        history, weights = buffers.history[chosen], buffers.weights[chosen, step]
        latents = torch.bmm(weights[:, None], history.flatten(2)).view(-1, *history.shape[2:])
        guidance, control, coldness = buffers.scales[chosen].unbind(1)
        return Moment(
            latents.to(dtype, memory_format=torch.channels_last),
            buffers.times[chosen, step],
            buffers.text[chosen],
            buffers.hint[chosen],
            control.to(dtype),
            guidance,
            coldness.to(dtype),
        )

    def _scatter(self, chosen: Tensor, noise: Tensor) -> None:
        buffers = self._buffers
        step = buffers.step[chosen]
        buffers.history.index_put_((chosen, step), noise)
        # Last: until here, a step that was broken off can be taken again.
        buffers.step.index_put_((chosen,), step + 1)
        buffers.step[self._recipe.slots :].zero_()

    def _allocate(self) -> _Buffers:
        model, recipe = self._model, self._recipe
        entries, extent = recipe.slots + 1, model.plans.extent

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=model.device)

        return _Buffers(
            history=zeros(entries, extent.columns, 4, *self._size, dtype=torch.float32),
            weights=zeros(entries, extent.calls + 1, extent.columns, dtype=torch.float32),
            times=zeros(entries, extent.calls, model.time_width, dtype=model.dtype),
            scales=torch.ones(entries, len(Scales._fields), device=model.device),
            step=zeros(entries, dtype=torch.int64),
            hint=zeros(entries, *self._size, model.hint_channels, dtype=model.dtype),
            text=zeros(entries, recipe.rows, TEXT_TOKENS, model.text.width, dtype=model.dtype),
            chosen={b: torch.full((b,), recipe.slots, device=model.device) for b in recipe.buckets},
        )
