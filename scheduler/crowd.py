"""How much of what waits is within reach of a turn, without a walk over all lines."""

from dataclasses import dataclass
from math import frexp


@dataclass(slots=True)
class Class:
    """Lines that are alike: how many they are, with how many jobs and how much work."""

    lines: int = 0
    jobs: int = 0
    work: float = 0.0


class Crowd:
    """Lines in classes by their work, each up to twice the one before: lines of a class are taken to be equally long.

    So some twenty classes stand for any number of lines.
    """

    def __init__(self) -> None:
        self._classes: dict[int, Class] = {}

    def add(self, jobs: int, work: float) -> None:
        """A line."""
        each = self._classes.setdefault(frexp(work)[1], Class())
        each.lines, each.jobs, each.work = each.lines + 1, each.jobs + jobs, each.work + work

    def remove(self, jobs: int, work: float) -> None:
        """A line that was added like this."""
        exponent = frexp(work)[1]
        each = self._classes[exponent]
        each.lines, each.jobs, each.work = each.lines - 1, each.jobs - jobs, each.work - work
        if not each.lines:
            del self._classes[exponent]  # with what rounding has left

    def within(self, reach: float, but: tuple[int, float] | None = None) -> tuple[float, float]:
        """How many jobs, and how much work, start before each line has had so much; `but` one line that was added."""
        jobs = work = 0.0
        own = None if but is None else frexp(but[1])[1]
        for exponent, each in self._classes.items():
            lines, others, all_work = each.lines, each.jobs, each.work
            if but is not None and exponent == own:
                lines, others, all_work = lines - 1, others - but[0], all_work - but[1]
            part = 1.0 if reach * lines >= all_work else reach * lines / all_work
            jobs, work = jobs + part * others, work + part * all_work
        return jobs, work
