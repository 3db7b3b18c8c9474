"""The record of a training's losses, which outlives the processes that write it: lines of JSON, a table, a plot."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from math import ceil, nan
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

EVERY_SECONDS = 10.0  # a line's worth of steps
TAIL = 0.1  # of a stage's lines; their mean is where its losses ended
PANEL = (9.0, 3.0)  # inches


@dataclass(frozen=True)
class Entry:
    """The mean losses of a stage's steps since its last entry: at its step `step`, `seconds` into its time budget."""

    stage: str
    step: int
    seconds: float
    losses: Mapping[str, float]


class Journal:
    """`losses.jsonl` in the folder of a training, an entry a line, in the order of the steps."""

    def __init__(self, folder: Path, every_seconds: float = EVERY_SECONDS) -> None:
        self.path = folder / "losses.jsonl"
        self._every_seconds = every_seconds
        self._pending: list[Entry] = []  # one for each step since the last line
        self._written_at = 0.0

    def resume(self, stage: str, step: int, seconds: float) -> None:
        """Begin a stage, or go on with it after `step`: lines about its later steps are cut, and those cut short."""
        self._pending.clear()
        self._written_at = seconds
        if self.path.exists():
            kept = [entry for entry in self.entries() if entry.stage != stage or entry.step <= step]
            _replace(self.path, "".join(map(_line, kept)))

    def record(self, entry: Entry) -> None:
        """Take one step's losses; they are written when as many seconds have passed since the last line."""
        self._pending.append(entry)
        if entry.seconds - self._written_at >= self._every_seconds:
            self.write()

    def write(self) -> None:
        """Write a line about the steps since the last one, if there were any."""
        if self._pending:
            with self.path.open("a") as file:
                file.write(_line(_mean(self._pending)))
            self._written_at = self._pending[-1].seconds
            self._pending.clear()

    def entries(self) -> list[Entry]:
        """All that is written, except a last line that was cut short."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        return [Entry(**json.loads(line)) for line in lines if line.endswith("\n")]

    def table(self) -> str:
        """Markdown: for each loss of each stage its first mean, and that of the stage's last tenth."""
        head = "| stage | steps | minutes | loss | first | last |\n|---|---|---|---|---|---|\n"
        return head + "".join(row for _, entries in self._stages() for row in _rows(entries))

    def plot(self, path: Path) -> None:
        """Draw the losses into a PNG: a panel for each stage, over its minutes. Raises ValueError if there are none."""
        stages = list(self._stages())
        if not stages:
            raise ValueError(f"there is nothing to plot: {self.path} has no lines; train first")
        figure = Figure(figsize=(PANEL[0], PANEL[1] * len(stages)), layout="constrained")
        for axes, (stage, entries) in zip(figure.subplots(len(stages), squeeze=False)[:, 0], stages, strict=True):
            _draw(axes, stage, entries)
        figure.savefig(path, format="png", dpi=100)

    def _stages(self) -> Iterator[tuple[str, list[Entry]]]:
        for stage, entries in groupby(self.entries(), lambda entry: entry.stage):
            yield stage, list(entries)


def _mean(entries: list[Entry]) -> Entry:
    last = entries[-1]
    return Entry(last.stage, last.step, last.seconds, {name: _mean_loss(entries, name) for name in _names(entries)})


def _mean_loss(entries: Iterable[Entry], name: str) -> float:
    return fmean(entry.losses[name] for entry in entries if name in entry.losses)


def _names(entries: Iterable[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.losses))


def _line(entry: Entry) -> str:
    rounded = {name: float(f"{loss:.5g}") for name, loss in entry.losses.items()}
    return json.dumps(asdict(entry) | {"seconds": round(entry.seconds, 2), "losses": rounded}) + "\n"


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _rows(entries: list[Entry]) -> Iterator[str]:
    last = entries[-1]
    for name in _names(entries):
        having = [entry for entry in entries if name in entry.losses]
        end = _mean_loss(having[-ceil(TAIL * len(having)) :], name)
        numbers = f"{last.step} | {last.seconds / 60:.1f} | {name} | {having[0].losses[name]:.4g} | {end:.4g}"
        yield f"| {last.stage} | {numbers} |\n"


def _draw(axes: Axes, stage: str, entries: list[Entry]) -> None:
    minutes = [entry.seconds / 60 for entry in entries]
    for name in _names(entries):
        losses = [entry.losses.get(name, nan) for entry in entries]
        axes.plot(minutes, [loss if loss > 0 else nan for loss in losses], label=name, marker=".", linewidth=1)
    axes.set_yscale("log")
    axes.set_title(stage)
    axes.set_xlabel("minutes")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="upper right", fontsize="small")
