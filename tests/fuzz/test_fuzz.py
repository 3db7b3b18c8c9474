"""A short turn of each fuzzer, always the same one; `make fuzz` takes longer turns, by coverage."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import seeds, targets
from tests.fuzz.mutations import mutated, parts, repaired
from workers.engine import codec

EXAMPLES = 1500
PATIENCE = 120.0  # seconds for all of them, which take some five


@pytest.mark.parametrize("target", targets.TARGETS)
def test_damaged_input_is_answered_or_refused_in_bounded_time_and_memory(target: str, tmp_path: Path) -> None:
    options = ["--engine", "hypothesis", "--examples", str(EXAMPLES), "--seconds", "100", "--findings", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{EXAMPLES} examples" in done.stdout


def test_what_the_fuzzers_start_from_is_good() -> None:
    *pictures, gif = seeds.pictures()
    assert gif.startswith(b"GIF")
    assert all(min(codec.decode(picture).shape) == 3 for picture in pictures)
    assert all(len(parts(picture)) > 1 or picture.startswith(b"RIFF") for picture in pictures)
    for body in seeds.bodies():
        assert targets.parsed(body).seed in {5, 2**64 - 1}


def test_damage_gets_past_a_pngs_checksums() -> None:
    good = seeds.png(8, 2)
    broken = good[:16] + b"\0\0\0\x09" + good[20:]  # nine pixels wide
    assert repaired(good) == good
    assert repaired(broken) not in {good, broken}
    assert len(repaired(broken)) == len(broken)


def test_the_same_seed_does_the_same_damage() -> None:
    good = seeds.pictures()[0]
    damaged = {mutated(good, Random(number)) for number in range(50)}
    assert damaged == {mutated(good, Random(number)) for number in range(50)}
    assert len(damaged) > 45
