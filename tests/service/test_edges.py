"""`POST /edges`: right answers, clear errors, and nothing that can be sent there does the service any harm."""

import base64
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.fuzz.seeds import file_of
from tests.service.raw import connect, head
from tests.service.running import PATIENCE, Service, alive, descendants, until
from tests.workers.contours import drawing, expected, files, pixels_of, size_of
from workers.engine.config import Canny, Sizing

SIZING = Sizing(short_side=192, long_side=384)
CANNY = Canny(low=60, high=150)
IMAGE = file_of(drawing(200, 150), "PNG")
FILES = files()
MAX_PIXELS = 1_000_000
KEYS = ["a" * 32, "b" * 32]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    sizing = {"ENGINE__SIZE__SHORT_SIDE": SIZING.short_side, "ENGINE__SIZE__LONG_SIDE": SIZING.long_side}
    canny = {"ENGINE__CANNY__LOW": CANNY.low, "ENGINE__CANNY__HIGH": CANNY.high}
    with Service("echo", **sizing, **canny, SERVER__MAX_PIXELS=MAX_PIXELS, WORKERS__CPU_WORKERS=1) as service:
        yield service.wait_until_ready()


def ask(service: Service, image: bytes = IMAGE, query: Mapping[str, str | int] | None = None) -> httpx.Response:
    return service.client.post("/edges", content=image, params=query, headers={"Content-Type": "image/png"})


def ask_in_json(service: Service, **fields: object) -> httpx.Response:
    return service.client.post("/edges", json={"input_image_base64": base64.b64encode(IMAGE).decode()} | fields)


def assert_right(answer: httpx.Response, image: bytes = IMAGE, canny: Canny = CANNY) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png"), answer.text
    assert np.array_equal(pixels_of(answer.content), expected(image, size_of(image, SIZING), canny))


def edge_process(service: Service) -> int:
    """The process that finds edges: it is there after an answer."""
    assert ask(service).status_code == 200
    return int(re.findall(r"the edge process \(process (\d+)\)", "".join(service.log))[-1])


@contextmanager
def frozen(service: Service) -> Iterator[int]:
    """Its process takes no order."""
    process = edge_process(service)
    os.kill(process, signal.SIGSTOP)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("image", FILES.values(), ids=FILES.keys())
def test_edges_are_those_that_the_model_would_see(service: Service, image: bytes) -> None:
    assert_right(ask(service, image), image)


@pytest.mark.parametrize("low", [None, 10, 140, 2000])
@pytest.mark.parametrize("high", [None, 1, 200])
def test_thresholds_come_with_the_request_or_from_the_configuration(
    service: Service, low: int | None, high: int | None
) -> None:
    query = {name: value for name, value in (("canny_low", low), ("canny_high", high)) if value is not None}
    wanted = Canny(low=CANNY.low if low is None else low, high=CANNY.high if high is None else high)
    assert_right(ask(service, query=query), canny=wanted)


def test_thresholds_matter(service: Service) -> None:
    contents = {ask(service, query={"canny_low": low, "canny_high": 2 * low}).content for low in (10, 100, 1000)}
    assert len(contents) == 3


def test_an_image_may_come_in_json_and_the_path_with_a_slash(service: Service) -> None:
    assert_right(ask_in_json(service))
    assert_right(ask_in_json(service, input_image_base64="data:image/png;base64," + base64.b64encode(IMAGE).decode()))
    assert_right(service.client.post("/edges/", content=IMAGE, headers={"Content-Type": "image/jpeg"}))


# -------------------------------------------------------------------------------------------------------------- errors


def assert_problem(answer: httpx.Response, status: int, slug: str, field: str | None = None) -> None:
    problem = answer.json()
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert (problem["type"], problem["status"]) == (f"urn:contour:problem:{slug}", status)
    assert [each["field"] for each in problem.get("errors", [])] == ([field] if field else [])
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("name", ["canny_low", "canny_high"])
@pytest.mark.parametrize("value", ["0", "2001", "-1", "much", "1.5"])
def test_thresholds_out_of_range_are_refused_by_name(service: Service, name: str, value: str) -> None:
    assert_problem(ask(service, query={name: value}), 422, "invalid-field", name)


