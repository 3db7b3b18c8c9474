"""Work and copies that run beside other work of the device, and beside the host's."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

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
