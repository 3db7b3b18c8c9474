"""`python -m tests.fuzz decoder --seconds 600`: fuzz the image decoder, the parser of bodies, or the whole service.

By coverage with atheris where it is installed, else with Hypothesis. An input that takes more than MEMORY or TIMEOUT
ends the run as one that raises does. It is left in the folder `--findings`, and `--replay FILE` runs it alone. The
service runs as a process, is sent requests over sockets, and is examined after each: see `tests.fuzz.service`.
"""

import argparse
import faulthandler
import importlib.util
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import seeds, service
from tests.fuzz.mutations import mutated

TIMEOUT = 10  # seconds that an input may take: they are small, and the slowest takes some hundredths
MEMORY = 2**30  # bytes that may be mapped on top of what is after all imports
EXAMPLES = 2000  # of Hypothesis between two looks at the clock
SEEDS = {"decoder": seeds.images, "parser": seeds.bodies}


def main(arguments: Sequence[str]) -> int:
    """Fuzz; 0 when nothing was found."""
    options = _options().parse_args(arguments)
    warnings.simplefilter("ignore")  # Pillow warns of damaged files
    options.findings.mkdir(parents=True, exist_ok=True)
    if options.target == "service":
        service.fuzz(options)
    elif options.replay is not None:
        Bounded(options.target)(options.replay.read_bytes())
    elif options.engine == "atheris":
        _by_coverage(options)
    else:
        _by_property(options)
    return 0


def _options() -> argparse.ArgumentParser:
    best = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=(*SEEDS, "service"))
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), default=best)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--examples", type=int, help="stop after so many; Hypothesis only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "contour-fuzz")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    return parser


class Bounded:
    """A target whose inputs are each given TIMEOUT, and all of them MEMORY; the last input is kept in a file."""

    def __init__(self, name: str, last: Path | None = None) -> None:
        from tests.fuzz.targets import TARGETS

        self._target = TARGETS[name]
        self._last = last
        self._target(b"")
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))

    def __call__(self, data: bytes) -> None:
        if self._last is not None:
            self._last.write_bytes(data)
        faulthandler.dump_traceback_later(TIMEOUT, exit=True)
        self._target(data)
        faulthandler.cancel_dump_traceback_later()


def _by_property(options: argparse.Namespace) -> None:
    target = Bounded(options.target, options.findings / f"{options.target}-last")
    good = SEEDS[options.target]()
    changed = st.builds(
        lambda data, random: mutated(data, Random(random)), st.sampled_from(good), st.integers(0, 2**64)
    )
    ends = time.monotonic() + options.seconds
    turn, done = options.seed, 0
    while time.monotonic() < ends and done < (options.examples or done + 1):
        count = min(EXAMPLES, options.examples or EXAMPLES)
        _examine(target, st.binary(max_size=300) | changed, turn, count)
        turn, done = turn + 1, done + count
    print(f"{options.target}: {done} examples, nothing found")


def _examine(target: Bounded, inputs: st.SearchStrategy[bytes], turn: int, count: int) -> None:
    @seed(turn)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def examine(data: bytes) -> None:
        target(data)

    examine()


def _by_coverage(options: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=["PIL", "workers.engine", "app"]):
        from tests.fuzz.targets import TARGETS
    corpus = options.findings / f"{options.target}-corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(SEEDS[options.target]()):
        (corpus / f"seed-{number}").write_bytes(data)

    def change(data: bytes, max_size: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return mutated(data, random)[:max_size]

    flags = [
        f"-max_total_time={options.seconds}",
        f"-timeout={TIMEOUT}",
        f"-rss_limit_mb={MEMORY // 2**20}",
        f"-seed={options.seed}",
        f"-artifact_prefix={options.findings}/{options.target}-",
        "-max_len=65536",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], TARGETS[options.target], custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