def test_a_threshold_that_is_not_set_is_as_configured(service: Service) -> None:
    configured = ask(service).content
    for query in ({"canny_low": ""}, {"canny_low": "", "canny_high": ""}, {"canny_high": "null"}):
        assert ask(service, query=query).content == configured


def test_thresholds_beside_the_image_in_json_count(service: Service) -> None:
    encoded = {"input_image_base64": base64.b64encode(IMAGE).decode()}
    query = ask(service, query={"canny_low": "20", "canny_high": "60"}).content
    assert query != ask(service).content
    for both in ({"canny_low": 20, "canny_high": 60}, {"canny_low": "20", "canny_high": "60"}):
        assert service.client.post("/edges", json=encoded | both).content == query
    unset = service.client.post("/edges", json=encoded | {"canny_low": None, "canny_high": None})
    assert unset.content == ask(service).content
    refused = service.client.post("/edges", json=encoded | {"canny_low": 0})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "canny_low")


@pytest.mark.parametrize(
    "image", [b"", b"no image", IMAGE[:100], file_of(drawing(20, 20), "GIF")], ids=["none", "text", "cut", "GIF"]
)
def test_bad_images_are_refused(service: Service, image: bytes) -> None:
    assert_problem(ask(service, image), 422, "invalid-image")
    encoded = base64.b64encode(image).decode()
    assert_problem(ask_in_json(service, input_image_base64=encoded), 422, "invalid-image", "input_image_base64")


def test_bombs_are_refused_by_their_header(service: Service) -> None:
    with frozen(service):  # so nothing can have decoded them
        bomb = IMAGE[:16] + (1001).to_bytes(4, "big") + (1000).to_bytes(4, "big") + IMAGE[24:]
        assert_problem(ask(service, bomb), 413, "too-large")
        encoded = base64.b64encode(bomb).decode()
        assert_problem(ask_in_json(service, input_image_base64=encoded), 413, "too-large", "input_image_base64")
        assert_problem(ask(service, bytes(17 * 2**20)), 413, "too-large")


def test_bodies_of_other_kinds_are_refused(service: Service) -> None:
    def post(body: bytes, kind: str) -> httpx.Response:
        return service.client.post("/edges", content=body, headers={"Content-Type": kind})

    assert_problem(post(IMAGE, "application/octet-stream"), 415, "unsupported-media-type")
    assert_problem(post(IMAGE, "application/json"), 400, "malformed-json")
    assert_problem(post(b"{}", "application/json"), 422, "invalid-field", "input_image_base64")
    assert_problem(ask_in_json(service, input_image_base64="?"), 422, "invalid-field", "input_image_base64")
    assert_problem(service.client.get("/edges"), 405, "method-not-allowed")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEYS[1])
    keys = {"SERVER__API_KEY": KEYS[0], "SERVER__API_KEY_FILE": file}
    with Service("echo", **keys, WORKERS__CPU_WORKERS=1, SERVER__LOG_LEVEL="debug") as service:
        yield service


def test_a_key_is_asked_for_where_there_are_keys(guarded: Service) -> None:
    assert_problem(ask(guarded), 401, "unauthorized")
    guarded.client.headers["X-API-Key"] = KEYS[0]
    assert ask(guarded).status_code == 200
    assert guarded.sample("contour_edges_total", outcome="unauthorized") == 1
    for process in guarded.descendants():  # the workers and the process that finds edges, which decode images
        assert KEYS[0].encode() not in Path(f"/proc/{process}/environ").read_bytes()


def test_requests_are_counted_apart_and_logged_as_all_are(service: Service) -> None:
    def counted() -> list[float]:
        names = [("contour_edges_total", "done"), ("contour_edges_total", "invalid-image")]
        return [service.sample(name, outcome=outcome) for name, outcome in names]

    before, images = counted(), service.sample("contour_requests_total")
    timed = service.sample("contour_request_duration_seconds_count")
    ask(service)
    ask(service, b"no image")
    assert counted() == [before[0] + 1, before[1] + 1]
    assert service.sample("contour_requests_total") == images
    assert service.sample("contour_request_duration_seconds_count") == timed
    line = re.compile(r"contour\.request: \S+ POST /edges 422 invalid-image .* client 127\.0\.0\.1")
    until(lambda: any(map(line.search, service.log)))


