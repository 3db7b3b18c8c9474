"""A short turn of each fuzzer, always the same one; `make fuzz` takes longer turns, by coverage."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import h11
import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import seeds, strategies, targets
from tests.fuzz.mutations import mutated, parts, repaired
from tests.fuzz.requests import Request
from tests.fuzz.service import answers
from workers.engine import codec

FEW, MANY = 300, pytest.param(1500, marks=pytest.mark.slow)
REQUESTS = 300  # besides the known attacks
PATIENCE = 600  # seconds for all of them, which take some five; those over sockets some twenty


def fuzz(target: str, examples: int, findings: Path) -> None:
    bounds = ["--examples", str(examples), "--seconds", str(PATIENCE)]
    options = ["--engine", "hypothesis", *bounds, "--findings", str(findings)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{examples} examples" in done.stdout


@pytest.mark.parametrize("examples", [FEW, MANY])
@pytest.mark.parametrize("target", targets.TARGETS)
def test_damaged_input_is_answered_or_refused_in_bounded_time_and_memory(
    target: str, examples: int, tmp_path: Path
) -> None:
    fuzz(target, examples, tmp_path)


@pytest.mark.slow
def test_whatever_a_client_sends_the_service_answers_the_next_one(tmp_path: Path) -> None:
    """All known attacks (`tests.fuzz.regressions`), then requests of any shape, over sockets."""
    fuzz("service", REQUESTS, tmp_path)


def test_drawn_requests_reach_what_is_behind_the_door() -> None:
    """A strategy whose requests are all refused as HTTP would find nothing behind that."""
    drawn: list[Request] = []

    @settings(max_examples=300, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(strategies.requests())
    def draw(request: Request) -> None:
        drawn.append(request)

    draw()
    paths = Counter(request.path.partition("?")[0] for request in drawn)
    assert all(paths[path] >= 3 for path in strategies.POSTS), paths
    assert sum(request.method == "POST" for request in drawn) > len(drawn) / 2


def test_answers_are_read_as_http_and_nothing_else() -> None:
    two = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 404 No\r\n\r\nmore"
    assert [(status, body) for status, _, body in answers(two, "GET")] == [(200, b"ok"), (404, b"more")]
    assert answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HEAD")[0][2] == b""
    with pytest.raises(h11.RemoteProtocolError):
        answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "GET")
    with pytest.raises(h11.RemoteProtocolError):
        answers(b"<html>", "GET")


def test_the_seeds_of_the_fuzzers_are_valid() -> None:
    *images, gif = seeds.images()
    assert gif.startswith(b"GIF")
    assert all(min(codec.decode(image).shape) == 3 for image in images)
    assert all(len(parts(image)) > 1 or image.startswith(b"RIFF") for image in images)
    for body in seeds.bodies():
        assert targets.parsed(body).seed in {5, 2**64 - 1}


def test_damage_gets_past_a_pngs_checksums() -> None:
    good = seeds.png(8, 2)
    broken = good[:16] + b"\0\0\0\x09" + good[20:]  # nine pixels wide
    assert repaired(good) == good
    assert repaired(broken) not in {good, broken}
    assert len(repaired(broken)) == len(broken)


def test_the_same_seed_does_the_same_damage() -> None:
    good = seeds.images()[0]
    damaged = {mutated(good, Random(number)) for number in range(50)}
    assert damaged == {mutated(good, Random(number)) for number in range(50)}
    assert len(damaged) > 45
