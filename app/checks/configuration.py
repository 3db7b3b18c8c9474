"""The configuration: whether it can be read, what it asks for, and whether that is there and fits together."""

from collections.abc import Iterator

from app.checks.finding import Finding, Level, Subject
from workers.preflight import problems


def check(subject: Subject) -> Iterator[Finding]:
    """Raises NotUsableError when it cannot be read."""
    engine = subject.settings.engine
    if engine.model is None:
        yield Finding("configuration", Level.OK, f"{subject.config}: {engine.kind}, no model")
    else:
        text = f"{subject.config}: {engine.model.path}, run by {engine.runtime}"
        yield Finding("configuration", Level.OK, text)
    for problem in problems(engine):
        yield Finding("configuration", Level.MISSING, f"{'.'.join(problem.key)} {problem.text}")
    if engine.faults.wanted:
        text = f"engine.faults is set, so workers fail on purpose: {engine.faults}"
        yield Finding("configuration", Level.WARNING, text, "leave engine.faults out")
