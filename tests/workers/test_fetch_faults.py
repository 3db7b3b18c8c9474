"""Faults of hubs and networks, and the messages about them."""

import shutil
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE as CHUNK

from tests.workers.fetch_command import (
    CONTROLNET,
    HALF,
    LATER,
    ONE,
    WEIGHTS,
    controlnet,
    fetch_from,
    files_in,
    hub_with,
    is_there,
    prepared,
    ranges,
    run_fetch,
    run_inside,
    start,
    weights,
    work,
)
from tests.workers.hub import Hub, serving
from workers.weights import repository
from workers.weights.messages import FetchError
from workers.weights.repository import PARALLEL, File, Repository


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    """To the last whole chunk that the library had written."""
    content = weights(count=12_000_000)
    hub = Hub({"some/controlnet": controlnet() | {WEIGHTS: content}}, cuts={WEIGHTS: [CHUNK + HALF, CHUNK + HALF]})
    done = fetch_from(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert ranges(hub) == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == content


FAILED = "the request to the hub failed ({}); trying again in 1 s\n"
RECOVERED: list[tuple[dict[str, Any], list[str | None] | None, str | None]] = [
    ({"stalls": {WEIGHTS: [HALF]}}, None, None),
    # The library gives up on a reset connection at once, and deletes what it had.
    ({"resets": {WEIGHTS: [HALF]}}, [None, None], FAILED.format("Connection reset by peer")),
    ({"cuts": {WEIGHTS: [HALF]}, "ranges": False}, None, None),
    ({"cuts": {"listing": [9]}}, [None], FAILED.format("the connection was cut")),
    ({"refusals": {"config.json": [(429, "")], WEIGHTS: [(503, "")]}}, [None], None),
]


@pytest.mark.parametrize(("faults", "asked", "said"), RECOVERED, ids=lambda it: next(iter(it)) if it else "")
def test_a_fault_that_passes_is_waited_for(
    tmp_path: Path, faults: dict[str, Any], asked: list[str | None] | None, said: str | None
) -> None:
    hub = hub_with(**faults)
    done = fetch_from(hub, tmp_path, timeout=1 if "stalls" in faults else 10)
    assert done.returncode == 0, done.stderr
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()
    assert asked in (None, ranges(hub))
    assert said in (None, done.stderr)


TOLD: list[tuple[dict[str, Any], str, int]] = [
    ({"error": (403, "GatedRepo")}, "it is gated: accept its terms on its page, then set HF_TOKEN", 1),
    ({"error": (404, "RepoNotFound")}, "there is no such repository, or it is private: correct the path, or set", 1),
    ({"error": (404, "RevisionNotFound")}, "it has no such revision: correct the revision (status 404)", 1),
    ({"error": (401, "")}, "the hub denies access: set HF_TOKEN to a token that may read it (status 401)", 1),
    ({"error": (403, "")}, "the hub denies access: set HF_TOKEN to a token that may read it (status 403)", 1),
    ({"error": (400, "")}, "the hub refused the request: check the path, the revision and HF_ENDPOINT (status 400)", 1),
    ({"error": (429, "")}, "too many requests to the hub: wait some minutes, or set HF_TOKEN to be", LATER),
    ({"error": (500, "")}, "the hub reports an error: try again later (status 500)", LATER),
    ({"refusals": {WEIGHTS: [(401, "GatedRepo")]}}, "it is gated: accept its terms", 1),  # its listing is for everybody
    ({"refusals": {WEIGHTS: [(404, "EntryNotFound")]}}, f"{WEIGHTS}: the hub lists it, but does not have it", 1),
    ({"silent": True}, "{url} cannot be reached (no answer in time)", LATER),
    ({"cuts": {"listing": [9] * 9}}, "{url} cannot be reached (the connection was cut)", LATER),
    *(
        ({"page": page}, "{url} does not answer like a Hugging Face hub: check the network", LATER)
        for page in (b"<html>Log in to this network</html>", b"[]", b'{"id": "some/controlnet", "sha": "x"}')
    ),
    *(
        ({"instead": {WEIGHTS: wrong}}, f"{WEIGHTS}: its size differs from the one that the hub lists", LATER)
        for wrong in (weights() + b"x", weights()[:-1])
    ),
    (
        {"instead": {WEIGHTS: weights()[:-1] + b"x"}},
        f"{WEIGHTS} was damaged on its way: its hash is not {sha256(weights()).hexdigest()}, as the hub lists",
        LATER,
    ),
    (
        {"instead": {"config.json": controlnet()["config.json"].replace(b"silu", b"relu")}},
        "config.json was damaged on its way",
        LATER,
    ),
]


@pytest.mark.parametrize(("faults", "told", "code"), TOLD, ids=[told for _, told, _ in TOLD])
def test_refused_or_damaged_downloads_are_reported(
    tmp_path: Path, faults: dict[str, Any], told: str, code: int
) -> None:
    done = fetch_from(hub_with(**faults), tmp_path, "--patience", "0", timeout=1 if "silent" in faults else 10)
    assert done.returncode == code
    assert done.stderr.startswith("engine.controlnet: some/controlnet: ")
    assert told in done.stderr
    assert not is_there(tmp_path)
    assert WEIGHTS not in {Path(name).name for name in files_in(tmp_path / "models")}


@pytest.mark.parametrize(
    ("file", "count", "written"), [("config.json", 9, 0), (WEIGHTS, 50_000, 0), (WEIGHTS, 12_000_000, 2 * CHUNK)]
)
def test_no_more_than_the_listed_size_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, count: int, written: int
) -> None:
    """The library writes whole chunks: none that would go beyond the size."""
    sizes: list[int] = []
    monkeypatch.setattr(Path, "unlink", _measured(sizes))
    files = controlnet() | {WEIGHTS: weights(count=count)}
    done = fetch_from(Hub({"some/controlnet": files}, too_long={file}), tmp_path)
    assert done.returncode == LATER
    assert f"{file}: its size differs from the one that the hub lists" in done.stderr
    assert max(sizes) == written
    assert not {name for name in files_in(tmp_path / "models") if name.endswith((file, ".incomplete"))}