# -------------------------------------------------------------------------------------------------------- deaths, load


def test_a_process_that_is_killed_in_the_middle_is_replaced(service: Service) -> None:
    with frozen(service) as process, ThreadPoolExecutor() as clients:
        answer = clients.submit(ask, service)
        time.sleep(0.2)  # it is asked by then, else the next one is
        os.kill(process, signal.SIGKILL)
        assert_right(answer.result(PATIENCE))
    assert edge_process(service) != process
    assert not Path(f"/proc/{process}").exists()


def test_many_at_once_are_answered_or_told_to_come_later_and_images_are_made_meanwhile(service: Service) -> None:
    with ThreadPoolExecutor(30) as clients:
        with frozen(service):
            answers = [clients.submit(ask, service) for _ in range(30)]
            until(lambda: sum(answer.done() for answer in answers) >= 21)  # one is asked for and eight wait
            assert service.generate().status_code == 200
            assert service.client.get("/healthz").status_code == 200
        done = [answer.result(PATIENCE) for answer in answers]
    codes = Counter(answer.status_code for answer in done)
    assert codes.keys() == {200, 503}
    assert codes[503] >= 21
    for answer in done:
        if answer.status_code == 503:
            assert_problem(answer, 503, "busy")
            assert 1 <= int(answer.headers["Retry-After"]) < PATIENCE
        else:
            assert_right(answer)


def test_a_client_with_a_dozen_connections_leaves_another_its_turns(guarded: Service) -> None:
    with ThreadPoolExecutor(24) as clients:
        guarded.client.headers["X-API-Key"] = KEYS[0]
        with frozen(guarded):
            asked = []
            for key, refused in zip(KEYS, (3, 8), strict=True):  # one is in hand, eight and four wait
                guarded.client.headers["X-API-Key"] = key
                these = [clients.submit(ask, guarded) for _ in range(12)]
                until(partial(lambda those, enough: sum(each.done() for each in those) >= enough, these, refused))
                asked += these
            told = len(guarded.log)
        assert Counter(each.result().status_code for each in asked) == {200: 13, 503: 11}
        until(lambda: len(answered(guarded.log[told:])) == 13)
    order = answered(guarded.log[told:])
    assert order == order[:2] * 4 + order[:1] * 5
    assert order[0] != order[1]


def answered(log: list[str]) -> list[str]:
    """The numbers of the keys whose clients got edges, in that order."""
    return re.findall(r"POST /edges 200 done .* client key (\d)", "".join(log))


def test_the_process_is_confined(service: Service) -> None:
    process = Path(f"/proc/{edge_process(service)}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert not re.search("^Max (address space|processes) +unlimited", (process / "limits").read_text(), re.MULTILINE)
    assert "without a filter" not in "".join(service.log)


def test_clients_that_leave_make_room(service: Service) -> None:
    gone = partial(service.sample, "contour_edges_total", outcome="abandoned")
    request = head("Content-Type: image/png", f"Content-Length: {len(IMAGE)}", path="/edges") + IMAGE
    before = gone()
    with frozen(service):
        for number in range(1, 20):  # more than may wait at a time
            with connect(service) as connection:
                connection.sendall(request)
            until(partial(lambda so_many: gone() == so_many, before + number))
    assert_right(ask(service))


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_service_ends(sig: signal.Signals) -> None:
    with Service("echo") as service:
        process = edge_process(service)
        everything = descendants(service.process.pid)
        assert process in everything
        assert service.stop(sig) == (0 if sig is signal.SIGTERM else -sig)
        until(lambda: not any(alive(each) for each in everything))


def test_nothing_new_is_begun_while_the_service_drains() -> None:
    with (
        Service("echo", ENGINE__ECHO__STEPS=100, ENGINE__ECHO__STEP_SECONDS=0.05) as service,
        ThreadPoolExecutor() as it,
    ):
        making = it.submit(service.wait_until_ready().generate)
        until(lambda: service.sample("contour_jobs_running") == 1)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.sample("contour_draining") == 1)
        answer = ask(service)
        assert_problem(answer, 503, "draining")
        assert answer.headers["Connection"] == "close"
        assert making.result().status_code == 200
