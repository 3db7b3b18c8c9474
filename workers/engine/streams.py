"""Work and copies that run beside other work of the device: side streams, pacing, and the VAE on its own stream."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.engine.codec import Pixels
from workers.engine.compiling import Seconds, Serving, Upgradable, always
from workers.engine.graphs import Graphs, Work

if TYPE_CHECKING:
    from workers.engine.runtime import AnyModel, Decode

_STEPS_AHEAD = 1


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from main memory to the device. The host does not wait, as the copy comes from pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def upload_into(buffer: Tensor, tensor: Tensor) -> None:
    """Copy a tensor from main memory into a buffer of the device. The host does not wait."""
    buffer.copy_(tensor.pin_memory() if buffer.is_cuda else tensor, non_blocking=True)


class SideStream:
    """A second stream: work forked to it runs beside what the main stream does, until both join.

    Without a CUDA device, the work runs in line. Tensors that are made on the side stream use memory that only later
    work there reuses, and forked work begins after all that is queued before it. So tensors may pass both ways without
    further care, provided that they are kept until `join`.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Queue the work of this context on the side stream, after all that is queued on the current one."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Make the current stream wait for the side stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


class StepPacer:
    """Keeps the host at most one step ahead of a CUDA device.

    Further ahead, progress would be reported before it is made, and a new image would queue behind steps that were
    launched long before they run. Not ahead at all, the device would idle between steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: deque[torch.cuda.Event] = deque()

    def mark(self) -> None:
        """Note that a step has been launched."""
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
            self._marks.append(event)

    def wait(self) -> None:
        """Before a step is launched, wait for the one before the last."""
        while len(self._marks) > _STEPS_AHEAD:
            self._marks.popleft().synchronize()


@dataclass(frozen=True, eq=False, slots=True)
class Decoding:
    """Pixels on their way to main memory, RGB uint8 [height, width, 3]."""

    pixels: Tensor
    done: torch.cuda.Event | None

    def wait(self) -> Pixels:
        """Return the pixels when they have arrived; from any thread."""
        if self.done is not None:
            self.done.synchronize()
        pixels: Pixels = self.pixels.numpy()
        return pixels


def fetch(pixels: Tensor) -> Decoding:
    """Start copying pixels to main memory; later changes to them have no effect."""
    if not pixels.is_cuda:
        return Decoding(pixels.clone(), None)
    copy = torch.empty_like(pixels, device="cpu", pin_memory=True)
    copy.copy_(pixels, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return Decoding(copy, done)


class Decoder:
    """Runs the VAE on latents of one size, one image after the other."""

    def __init__(
        self, model: "AnyModel", decode: "Decode", size: tuple[int, int], side_stream: SideStream, graphs: Graphs
    ) -> None:
        self._side_stream = side_stream
        self._dtype = model.dtype
        self.graphs = graphs
        self._function = Upgradable(graphs, "VAE", decode, self._work)
        height, width = (side * model.latent_scale for side in size)
        # Buffers of the graph. The copy in main memory is none of them, as each image needs its own.
        self._latents = torch.zeros(model.latent_channels, *size, device=model.device)
        self._pixels = torch.zeros(height, width, 3, dtype=torch.uint8, device=model.device)

    @property
    def size(self) -> int:
        """Bytes of device memory, without the graph."""
        return self._latents.nbytes + self._pixels.nbytes

    @property
    def upgraded(self) -> bool:
        return self._function.upgraded

    @property
    def kept(self) -> bool:
        """Whether the compiled VAE was slower."""
        return self._function.kept

    def prepare(self) -> None:
        """Record the VAE, if possible, before it is needed."""
        self._function.prepare()

    def upgrade(self, decode: "Decode", serving: Serving = always) -> Seconds:
        """Decode with another function from the next image on, if it agrees with the present one and is not slower.

        Raises what `Upgradable.offer` does.
        """
        generator = torch.Generator(self._latents.device).manual_seed(0)
        noise = torch.empty_like(self._latents).normal_(generator=generator)
        return self._function.offer(decode, lambda function: function(noise)[None], self._dtype, serving)

    def try_out(self, decode: "Decode") -> None:
        """Run a function on latents of this size and drop the result. Safe from any thread, beside anything else."""
        decode(torch.zeros_like(self._latents))

    def start(self, latents: Tensor) -> Decoding:
        """Decode final latents [C, h, w] after all work queued so far, beside all that is queued later."""
        return self._function.run(lambda decode: self._start(latents, decode))

    def _start(self, latents: Tensor, decode: Work) -> Decoding:
        with self._side_stream.fork():
            self._latents.copy_(latents)
            if latents.is_cuda:
                latents.record_stream(torch.cuda.current_stream())
            decode()
            return fetch(self._pixels)

    def _work(self, decode: "Decode") -> None:
        self._pixels.copy_(decode(self._latents))
