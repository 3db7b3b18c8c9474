"""All that is kept for pictures of one size, and for how many sizes."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workers.engine.batch import Batch, Size
from workers.engine.streams import Decoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Workspace:
    """What makes pictures of one size. `kept`: for good, as its size is named in the configuration."""

    batch: Batch
    decoder: Decoder
    kept: bool

    @property
    def size(self) -> int:
        """Bytes of device memory, graphs included."""
        return self.batch.size + self.decoder.size + self.graph_bytes

    @property
    def graph_bytes(self) -> int:
        """Bytes of device memory that the graphs alone take."""
        return self.batch.graphs.size + self.decoder.graphs.size


class Workspaces:
    """The workspaces by size.

    Those of other than the configured sizes are made at first use, and kept while they take no more than `bound` bytes
    together; the least recently used that nobody needs are the first to go. `settle` waits for the device.
    """

    def __init__(self, make: Callable[[Size, bool], Workspace], bound: int, settle: Callable[[], None]) -> None:
        self._make = make
        self._bound = bound
        self._settle = settle
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
        """The batches that have pictures in them."""
        return (workspace.batch for workspace in self if len(workspace.batch))

    def make_room(self) -> bool:
        """Drop all that can be made again; False when there is nothing."""
        idle = self._idle()
        self._drop(idle)
        return bool(idle)

    def _keep_to_bound(self, wanted: Size) -> None:
        """It grows when graphs are recorded, so what is over the bound is found when a workspace is next asked for."""
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
            self._settle()  # it may still be decoding
        for size in sizes:
            log.info("the buffers and graphs for latents of %dx%d are dropped", *size)
            del self._by_size[size]
