"""The documents are true: links lead somewhere, names exist, commands work."""

import re
import subprocess
import sys

import pytest

from tests.docs.documents import ROOT, RUNNABLE, Document, documents, read

# Where people begin: two screens, in lines that fit beside a diff.
LINES = {"README.md": 150, "ARCHITECTURE.md": 120, "CONTRIBUTING.md": 150}
COLUMNS = 120


@pytest.mark.parametrize("path", documents())
def test_all_that_a_document_names_is_there(path: str) -> None:
    assert list(read(path).problems()) == []


@pytest.mark.parametrize("path", [path for path in documents() if RUNNABLE in dict(read(path).blocks)])
def test_blocks_that_can_be_run_do(path: str) -> None:
    for info, code in read(path).blocks:
        if info == RUNNABLE:
            command = code.replace(".venv/bin/python", sys.executable)
            ran = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, f"{code}\n{ran.stderr}"


@pytest.mark.parametrize("path", LINES)
def test_where_people_begin_is_short(path: str) -> None:
    lines = read(path).text.splitlines()
    assert len(lines) <= LINES[path]
    assert [line for line in lines if len(line) > COLUMNS] == []


def test_the_workflow_runs_the_verbs_of_the_ci_script() -> None:
    script = re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    workflow = re.search(r"verb: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow is not None
    assert workflow[1].split(", ") == script


def test_every_alert_has_its_place_in_the_runbook() -> None:
    rules = (ROOT / "example/monitoring/rules.yml").read_text()
    alerts, links = re.findall(r"- alert: (\w+)", rules), re.findall(r"runbook: docs/(operations\.md#.*)", rules)
    assert len(links) == len(alerts)
    assert list(Document("docs/x.md", "".join(f"[here]({link})" for link in links)).problems()) == []
    section = read("docs/operations.md").text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"\bContour[A-Z]\w+", section)) == sorted(alerts)


def test_missing_names_are_found() -> None:
    text = """# A heading

[one](#a-heading), [other](#another), [gone](gone.md), `docs/gone.md`, `gone.py`, `make gone`, `python -m app.gone`,
`api.md`, `server.gone`, `CONTOUR_SERVER__GONE`, `server.port`, `make test`, `python -m app`, `docs/`

```sh
make gone-too
```
"""
    assert list(Document("README.md", text).problems()) == [
        "#another has no such heading",
        "gone.md leads nowhere",
        "there is no docs/gone.md",
        "there is no gone.py",
        "there is no verb gone",
        "there is no module app.gone",
        "there is no key server.gone",
        "there is no variable CONTOUR_SERVER__GONE",
        "there is no verb gone-too",
    ]
