"""Progress of long work on the standard error: a bar on a terminal, elsewhere a plain line now and then."""

import sys
from typing import Any

from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # it makes its names when they are asked for

SMALL = 2**20  # bytes: a smaller file gets no line
LINE_SECONDS = 10.0  # between two lines, where there is no terminal


def say(text: str) -> None:
    """Tell the person who waits. The standard output is for results."""
    tqdm.write(text, file=sys.stderr)


def bar(name: str, *, total: int | None, initial: int = 0, **_: object) -> Any:
    """Return a progress bar of a file's bytes: a context manager with `update(n)`."""
    kind = tqdm if sys.stderr.isatty() else _Lines
    small = (total or 0) < SMALL
    return kind(desc=name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024, disable=small)


class _Lines(tqdm):
    """Few lines, as files and pipes keep every one."""

    disable: bool

    def __init__(self, **options: Any) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS, ncols=100, ascii=True, **options
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self.disable and self.n:
            self.fp.write(f"{msg or str(self)}\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        if not self.disable:
            self.display()
            self.disable = True
