"""The report: tables of kernels by kind, what they are estimated to take, and what they use of a multiprocessor."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.gpu_codegen import tile_model
from tests.gpu_codegen.cases import STEP, Case
from tests.gpu_codegen.program import KINDS, Kernel, Kind
from tests.gpu_codegen.results import Result

LIMITS = Path(__file__).with_name("kernels.json")


def limits() -> dict[str, dict[Kind, int]]:
    """The most kernels of each kind that a pass may have, by `Case.inputs`."""
    read: dict[str, dict[Kind, int]] = json.loads(LIMITS.read_text())
    return read


def write_limits(results: Iterable[Result]) -> None:
    """Make what was found the limits. Those of other cases stay."""
    found: dict[str, Counter[Kind]] = {}
    for each in results:  # the larger count of two GPUs'
        found[each.case.inputs] = found.get(each.case.inputs, Counter()) | each.program.counts
    counts = {name: {kind: each[kind] for kind in KINDS if each[kind]} for name, each in found.items()}
    lines = (f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in sorted((limits() | counts).items()))
    LIMITS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def report(results: Sequence[Result]) -> str:
    """In Markdown."""
    parts = [(each.case, each.program.kernels) for each in results]
    everything = [*parts, *_steps(parts)]
    return "\n\n".join(
        (
            "Kernels. A step is its three passes; `1x2` is one image with two rows.",
            _table(["pass", *KINDS, "all"], (_counts(case, kernels) for case, kernels in everything)),
            "Estimated milliseconds, with the inner dimension of products split or not.",
            _table(
                ["pass", "split", *KINDS, "all"],
                (_times(case, kernels, split) for case, kernels in everything for split in (False, True)),
            ),
            (tile_model.__doc__ or "").strip(),
            "The most that a compiled Triton kernel uses: registers of a thread, bytes of shared and of local memory.",
            _table(["pass", "compiled", "registers", "shared", "local"], map(_usage, results)),
        )
    )


def _steps(parts: Iterable[tuple[Case, list[Kernel]]]) -> Iterator[tuple[Case, list[Kernel]]]:
    """The kernels of whole steps, where all their passes are there."""
    passes: dict[Case, dict[str, list[Kernel]]] = {}
    for case, kernels in parts:
        passes.setdefault(replace(case, which="step"), {})[case.which] = kernels
    for step, found in passes.items():
        if set(STEP) <= found.keys():
            yield step, [kernel for which in STEP for kernel in found[which]]  # not of the VAE, nor the text encoder


def _counts(case: Case, kernels: Sequence[Kernel]) -> list[str]:
    counts = Counter(kernel.kind for kernel in kernels)
    return [case.name, *(str(counts[kind]) for kind in KINDS), str(len(kernels))]


def _times(case: Case, kernels: Sequence[Kernel], split: bool) -> list[str]:
    seconds = tile_model.seconds_by_kind(kernels, case.gpu, split_k=split)
    times = [*(seconds[kind] for kind in KINDS), sum(seconds.values())]
    return [case.name, "yes" if split else "no", *(f"{1e3 * each:.2f}" for each in times)]


def _usage(result: Result) -> list[str]:
    most = (max(getattr(each, name) for each in result.cubins) for name in ("registers", "shared", "local"))
    return [result.case.name, str(len(result.cubins)), *map(str, most)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