def _measured(sizes: list[int]) -> Callable[..., None]:
    """`Path.unlink` that notes the sizes of the unfinished downloads it deletes."""
    unlink = Path.unlink

    def measure(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith(".incomplete") and path.exists():
            sizes.append(path.stat().st_size)
        unlink(path, missing_ok)

    return measure


def test_damaged_files_of_an_earlier_try_are_fetched_again(tmp_path: Path) -> None:
    hub = hub_with()
    with serving(hub) as url:
        assert run_inside(tmp_path, url, "--keep").returncode == 0
        original = work(tmp_path) / "originals" / WEIGHTS
        shutil.rmtree(prepared(tmp_path))
        original.write_bytes(weights()[:-1] + b"x")
        assert run_inside(tmp_path, url).returncode == 0
    assert ranges(hub) == [None, None]
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()


def test_a_token_opens_what_is_gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = hub_with(token="secret")
    with serving(hub) as url:
        assert "it is gated: accept its terms" in run_inside(tmp_path, url).stderr
        monkeypatch.setenv("HF_TOKEN", "secret")
        assert run_inside(tmp_path, url).returncode == 0
    assert [(asked.file, asked.token) for asked in hub.asked] == [("config.json", "secret"), (WEIGHTS, None)]


def test_tokens_and_signed_addresses_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub = hub_with(cuts={WEIGHTS: [HALF]}, refusals={f"cdn/{WEIGHTS}": [(403, ""), (400, "")]})
    with serving(hub) as url:
        shown = run_inside(tmp_path, url.replace("//", "//user:secret@"), "--patience", "0").stderr
        shown += run_inside(tmp_path, url).stderr
    assert "the hub refused" in shown
    assert "secret" not in shown
    assert "sign" not in shown


def test_a_failure_is_told_while_other_files_are_in_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has not begun does not begin."""
    told, begun = threading.Event(), list[str]()

    def fetch(_: Repository, file: File, __: Path) -> Path:
        begun.append(file.path)
        if file.path == "bad":
            raise FetchError("bad")
        assert told.wait(60)
        return tmp_path

    def say_so(text: str) -> None:
        print(text)
        told.set()

    monkeypatch.setattr(Repository, "_fetch", fetch)
    monkeypatch.setattr(repository, "say", say_so)
    names = [*(f"big{n}" for n in range(PARALLEL - 1)), "bad", *(f"late{n}" for n in range(9))]
    files = {name: File(name, 1) for name in names}
    with pytest.raises(FetchError, match="bad"):
        Repository(CONTROLNET, files).fetch(names, tmp_path)
    assert "bad. Waiting for" in capsys.readouterr().out
    assert len(begun) < len(names)


def test_no_network_is_told(tmp_path: Path) -> None:
    with serving(Hub()) as url:
        pass
    done = run_fetch(tmp_path, "--patience", "0", HF_ENDPOINT=url)
    assert done.returncode == LATER
    assert done.stderr.startswith(f"engine.controlnet: some/controlnet: {url} cannot be reached (")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("hub.example.com", "hub.example.com cannot be reached (it does not begin with https://): check the network"),
        (
            "http://hub:port",
            "http://hub:port does not answer like a Hugging Face hub: check the network and HF_ENDPOINT",
        ),
    ],
)
def test_an_address_that_is_none_is_told(tmp_path: Path, address: str, told: str) -> None:
    done = run_inside(tmp_path, address)
    assert done.returncode == LATER
    assert done.stderr.startswith(f"engine.controlnet: some/controlnet: {told}")


def test_a_name_that_no_repository_can_have_is_told(tmp_path: Path) -> None:
    done = run_inside(tmp_path, "http://127.0.0.1:9", config=ONE.replace("some/controlnet", "some/control..net"))
    assert done.returncode == 1
    assert (
        done.stderr == "engine.controlnet: some/control..net: this is not a valid repository name: correct the path\n"
    )


def test_a_hub_that_is_gone_in_the_middle_is_told(tmp_path: Path) -> None:
    hub = hub_with(stalls={WEIGHTS: [HALF]})
    with serving(hub) as url:
        process = start(tmp_path, url, "--patience", "0")
        assert hub.stalled.wait(180)
    _, said = process.communicate(timeout=180)
    assert process.returncode == LATER
    assert f"{url} cannot be reached (" in said
    assert "Complete files are kept; try again to get the others" in said
