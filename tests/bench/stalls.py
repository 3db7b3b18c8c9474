"""How long any one request stalls the event loop: the slowest answer of `/healthz` while each class of it is sent.

    python -m tests.bench.stalls [--times 5] [--only form] [--where] [--out FILE]

The echo service gets the requests of `tests.fuzz.hostile` from a process of its own; `/healthz` is asked every 2 ms.
Of each class there are the worst of all times, the median of the worst of each, and the most processor time that the
service used within one turn of its loop (`tests.bench.watched`). On a machine with other work, wall time is no less
than what it is without requests, which is measured first; processor time is then the better figure. It counts all
threads, as one that holds the interpreter's lock stalls the loop too. "peak MiB" is the most memory that the process of
HTTP had meanwhile. `--where` also prints where the loop was.
"""

import argparse
import json
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.bench.environment import environment
from tests.bench.watched import MARK, processor_ms
from tests.fuzz.hostile import HOSTILE
from tests.fuzz.polling import HealthPoller
from tests.fuzz.requests import Request, send
from tests.service.running import Service

GOAL_MS = 50
PATIENCE = 120.0  # seconds, for one answer
QUIET_SECONDS = 5.0  # before the first class
AFTER_SECONDS = 0.3  # of a request, in which its remains are freed
SHOWN = 3  # of the stalls of a class, the longest, with --where
_built: dict[str, Request] = {}


class WatchedService(Service):
    """Logs where its event loop stalls."""

    module = "tests.bench.watched"


def main() -> None:
    """Measure, and print JSON; all times in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="each request is sent")
    parser.add_argument("--only", default="", help="classes whose name contains this")
    parser.add_argument("--where", action="store_true", help="print where the loop was when it stalled")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    names = [name for name in HOSTILE if options.only in name]
    with WatchedService("echo") as service, HealthPoller(service.url) as poller, _sender() as sender:
        service.wait_until_ready(workers=2)
        sender.submit(build, names[0]).result()
        idle = _quiet(poller)
        print(f"{'without requests':<50} worst {idle['worst']:>7} ms, p99.9 {idle['p99.9']:>7} ms", file=sys.stderr)
        classes = {}
        for name in names:
            classes[name] = _measure(name, service, poller, sender, options.times)
            for line in _stalls(service)[-SHOWN:] if options.where else []:
                print("    ", line.rstrip(), file=sys.stderr)
    result = {
        "without requests": idle,
        f"above {GOAL_MS} ms of processor time": [name for name in classes if classes[name]["processor"] > GOAL_MS],
        "classes": classes,
        "environment": environment(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _sender() -> ProcessPoolExecutor:
    """A process that sends, so that the poller has its interpreter for itself."""
    return ProcessPoolExecutor(1, get_context("spawn"))


def build(name: str) -> None:
    """In that process: have a request there before it is timed; only the last is kept."""
    _built.clear()
    _built[name] = HOSTILE[name]()


def send_built(url: str, name: str) -> int:
    """In that process: send it once. The status of the answer, 0 where there was none."""
    answer = send(url, _built[name].wire, PATIENCE)
    return int(answer[9:12]) if answer else 0


def _quiet(poller: HealthPoller) -> dict[str, float]:
    since = time.monotonic()
    time.sleep(QUIET_SECONDS)
    seconds = [poll.seconds for poll in poller.polls if poll.sent >= since]
    return {
        "polls": len(seconds),
        "median": _ms(statistics.median(seconds)),
        "p99.9": _ms(statistics.quantiles(seconds, n=1000)[-1]),
        "worst": _ms(max(seconds)),
    }


def _measure(
    name: str, service: Service, poller: HealthPoller, sender: ProcessPoolExecutor, times: int
) -> dict[str, Any]:
    sender.submit(build, name).result()
    service.log.clear()
    forget_peak(service.process.pid)
    stalls, statuses = [], set()
    for _ in range(times):
        began = time.monotonic()
        statuses.add(sender.submit(send_built, service.url, name).result())
        time.sleep(AFTER_SECONDS)
        stalls.append(_ms(poller.worst(began)))
    found = {
        "worst": max(stalls),
        "median": round(statistics.median(stalls), 1),
        "processor": max([0, *map(processor_ms, _stalls(service))]),
        "peak MiB": peak_mib(service.process.pid),
        "statuses": sorted(statuses),
    }
    print(f"{name:<50} {'  '.join(f'{key} {value}' for key, value in found.items())}", file=sys.stderr)
    return found


def forget_peak(process: int) -> None:
    """Let the peak of a process's memory begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def peak_mib(process: int) -> int:
    """The most memory that a process has had since then."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found
    return int(found[1]) // 1024


def _stalls(service: Service) -> list[str]:
    """The lines of the log that tell of stalls, in the order of their processor times."""
    return sorted((line for line in service.log if MARK in line), key=processor_ms)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)


if __name__ == "__main__":
    main()
