"""Workspaces: the buffers and graphs for images of one size, and for how many sizes they are kept."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workers.engine.batch import Batch, Size
from workers.engine.streams import Decoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Workspace:
    """What makes images of one size. `kept`: never dropped, as the configuration names its size."""

    batch: Batch
    decoder: Decoder
    kept: bool

    @property
    def size(self) -> int:
        """Bytes of device memory, graphs included."""
        return self.batch.size + self.decoder.size + self.graph_bytes

    @property
    def graph_bytes(self) -> int:
        return self.batch.graphs.size + self.decoder.graphs.size


class Workspaces:
    """The workspaces by size.

    Those of sizes that are not configured are made at first use, and kept while they take no more than `bound` bytes
    together; the least recently used idle ones are dropped first. `synchronize` waits for the device.
    """

    def __init__(self, make: Callable[[Size, bool], Workspace], bound: int, synchronize: Callable[[], None]) -> None:
        self._make = make
        self._bound = bound
        self._synchronize = synchronize
        self._by_size: OrderedDict[Size, Workspace] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_size)

    def __iter__(self) -> Iterator[Workspace]:
        return iter(list(self._by_size.values()))

    def of(self, size: Size, *, kept: bool = False) -> Workspace:
        """The workspace of a size, made on first use."""
        if size not in self._by_size:
            self._by_size[size] = self._make(size, kept)
        self._by_size.move_to_end(size)
        self._keep_to_bound(size)
        return self._by_size[size]

    def get(self, size: Size) -> Workspace | None:
        """The workspace of a size, if there is one."""
        return self._by_size.get(size)

    def latest(self) -> list[tuple[Size, Workspace]]:
        """The sizes and their workspaces, the most recently used first."""
        return list(reversed(self._by_size.items()))

    def busy(self) -> Iterator[Batch]:
        """The batches that have images in them."""
        return (workspace.batch for workspace in self if len(workspace.batch))

    def make_room(self) -> bool:
        """Drop all idle workspaces that are not kept; False when there are none."""
        idle = self._idle()
        self._drop(idle)
        return bool(idle)

    def _keep_to_bound(self, wanted: Size) -> None:
        """Drop what exceeds the bound. Recording makes workspaces grow, so this runs when one is asked for."""
        idle = [size for size in self._idle() if size != wanted]
        surplus = sum(workspace.size for workspace in self if not workspace.kept) - self._bound
        gone = []
        while idle and surplus > 0:
            gone.append(idle.pop(0))
            surplus -= self._by_size[gone[-1]].size
        self._drop(gone)

    def _idle(self) -> list[Size]:
        return [size for size, each in self._by_size.items() if not each.kept and not len(each.batch)]

    def _drop(self, sizes: list[Size]) -> None:
        if sizes:
            self._synchronize()  # one may still be decoding
        for size in sizes:
            log.info("Dropping the buffers and graphs for latents of %dx%d", *size)
            del self._by_size[size]
