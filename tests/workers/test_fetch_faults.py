"""What goes wrong with hubs and networks, and what a person is told of it."""

from pathlib import Path

import pytest

from tests.workers.fetching import (
    HALF,
    LATER,
    SIZE,
    WEIGHTS,
    controlnet,
    files_in,
    hub_with,
    is_there,
    prepared,
    ranges,
    run_fetch,
    run_inside,
    start,
    weights,
)
from tests.workers.hub import COMMIT, Asked, Hub, serving


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    hub = hub_with(cuts={WEIGHTS: [HALF, 1000]})
    with serving(hub) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert ranges(hub) == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()
    assert "trying again in 1 s" in done.stderr


def test_a_hub_that_falls_silent_is_asked_again(tmp_path: Path) -> None:
    hub = hub_with(stalls={WEIGHTS: [HALF]})
    with serving(hub) as url:
        done = run_inside(tmp_path, url, timeout=1)
    assert done.returncode == 0, done.stderr
    assert ranges(hub) == [None, f"bytes={HALF}-"]


def test_a_hub_that_ignores_ranges_sends_all_again(tmp_path: Path) -> None:
    hub = hub_with(cuts={WEIGHTS: [HALF]}, ranges=False)
    with serving(hub) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()


def test_wrong_bytes_of_the_right_size_are_refused(tmp_path: Path) -> None:
    wrong = weights()[:-1] + b"x"
    with serving(hub_with(instead={WEIGHTS: wrong})) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == LATER
    assert f"{WEIGHTS} was damaged on its way: its hash is" in done.stderr
    assert not is_there(tmp_path)
    assert all(WEIGHTS not in name for name in files_in(tmp_path / "models"))


def test_a_wrong_small_file_is_refused(tmp_path: Path) -> None:
    wrong = controlnet()["config.json"].replace(b"silu", b"relu")
    with serving(hub_with(instead={"config.json": wrong})) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == LATER
    assert "config.json was damaged on its way" in done.stderr


@pytest.mark.parametrize("wrong", [weights() + b"x", weights()[:-1]])
def test_a_wrong_size_is_refused_before_it_is_read(tmp_path: Path, wrong: bytes) -> None:
    with serving(hub_with(instead={WEIGHTS: wrong})) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == LATER
    assert f"{WEIGHTS} has a wrong size: the hub lists {SIZE} bytes, but sends {len(wrong)}" in done.stderr


def test_what_an_earlier_try_left_is_thrown_away_if_it_is_damaged(tmp_path: Path) -> None:
    part = tmp_path / "models/.work" / f"controlnet-some--controlnet-{COMMIT[:12]}/originals" / f"{WEIGHTS}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * HALF)
    hub = hub_with()
    with serving(hub) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert ranges(hub) == [f"bytes={HALF}-", None]
    assert f"{WEIGHTS}: what an earlier try left was damaged; it is fetched from the beginning" in done.stderr


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [
        ((403, "GatedRepo"), "it is gated: accept its terms on its page, then set HF_TOKEN", 1),
        ((404, "RepoNotFound"), "there is no such repository, or it is private: correct the path, or set HF_TOKEN", 1),
        ((404, "RevisionNotFound"), f"it has no revision {COMMIT}", 1),
        ((401, ""), "the hub denies access, with status 401: set HF_TOKEN to a token that may read it", 1),
        ((403, ""), "the hub denies access, with status 403: set HF_TOKEN to a token that may read it", 1),
        ((400, ""), "the hub refused, with status 400", 1),
        ((429, ""), "too much has been asked of the hub (status 429): wait some minutes, or set HF_TOKEN", LATER),
        ((500, ""), "the hub is in trouble (status 500): try again later", LATER),
    ],
)
def test_what_the_hub_refuses_is_told(tmp_path: Path, error: tuple[int, str], told: str, code: int) -> None:
    with serving(Hub(error=error)) as url:
        done = run_inside(tmp_path, url, "--patience", "0")
    assert done.returncode == code
    assert done.stderr.startswith(f"engine.controlnet: some/controlnet: {told}")


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ((401, "GatedRepo"), "it is gated: accept its terms"),  # its listing is for everybody
        ((404, "EntryNotFound"), "a file that it lists is not there"),
    ],
)
def test_a_file_that_is_refused_is_told(tmp_path: Path, refusal: tuple[int, str], told: str) -> None:
    with serving(hub_with(refusals={WEIGHTS: [refusal]})) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == 1
    assert told in done.stderr


def test_a_token_opens_what_is_gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(hub_with(token="secret")) as url:
        assert "it is gated: accept its terms" in run_inside(tmp_path, url).stderr
        monkeypatch.setenv("HF_TOKEN", "secret")
        assert run_inside(tmp_path, url).returncode == 0


def test_a_hub_that_never_answers_is_not_waited_for(tmp_path: Path) -> None:
    with serving(Hub(silent=True)) as url:
        done = run_inside(tmp_path, url, timeout=1)
    assert done.returncode == LATER
    assert f"{url} cannot be reached (timed out)" in done.stderr


@pytest.mark.parametrize(
    "page", [b"<html>Log in to this network</html>", b"[]", b'{"id": "some/controlnet", "sha": "x"}']
)
def test_an_answer_of_another_kind_is_told(tmp_path: Path, page: bytes) -> None:
    with serving(Hub(page=page)) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == LATER
    assert f"{url} does not answer as a hub does (" in done.stderr


def test_a_hub_in_trouble_is_asked_again(tmp_path: Path) -> None:
    hub = hub_with(refusals={"config.json": [(429, "")], WEIGHTS: [(503, "")]})
    with serving(hub) as url:
        done = run_inside(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert hub.asked == [Asked("config.json", None), Asked(WEIGHTS, None)]


def test_no_network_is_told(tmp_path: Path) -> None:
    with serving(Hub()) as url:
        pass
    done = run_fetch(tmp_path, HF_ENDPOINT=url)
    assert done.returncode == LATER
    assert done.stderr.startswith(f"engine.controlnet: some/controlnet: {url} cannot be reached (")


def test_a_hub_that_is_gone_in_the_middle_is_told(tmp_path: Path) -> None:
    hub = hub_with(stalls={WEIGHTS: [HALF]})
    with serving(hub) as url:
        process = start(tmp_path, url, "--patience", "1")
        assert hub.stalled.wait(180)
    _, said = process.communicate(timeout=180)
    assert process.returncode == LATER
    assert f"{url} cannot be reached (" in said
    assert "What has come is kept; the same command goes on from there" in said
