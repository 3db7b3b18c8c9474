"""The real server under faults: SIGKILL, SIGSTOP and SIGTERM of workers, SIGKILL and SIGTERM of the server, engines
that exit, hang, run out of memory and answer twice, clients that are slow, rude or leave, and a full queue.

    python -m tests.chaos --seconds 3600 --seed 1 --out chaos.json

A seed repeats what is asked and done, and when, as far as processes allow. Exit code 1: a promise was broken, and each
line that begins with BROKEN says which. The logs of all servers lie beside the result then.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.bench.environment import environment
from tests.chaos.profiles import PROFILES
from tests.chaos.run import Run
from tests.chaos.summary import lines, summary


def main() -> int:
    """Run, print what happened, and write it down."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=3600, help="of traffic and faults; about a minute comes on top"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--profile", choices=sorted(PROFILES), default="echo", help="echo: no model; demo: the small one"
    )
    parser.add_argument("--out", type=Path, default=Path("chaos.json"), help="where the JSON goes")
    options = parser.parse_args()
    run = Run(options.profile, options.seed, options.seconds)
    broken = asyncio.run(run.run())
    result = {**summary(run), "environment": environment()}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(lines(result)))
    for each in broken:
        print(f"BROKEN: {each}")
    if broken:
        _keep_logs(run, options.out)
    return int(bool(broken))


def _keep_logs(run: Run, out: Path) -> None:
    for life in run.lives.all:
        path = out.with_suffix(f".{life.number}.log")
        path.write_text("".join(life.service.log))
        print(f"the log of life {life.number}, which began at {life.began:.2f} s: {path}")


if __name__ == "__main__":
    sys.exit(main())
