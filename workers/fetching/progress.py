"""Long work shows how far it is: a bar on a terminal, a plain line now and then elsewhere."""

import sys
from typing import Any

from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # it makes its names when they are asked for

SMALL = 2**20  # bytes: a file that is here at once is not worth a line
LINE_SECONDS = 10.0  # between two lines, where there is no terminal


def say(text: str) -> None:
    """Tell the person who waits; results go to the standard output, which this leaves alone."""
    tqdm.write(text, file=sys.stderr)


def bar(name: str, total: int, initial: int = 0) -> Any:
    """How far the bytes of a file have come; a context manager with `update(n)`."""
    kind = tqdm if sys.stderr.isatty() else _Lines
    small = total < SMALL
    return kind(desc=name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024, disable=small)


class _Lines(tqdm):
    """The same for files and pipes: they keep every line, so there are few."""

    disable: bool

    def __init__(self, **options: Any) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS, ncols=100, ascii=True, **options
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line instead of drawing over the last."""
        if not self.disable and self.n:
            self.fp.write(f"{msg or str(self)}\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        """Say how it ended, and no more."""
        if not self.disable:
            self.display()
            self.disable = True
