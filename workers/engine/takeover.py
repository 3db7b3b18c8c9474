"""A faster function takes the place of a slower one: proven first, swapped in then, and taken out again if it fails.

The order matters. Everything that can fail comes first: the faster function runs in the thread that will use it, its
result is compared with the slower one's, it is recorded, and the recording is replayed. Only then is anything changed.
"""

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from workers.engine.graphs import Graphs, Work, first_line
from workers.engine.trials import COMPILING

F = TypeVar("F")
T = TypeVar("T")

_ROUNDINGS = 32  # of relative error that are allowed: half precision needs 5, and wrong results are off by hundreds


class WrongResultError(ArithmeticError):
    """It ran, but what it computed is not what it should compute."""


class Place(Generic[F]):
    """Where a function is used. `work` makes what is run, or recorded, of it; `rehearsal` comes before recording."""

    def __init__(
        self, graphs: Graphs, key: Hashable, plain: F, work: Callable[[F], object], rehearsal: Work = lambda: None
    ) -> None:
        self.upgraded = False
        """Whether a faster function is used."""
        self._graphs = graphs
        self._key = key
        self._plain = plain
        self._function = plain
        self._work = work
        self._rehearsal = rehearsal
        self._unused = False  # the faster one, so far

    def prepare(self) -> Work:
        """What runs the function fastest: its graph, or where there can be none the function."""
        return self._graphs.of(self._key, partial(self._work, self._function), self._rehearsal)

    def offer(self, faster: F, result: Callable[[F], Tensor], dtype: torch.dtype) -> None:
        """Have a faster function take the place.

        `result` computes something by either; `dtype` is what they compute in. Raises WrongResultError, and whatever
        the function or its recording raises: then the place is as it was.
        """
        check(result(faster), result(self._plain), dtype)
        self._graphs.replace(self._key, partial(self._work, faster), self._rehearsal)
        self._function, self.upgraded, self._unused = faster, True, True

    def run(self, use: Callable[[Work], T], *, real: bool = True) -> T:
        """The result of `use`, which is given what to run. A faster function that fails is given up, and `use` called
        again; its first `real` use is still a trial. Raises torch.OutOfMemoryError, and what the plain function raises.
        """
        trials = self._graphs.trials
        try:
            with trials.of(COMPILING) if real and self._unused else nullcontext():
                result = use(self.prepare())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self.upgraded:
                raise
            with trials.of(COMPILING):  # if the device has failed, this is why
                self._go_back(error)
                return use(self.prepare())
        self._unused = self._unused and not real
        return result

    def _go_back(self, error: Exception) -> None:
        self._function, self.upgraded, self._unused = self._plain, False, False
        self._graphs.drop(self._key)
        self._graphs.fallbacks.note("compile: given up", f"{self._key} runs without: {first_line(error)}")


def check(actual: Tensor, expected: Tensor, dtype: torch.dtype, roundings: int = _ROUNDINGS) -> None:
    """Raise WrongResultError where a result in a number format is further from the expected one than rounding goes."""
    # In float32 too it may have used TF32, whose mantissa is that of float16.
    allowed = roundings * max(torch.finfo(dtype).eps, torch.finfo(torch.float16).eps)
    difference, norm = (float(each.norm()) for each in (actual.float() - expected.float(), expected.float()))
    if actual.shape != expected.shape or not difference <= allowed * norm:  # this way round it catches NaN as well
        raise WrongResultError(f"it is off by {difference:.1e} of {norm:.1e}; {allowed:.0%} is allowed")
