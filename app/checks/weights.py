"""The weights that a configuration names: there, and whole by what each file says of itself."""

from collections.abc import Iterator
from pathlib import Path

from app.checks.finding import Finding, Level, Subject, size
from workers.engine.ahead import files
from workers.engine.weights import MissingWeightsError, absent
from workers.fetching.errors import FetchError
from workers.fetching.tensors import shapes_in


def check(subject: Subject) -> Iterator[Finding]:
    """Finds what is missing, or else what is there."""
    engine = subject.settings.engine
    if engine.kind == "echo":
        yield Finding("weights", Level.OK, "not needed: engine.kind is echo")
        return
    fetch = f"python -m workers.fetch {subject.config}"
    if missing := absent(engine):
        yield Finding("weights", Level.MISSING, f"not on this machine: {'; '.join(missing)}", fetch)
        return
    try:
        found = list(files(engine, "cuda:0" if subject.on_gpu else "cpu"))
        for path in found:
            shapes_in(path)
    except MissingWeightsError as error:
        yield Finding("weights", Level.MISSING, str(error).partition(";")[0], fetch)
    except FetchError as error:
        yield Finding("weights", Level.MISSING, str(error), f"{fetch} --again")
    else:
        yield Finding("weights", Level.OK, f"{_listed(found)}; read all of it with: {fetch} --check")


def _listed(paths: list[Path]) -> str:
    return f"{len(paths)} files with {size(sum(path.stat().st_size for path in paths))}, none cut short"
