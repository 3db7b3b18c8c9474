"""Pictures of one size that run together, each at its own step.

The state of a running picture is its history: its noise and every noise prediction so far. The latents of its next
call are a row of the sampler's matrix times that history (`sampler.py`), so a step needs to know no sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.conditioning import TEXT_TOKENS
from workers.engine.config import rows_of
from workers.engine.denoiser import Moment, Predict
from workers.engine.graphs import Graphs, Work
from workers.engine.runtime import AnyModel
from workers.engine.streams import upload

Size = tuple[int, int]  # height and width of the latents


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A picture to join: noise [noises, 4, h, w], hint embedding [channels, h, w], keys and values [rows, 77, total].

    The first noise is what the picture begins with, the others are what the sampler draws at its steps.
    """

    noise: Tensor
    hint: Tensor
    text: Tensor


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all pictures of an engine have in common: their greatest number S, and how they are guided."""

    slots: int
    guidance_scale: float
    control_scale: float
    buckets: tuple[int, ...]  # the batch sizes that are run, ascending, up to S

    @property
    def rows(self) -> int:
        """Rows of a picture: as in diffusers, at a scale of 1 and below the unconditional one is left out."""
        return rows_of(self.guidance_scale)


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What the step reads and writes. They stay where they are, so that a step can be recorded and replayed.

    There is one entry a slot, and one more that is nobody's: it fills up a bucket, and is run for rehearsal. With N
    model calls, and 1 row a picture or 2 under guidance (unconditional, conditional):
    """

    history: Tensor  # [S + 1, noises + N, 4, h, w] float32: the noises, then each call's noise prediction
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
        self._predict = dict.fromkeys(recipe.buckets, predict)
        self.graphs = graphs
        self._upgraded: set[int] = set()
        self._buckets = recipe.buckets
        self._buffers = self._allocate()
        self._guidance_scale = torch.tensor(recipe.guidance_scale, device=model.device)
        self._control_scale = torch.tensor(recipe.control_scale, device=model.device, dtype=model.dtype)
        self._done: dict[int, int] = {}  # slot -> calls made, as the host knows it
        self._chosen: dict[int, Sequence[int]] = {}  # bucket -> slots, as the device was told

    def __len__(self) -> int:
        return len(self._done)

    @property
    def size(self) -> int:
        """Bytes of device memory, without the graphs."""
        buffers = self._buffers
        return sum(tensor.nbytes for tensor in (buffers.history, buffers.hint, buffers.text))

    @property
    def upgraded(self) -> int:
        """How many buckets run compiled networks."""
        return len(self._upgraded)

    def admit(self, slot: int, newcomer: Newcomer) -> None:
        """Let a picture take part from the next step on."""
        buffers = self._buffers
        # What is not there yet is weighed with zero, but zero times a leftover infinity would not be zero.
        buffers.history[slot].zero_()
        buffers.history[slot, : len(newcomer.noise)].copy_(newcomer.noise, non_blocking=True)
        buffers.step[slot] = 0
        buffers.hint[slot].copy_(newcomer.hint.permute(1, 2, 0))
        buffers.text[slot].copy_(newcomer.text)
        self._done[slot] = 0

    def remove(self, slot: int) -> None:
        """Let a picture go."""
        del self._done[slot]

    def advance(self) -> list[tuple[int, int]]:
        """Take one step with all pictures; return (slot, calls made so far) of each.

        Raises torch.OutOfMemoryError when there is not enough memory for one; with enough for fewer, these are run.
        """
        waiting = list(self._done)
        while waiting:
            bucket = next((b for b in self._buckets if b >= len(waiting)), self._buckets[-1])
            part = waiting[:bucket]
            try:
                self._run(part, bucket)
            except torch.OutOfMemoryError as error:
                self._do_without(bucket, error)
            else:
                waiting = waiting[bucket:]
        self._done = {slot: done + 1 for slot, done in self._done.items()}
        return list(self._done.items())

    def final_latents(self, slot: int) -> Tensor:
        """The latents [4, h, w] of a picture that has made all its calls."""
        latents: Tensor = torch.tensordot(self._model.weights[-1], self._buffers.history[slot], dims=1)
        return latents

    def prepare(self, bucket: int) -> None:
        """Record a bucket's step, if that can be done, before it is needed."""
        self._graph(bucket)

    def upgrade(self, bucket: int, predict: Predict) -> None:
        """Run a bucket with other networks from the next step on."""
        self._predict[bucket] = predict
        self._upgraded.add(bucket)
        self.graphs.drop(bucket)
        self._graph(bucket)

    def rehearse(self, bucket: int) -> None:
        """Take a step of a bucket without pictures in it: it takes as long as any, and nothing comes of it."""
        self._run((), bucket)

    def try_out(self, bucket: int, predict: Predict) -> None:
        """Run networks on a bucket's shapes, and drop what they predict; from any thread, whatever else runs."""
        nobody = torch.full((bucket,), self._recipe.slots, device=self._model.device)
        predict(self._gather(nobody))

    def _run(self, slots: Sequence[int], bucket: int) -> None:
        graph = self._graph(bucket)
        self._choose(bucket, slots)
        graph()

    def _graph(self, bucket: int) -> Work:
        # Recording runs the step: of nobody's entry then, which is as good as new after it.
        return self.graphs.of(bucket, lambda: self._step(bucket), rehearsal=lambda: self._choose(bucket, ()))

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

    def _step(self, bucket: int) -> None:
        """One step of the chosen entries, on the device alone."""
        chosen = self._buffers.chosen[bucket]
        self._scatter(chosen, self._predict[bucket](self._gather(chosen)))

    def _gather(self, chosen: Tensor) -> Moment:
        buffers, model = self._buffers, self._model
        step = buffers.step[chosen]
        history = buffers.history[chosen]
        latents = torch.bmm(model.weights[step][:, None], history.flatten(2)).view(-1, *history.shape[2:])
        return Moment(
            latents.to(model.dtype, memory_format=torch.channels_last),
            model.times[step],
            buffers.text[chosen],
            buffers.hint[chosen],
            self._control_scale,
            self._guidance_scale,
        )

    def _scatter(self, chosen: Tensor, noise: Tensor) -> None:
        buffers = self._buffers
        step = buffers.step[chosen]
        buffers.history.index_put_((chosen, step + self._model.sampler.noises), noise)
        # Last: until here, a step that was broken off can be taken again.
        buffers.step.index_put_((chosen,), step + 1)
        buffers.step[self._recipe.slots :].zero_()

    def _allocate(self) -> _Buffers:
        model, recipe = self._model, self._recipe
        entries = recipe.slots + 1

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=model.device)

        return _Buffers(
            history=zeros(entries, model.sampler.weights.shape[1], 4, *self._size, dtype=torch.float32),
            step=zeros(entries, dtype=torch.int64),
            hint=zeros(entries, *self._size, model.hint_channels, dtype=model.dtype),
            text=zeros(entries, recipe.rows, TEXT_TOKENS, model.text.width, dtype=model.dtype),
            chosen={b: torch.full((b,), recipe.slots, device=model.device) for b in recipe.buckets},
        )
