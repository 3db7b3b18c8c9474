"""README and docs against the real service: its first request works, and nothing that is served goes unmentioned."""

import re
import subprocess
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.docs.documents import ROOT, read
from tests.service.running import Service, surroundings

ON_A_GPU = "contour_device_"  # metrics that are not there without one


def column(path: str, heading: str) -> set[str]:
    """All in backticks in the first column of the tables below a heading, or in the second where that has them."""
    section = read(path).text.partition(f"\n{heading}\n")[2]
    section = re.split(r"\n#{1,3} ", section)[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")]
    cells = [row[0] if "`" in row[0] else row[1] for row in rows]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_request_in_readme_makes_an_image(echo: Service, tmp_path: Path) -> None:
    [command] = [code for _, code in read("README.md").blocks if code.startswith("curl")]
    command = command.replace("http://127.0.0.1:8000", echo.url).replace("out.jpg", str(tmp_path / "out"))
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, env=surroundings(), check=True)
    assert (tmp_path / "out").read_bytes().startswith(b"\x89PNG")  # as the service of these tests is configured


def test_every_request_option_is_documented(echo: Service) -> None:
    schema = description(echo)["paths"]["/generation/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = description(echo)["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    assert column("docs/api.md", "## Make an image") == set(fields)


def test_every_error_is_documented(echo: Service) -> None:
    types = re.findall(r"urn:contour:problem:([a-z-]+)", echo.client.get("/openapi.json").text)
    documented = column("docs/api.md", "## Errors")
    assert set(types) <= documented


def test_every_metric_is_documented(echo: Service) -> None:
    families = text_string_to_metric_families(echo.client.get("/metrics").text)
    served = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    documented = column("docs/operations.md", "## Metrics")
    assert {name for name in served if name.startswith("contour_")} <= documented
    assert {name for name in documented if not name.startswith(ON_A_GPU)} <= served


def description(service: Service) -> Any:
    return service.client.get("/openapi.json").json()
