"""Pictures of one size that run together, each at its own step.

The state of a running picture is its history: the noise and every noise prediction so far. The latents of its next
call are a row of the sampler's matrix times that history (`sampler.py`), so a step needs to know no sampler.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from workers.engine.conditioning import TEXT_TOKENS
from workers.engine.model import Model, Network
from workers.engine.networks import Control, Given, predict_noise

Size = tuple[int, int]  # height and width of the latents


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A picture to join: noise [4, h, w], hint embedding [channels, h, w], keys and values [rows, 77, total]."""

    noise: Tensor
    hint: Tensor
    text: Tensor


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What the step reads and writes, one entry a picture. They stay where they are, so that a step can be replayed.

    With N model calls, S slots, and 1 row a picture or 2 under guidance (unconditional, conditional):
    """

    history: Tensor  # [S, N + 1, 4, h, w] float32: the noise, then each call's noise prediction
    step: Tensor  # [S] calls made
    hint: Tensor  # [S, channels, h, w]
    text: Tensor  # [S, rows, 77, total] keys and values of the UNet's layers, then of the ControlNet's
    control_scale: Tensor  # [S, rows]
    guidance_scale: Tensor  # [S] float32


class Batch:
    """Runs up to `slots` pictures of one size. They are kept in the first rows of the buffers, without gaps."""

    def __init__(self, model: Model, slots: int, size: Size, guidance_scale: float, control_scale: float) -> None:
        self._model = model
        self._guided = guidance_scale > 1  # as in diffusers: at 1 and below the unconditional half is left out
        self._buffers = self._allocate(slots, size)
        self._buffers.guidance_scale.fill_(guidance_scale)
        self._buffers.control_scale.fill_(control_scale)
        self._entries = torch.arange(slots, device=model.device)
        self._tenants: list[int] = []  # which engine slot is in each entry
        self._done: list[int] = []  # calls made, as the host knows it

    def __len__(self) -> int:
        return len(self._tenants)

    def admit(self, slot: int, newcomer: Newcomer) -> None:
        """Let a picture take part from the next step on."""
        entry, buffers = len(self), self._buffers
        # What is not there yet is weighed with zero, but zero times a leftover infinity would not be zero.
        buffers.history[entry].zero_()
        buffers.history[entry, 0].copy_(newcomer.noise)
        buffers.step[entry] = 0
        buffers.hint[entry].copy_(newcomer.hint)
        buffers.text[entry].copy_(newcomer.text)
        self._tenants.append(slot)
        self._done.append(0)

    def remove(self, slot: int) -> None:
        """Let a picture go; the last one takes its place."""
        entry, last = self._tenants.index(slot), len(self) - 1
        if entry != last:
            for field in fields(self._buffers):
                buffer: Tensor = getattr(self._buffers, field.name)
                buffer[entry].copy_(buffer[last])
        self._tenants[entry], self._done[entry] = self._tenants[last], self._done[last]
        self._tenants.pop()
        self._done.pop()

    def advance(self) -> list[tuple[int, int]]:
        """Take one step with all pictures; return (slot, calls made so far) of each."""
        self.run(len(self))
        self._done = [done + 1 for done in self._done]
        return list(zip(self._tenants, self._done, strict=True))

    def final_latents(self, slot: int) -> Tensor:
        """The latents [4, h, w] of a picture that has made all its calls."""
        history = self._buffers.history[self._tenants.index(slot)]
        latents: Tensor = torch.tensordot(self._model.weights[-1], history, dims=1)
        return latents

    def run(self, n: int) -> None:
        """One step of the first n entries, on the device alone: what a CUDA graph may hold, one for each n."""
        latents, unet_given, control = self._gather(n)
        noise = predict_noise(self._model.unet.net, self._model.controlnet.net, latents, unet_given, control)
        self._scatter(n, noise)

    def _gather(self, n: int) -> tuple[Tensor, Given, Control]:
        buffers, model = self._buffers, self._model
        rows = model.weights[buffers.step[:n]]
        latents = torch.bmm(rows[:, None], buffers.history[:n].flatten(2)).view(n, *buffers.history.shape[2:])
        latents = latents.to(model.dtype, memory_format=torch.channels_last)

        unet_layers = len(model.unet.keys_values_widths)
        widths = model.unet.keys_values_widths + model.controlnet.keys_values_widths
        text = torch.split(buffers.text[:n].flatten(0, 1), widths, dim=-1)
        scale = buffers.control_scale[:n].flatten()
        control = Control(buffers.hint[:n], scale, self._given(model.controlnet, n, text[unet_layers:]))
        return latents, self._given(model.unet, n, text[:unet_layers]), control

    def _given(self, network: Network, n: int, keys_values: tuple[Tensor, ...]) -> Given:
        shifts = network.times[self._buffers.step[:n]].repeat_interleave(self._rows, 0)
        return Given(torch.split(shifts, network.shift_widths, dim=1), keys_values)

    def _scatter(self, n: int, noise: Tensor) -> None:
        buffers = self._buffers
        predicted = noise.float().view(n, self._rows, *noise.shape[1:])
        unconditional, conditional = predicted[:, 0], predicted[:, -1]
        if self._guided:
            scale = buffers.guidance_scale[:n, None, None, None]
            conditional = unconditional + scale * (conditional - unconditional)
        step = buffers.step[:n]
        buffers.history.index_put_((self._entries[:n], step + 1), conditional)
        step += 1

    @property
    def _rows(self) -> int:
        return 2 if self._guided else 1

    def _allocate(self, slots: int, size: Size) -> _Buffers:
        model, rows = self._model, self._rows
        channels = model.unet.net.config.block_out_channels[0]
        total = sum(model.unet.keys_values_widths) + sum(model.controlnet.keys_values_widths)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=model.device)

        return _Buffers(
            history=zeros(slots, model.sampler.calls + 1, 4, *size, dtype=torch.float32),
            step=zeros(slots, dtype=torch.int64),
            hint=zeros(slots, channels, *size, dtype=model.dtype).contiguous(memory_format=torch.channels_last),
            text=zeros(slots, rows, TEXT_TOKENS, total, dtype=model.dtype),
            control_scale=zeros(slots, rows, dtype=model.dtype),
            guidance_scale=zeros(slots, dtype=torch.float32),
        )


class Batches:
    """The batches by size.

    Empty ones are kept for their buffers, up to `kept` sizes in all; the least recently used is the first to go.
    """

    def __init__(self, model: Model, slots: int, guidance_scale: float, control_scale: float, kept: int) -> None:
        self._new = partial(Batch, model, slots, guidance_scale=guidance_scale, control_scale=control_scale)
        self._kept = kept
        self._by_size: OrderedDict[Size, Batch] = OrderedDict()

    def of(self, size: Size) -> Batch:
        """The batch of a size, made on first use."""
        if size not in self._by_size:
            self._release()
            self._by_size[size] = self._new(size)
        self._by_size.move_to_end(size)
        return self._by_size[size]

    def busy(self) -> Iterator[Batch]:
        """The batches that have pictures in them."""
        return (batch for batch in list(self._by_size.values()) if len(batch))

    def __len__(self) -> int:
        return len(self._by_size)

    def _release(self) -> None:
        empty = [size for size, batch in self._by_size.items() if not len(batch)]
        for size in empty[: max(len(self._by_size) - self._kept + 1, 0)]:
            del self._by_size[size]
