"""The diffusion engine: slots of running pictures that share every denoising step.

A picture may join at any step boundary and leave at any other, because the networks take each sample's own timestep.
The sampler's arithmetic is a matrix (`sampler.py`), the running state lies in batches by size (`batch.py`).
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scheduler.messages import Costs
from workers.engine import codec
from workers.engine.batch import Batch, Batches, Newcomer
from workers.engine.codec import Pixels
from workers.engine.config import EngineConfig
from workers.engine.constants import hint_embedding
from workers.engine.contract import Stepped, Task
from workers.engine.header import output_size
from workers.engine.measure import measure
from workers.engine.model import Model

_SIZES_KEPT = 4
_STEPS_AHEAD = 1


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A picture that is ready for the device: tokens, noise [4, h, w] float32, edges uint8 [8h, 8w]."""

    tokens: tuple[int, ...]
    noise: Tensor
    edges: Pixels


class DiffusionEngine:
    """Stable Diffusion with a ControlNet on one device; implements `contract.Engine`."""

    def __init__(self, config: EngineConfig, model: Model) -> None:
        self.slots = config.slots
        self._config = config
        self._model = model
        self._batches = Batches(model, config.slots, config.guidance_scale, config.control_scale, _SIZES_KEPT)
        self._homes: dict[int, Batch] = {}  # slot -> where it runs
        self._finals: dict[int, Tensor] = {}  # slot -> final latents that wait for `finish`
        self._pace = _Pace(model.device)
        self._negative = model.tokens.negative()

    @property
    def calls(self) -> int:
        """Denoising steps of a picture."""
        return self._model.sampler.calls

    def warm_up(self) -> Costs:
        """Run everything once on the nominal picture, and measure it."""
        return measure(self, self._config.size.short_side)

    def prepare(self, task: Task) -> Prepared:
        """Decode, resize, find edges, tokenise, and draw the noise.

        All on the CPU: so a seed means the same on every device. Raises BadPictureError.
        """
        pixels = codec.decode(task.picture)
        width, height = output_size(pixels.shape[1], pixels.shape[0], self._config.size)
        edges = codec.edges(codec.resize(pixels, width, height), self._config.canny)
        shape = (4, height // self._model.latent_scale, width // self._model.latent_scale)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(task.seed))
        return Prepared(self._model.tokens.positive(task.text), noise, edges)

    @torch.no_grad()
    def admit(self, slot: int, prepared: Prepared) -> None:
        """Put a prepared picture into a free slot. Raises ValueError when the slot is taken or not there."""
        if not 0 <= slot < self.slots or slot in self._homes or slot in self._finals:
            raise ValueError(f"slot {slot} is not free")
        batch = self._batches.of((prepared.noise.shape[1], prepared.noise.shape[2]))
        batch.admit(slot, Newcomer(prepared.noise, self._hint(prepared.edges), self._text(prepared.tokens)))
        self._homes[slot] = batch

    @torch.no_grad()
    def step(self) -> list[Stepped]:
        """Advance every running picture by one denoising step, each size in a batch of its own."""
        self._pace.wait()
        stepped = [progress for batch in self._batches.busy() for progress in batch.advance()]
        self._pace.mark()
        for slot, done in stepped:
            if done == self.calls:
                self._retire(slot)
        return [Stepped(slot, done, self.calls) for slot, done in stepped]

    def latents(self, slot: int) -> Tensor:
        """The final latents [4, h, w], float32, of a picture that took its last step. Raises ValueError before that."""
        if slot not in self._finals:
            raise ValueError(f"slot {slot} holds no picture that took its last step")
        return self._finals[slot]

    def finish(self, slot: int) -> Pixels:
        """Decode a picture that took its last step, and free its slot. Raises ValueError before that."""
        pixels = self.decode(self.latents(slot))
        del self._finals[slot]
        return pixels

    def discard(self, slot: int) -> None:
        """Drop the picture in a slot. Raises ValueError when there is none."""
        if slot in self._homes:
            self._homes.pop(slot).remove(slot)
        elif slot in self._finals:
            del self._finals[slot]
        else:
            raise ValueError(f"slot {slot} is empty")

    def encode(self, pixels: object) -> bytes:
        """The picture file that the client gets."""
        return codec.encode(np.asarray(pixels, np.uint8), self._config.output)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Pixels:
        """RGB pixels of final latents [4, h, w]."""
        pixels: Pixels = self._model.decode(latents.to(self._model.device)).cpu().numpy()
        return pixels

    def synchronize(self) -> None:
        """Wait until the device has done all it was told."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)

    def _retire(self, slot: int) -> None:
        batch = self._homes.pop(slot)
        self._finals[slot] = batch.final_latents(slot)
        batch.remove(slot)

    def _hint(self, edges: Pixels) -> Tensor:
        picture = torch.from_numpy(edges).to(self._model.device).to(self._model.dtype) / 255
        return hint_embedding(self._model.controlnet.net, picture.expand(1, 3, -1, -1))[0]

    def _text(self, tokens: tuple[int, ...]) -> Tensor:
        """Keys and values of an image's rows [rows, 77, total]; the unconditional row comes first."""
        prompts = [self._negative, tokens] if self._config.guidance_scale > 1 else [tokens]
        return torch.stack([self._model.text.keys_values(prompt) for prompt in prompts])


class _Pace:
    """Keeps the host at most one step ahead of a CUDA device.

    Further ahead, progress reports would be promises, and a newcomer would queue behind steps that were launched long
    before they run. Not ahead at all, the device would idle between steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: deque[torch.cuda.Event] = deque()

    def mark(self) -> None:
        """A step has been launched."""
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
            self._marks.append(event)

    def wait(self) -> None:
        """Before a step is launched: wait for the one before the last."""
        while len(self._marks) > _STEPS_AHEAD:
            self._marks.popleft().synchronize()
