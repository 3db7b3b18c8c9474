"""Work and copies that run beside other work of the device: side streams, pacing, and the VAE on its own stream."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.engine.codec import Pixels
from workers.engine.graphs import Graphs, Work
from workers.engine.takeover import Place

if TYPE_CHECKING:
    from workers.engine.runtime import AnyModel, Decode

_STEPS_AHEAD = 1


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device of a tensor in main memory. The host does not wait for it: pinned memory needs no help."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Aside:
    """Work that the device may do beside what follows, until they are joined. Without streams, or a device,
    it is done in line.

    What is made aside is made of memory that only later work aside reuses, and that begins after whatever has been
    queued before it: so tensors may pass both ways without further care, provided that they are kept until `join`.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Queue what is done within beside the current stream, after all that is queued there now."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Have the current stream wait for the work aside."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


class Pace:
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


@dataclass(frozen=True, eq=False, slots=True)
class Decoding:
    """Pixels that are on their way to main memory, RGB uint8 [height, width, 3]."""

    pixels: Tensor
    done: torch.cuda.Event | None

    def wait(self) -> Pixels:
        """Wait for them; from any thread."""
        if self.done is not None:
            self.done.synchronize()
        pixels: Pixels = self.pixels.numpy()
        return pixels


def fetch(pixels: Tensor) -> Decoding:
    """Send pixels on their way as they are now; what becomes of them afterwards does not matter."""
    if not pixels.is_cuda:
        return Decoding(pixels.clone(), None)
    copy = torch.empty_like(pixels, device="cpu", pin_memory=True)
    copy.copy_(pixels, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return Decoding(copy, done)


class Decoder:
    """Decodes latents of one size, one picture after the other."""

    def __init__(
        self, model: "AnyModel", decode: "Decode", size: tuple[int, int], aside: Aside, graphs: Graphs
    ) -> None:
        self._aside = aside
        self._dtype = model.dtype
        self.graphs = graphs
        self._place = Place(graphs, "VAE", decode, self._work)
        height, width = (side * model.latent_scale for side in size)
        # The graph's own: what is in main memory cannot be among them, as each picture needs its own there.
        self._latents = torch.zeros(4, *size, device=model.device)
        self._pixels = torch.zeros(height, width, 3, dtype=torch.uint8, device=model.device)

    @property
    def size(self) -> int:
        """Bytes of device memory, without the graph."""
        return self._latents.nbytes + self._pixels.nbytes

    @property
    def upgraded(self) -> bool:
        """Whether it runs a compiled VAE."""
        return self._place.upgraded

    def prepare(self) -> None:
        """Record the VAE, if that can be done, before it is needed."""
        self._place.prepare()

    def upgrade(self, decode: "Decode") -> None:
        """Decode by another function from the next image on, if it agrees with the present one.

        Raises what `Place.offer` does.
        """
        generator = torch.Generator(self._latents.device).manual_seed(0)
        noise = torch.empty_like(self._latents).normal_(generator=generator)
        self._place.offer(decode, lambda function: function(noise), self._dtype)

    def try_out(self, decode: "Decode") -> None:
        """Run a function on latents of this size, and drop what it makes; from any thread, whatever else runs."""
        decode(torch.zeros_like(self._latents))

    def start(self, latents: Tensor) -> Decoding:
        """Have final latents [4, h, w] decoded after all that is queued now, beside what is queued later."""
        return self._place.run(lambda decode: self._start(latents, decode))

    def _start(self, latents: Tensor, decode: Work) -> Decoding:
        with self._aside.fork():
            self._latents.copy_(latents)
            if latents.is_cuda:
                latents.record_stream(torch.cuda.current_stream())
            decode()
            return fetch(self._pixels)

    def _work(self, decode: "Decode") -> None:
        self._pixels.copy_(decode(self._latents))
