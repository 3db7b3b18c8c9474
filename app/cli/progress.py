"""Progress: a bar on a terminal, a few lines elsewhere. Names of results go to standard output."""

import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from app.cli.plan import Item
from workers.jobs import Advanced, ProgressCallback, ProgressEvent, Started
from workers.logs import escaped

LOADING = "{desc} {elapsed}"
MAKING = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} to go"
REDRAW_SECONDS = 0.1


def say(text: str) -> None:
    """Print a message to standard error, above the bar if there is one."""
    tqdm.write(escaped(text), file=sys.stderr)


def hand_over(path: Path) -> None:
    """Print a finished image's path to standard output, byte for byte if it is not a terminal."""
    with suppress(BrokenPipeError):  # the image is written all the same
        if sys.stdout.isatty():
            tqdm.write(escaped(str(path)), file=sys.stdout)
        else:
            print(path, flush=True)


class Progress:
    """The progress of `total` images. Nothing is drawn if there is no terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ended = 0
        self._parts: dict[Item, Advanced] = {}
        self._loaded = False
        self._bar = tqdm(
            total=total,
            desc="loading",
            bar_format=LOADING,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
            leave=False,
            mininterval=REDRAW_SECONDS,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def tick(self) -> None:
        self._bar.refresh()

    def loaded(self) -> None:
        """A worker is ready: show images from now on."""
        if not self._loaded:
            self._loaded = True
            self._bar.bar_format = MAKING
            self._bar.reset()  # the clock, above all
            self._show()

    def watch(self, item: Item) -> ProgressCallback:
        """A callback for the progress of an image."""

        def on_progress(event: ProgressEvent) -> None:
            match event:
                case Advanced():
                    self._parts[item] = event
                case Started():
                    self._parts.pop(item, None)
                case _:
                    return
            self._show()

        return on_progress

    def ended(self, item: Item) -> None:
        """An image is finished or has failed."""
        self._parts.pop(item, None)
        self._ended += 1
        self._show()

    def _show(self) -> None:
        self._bar.n = self._ended + sum(part.done / part.total for part in self._parts.values())
        if self._loaded:
            self._bar.set_description_str(self._words(), refresh=False)
            self._bar.update(0)

    def _words(self) -> str:
        if self._total > 1:
            return f"{self._ended} of {self._total} images"
        return next((f"step {part.done} of {part.total}" for part in self._parts.values()), "making")
