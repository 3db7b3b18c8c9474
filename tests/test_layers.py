"""The packages know each other in one direction: app -> workers -> scheduler. The scheduler knows nothing of the rest,
and the engine nothing of HTTP."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HTTP = {"starlette", "uvicorn", "httpx", "h11", "httptools", "multipart", "python_multipart", "websockets"}
SIMULATION = {"tqdm", "matplotlib"}  # what draws; imported where it is used


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """Each import below a folder: its file, and the whole name of the module."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    found = [each.name for each in names]
                case ast.ImportFrom(module=module, level=level):
                    assert level == 0, f"{path} imports relatively"
                    found = [module or ""]
                case _:
                    continue
            yield from ((str(path.relative_to(ROOT)), name) for name in found)


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        ("scheduler", {"workers", "app", "tests", "example"}),
        ("workers", {"app", "tests", "example"}),
        ("app", {"tests"}),
    ],
)
def test_a_package_knows_only_those_below_it(folder: str, others: set[str]) -> None:
    found = list(imports(folder))

    assert found
    assert [each for each in found if each[1].split(".")[0] in others] == []


def test_the_scheduler_needs_little_but_the_standard_library() -> None:
    known = sys.stdlib_module_names | {"scheduler", "msgspec"}
    foreign = [(path, name) for path, name in imports("scheduler") if name.split(".")[0] not in known]

    assert [each for each in foreign if "simulation" not in each[0] or each[1].split(".")[0] not in SIMULATION] == []


def test_the_engine_knows_no_http() -> None:
    assert [each for each in imports("workers/engine") if each[1].split(".")[0] in HTTP] == []
