"""A faster function replaces a slower one: it is proven, then swapped in, and removed again if it fails.

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

_ROUNDINGS = 32  # allowed as relative error: half precision needs 5, and wrong results are off by hundreds


class WrongResultError(ArithmeticError):
    """A function ran, but computed something else."""


class Upgradable(Generic[F]):
    """A function that a faster one can replace. `work` runs it, and is what is recorded.

    `before_recording`: as in `Graphs.of`.
    """

    def __init__(
        self,
        graphs: Graphs,
        key: Hashable,
        plain: F,
        work: Callable[[F], object],
        before_recording: Work = lambda: None,
    ) -> None:
        self.upgraded = False
        """Whether the faster function is in use."""
        self._graphs = graphs
        self._key = key
        self._plain = plain
        self._function = plain
        self._work = work
        self._before_recording = before_recording
        self._unused = False  # the faster function, so far

    def prepare(self) -> Work:
        """The fastest way to run the function: its graph, or the function itself."""
        return self._graphs.of(self._key, partial(self._work, self._function), self._before_recording)

    def offer(self, faster: F, result: Callable[[F], Tensor], dtype: torch.dtype) -> None:
        """Use a faster function from now on, if it agrees with the plain one.

        `result` computes something with either; `dtype` is what they compute in. Raises WrongResultError, and whatever
        the function or its recording raises, and then has changed nothing.
        """
        check(result(faster), result(self._plain), dtype)
        self._graphs.replace(self._key, partial(self._work, faster), self._before_recording)
        self._function, self.upgraded, self._unused = faster, True, True

    def run(self, use: Callable[[Work], T], *, real: bool = True) -> T:
        """Return the result of `use`, which is passed what to run.

        A faster function that fails is given up, and `use` called again with the plain one. Its first `real` use is
        still a trial. Raises torch.OutOfMemoryError, and what the plain function raises.
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
            with trials.of(COMPILING):  # if the device has failed, the faster function is to blame
                self._go_back(error)
                return use(self.prepare())
        self._unused = self._unused and not real
        return result

    def _go_back(self, error: Exception) -> None:
        self._function, self.upgraded, self._unused = self._plain, False, False
        self._graphs.drop(self._key)
        self._graphs.fallbacks.note("compile: given up", f"{self._key} runs without: {first_line(error)}")


def check(actual: Tensor, expected: Tensor, dtype: torch.dtype, roundings: int = _ROUNDINGS) -> None:
    """Raise WrongResultError if a result differs from the expected one by more than rounding in `dtype` explains."""
    # In float32 a kernel may use TF32, whose mantissa is that of float16.
    allowed = roundings * max(torch.finfo(dtype).eps, torch.finfo(torch.float16).eps)
    difference, norm = (float(each.norm()) for each in (actual.float() - expected.float(), expected.float()))
    if actual.shape != expected.shape or not difference <= allowed * norm:  # NaN fails this comparison, too
        raise WrongResultError(f"it is off by {difference:.1e} of {norm:.1e}; {allowed:.0%} is allowed")
