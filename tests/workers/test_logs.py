"""Log lines: only the service can begin one."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from workers.logs import escaped

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) +[\w.]+: ")
EVIL = "\nFAKE ERROR\r\x1b[2J\x85\u2028\u202e\x00\x7f\ud800"
SCRIPT = """
import logging, sys, threading, warnings
from workers.logs import configure
configure("info", sys.argv[2])
evil = sys.argv[1].encode().decode("unicode_escape")
log = logging.getLogger("contour.test")
log.info("text %s", evil)
log.info(evil)
log.info("stack", stack_info=True)
try:
    raise ValueError(evil)
except ValueError:
    log.exception("failed: %s", evil)
warnings.warn(evil)
"""


@pytest.mark.parametrize(
    "character", ["\n", "\r", "\x1b", "\x00", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\ud800"]
)
def test_unprintable_characters_are_escaped(character: str) -> None:
    assert escaped(f"a{character}b").isprintable()
    assert escaped(f"a{character}b") == "a" + character.encode("unicode_escape").decode() + "b"


def test_printable_text_stays_unchanged() -> None:
    assert escaped("ein rotes Haus, 赤い円 \\ 🎈") == "ein rotes Haus, 赤い円 \\ 🎈"


def test_every_line_begins_as_one_of_ours_or_is_indented() -> None:
    evil = EVIL.encode("unicode_escape").decode()
    done = subprocess.run([sys.executable, "-c", SCRIPT, evil, "human"], capture_output=True, check=True)
    lines = done.stderr.decode().split("\n")
    assert lines.pop() == ""
    assert len(done.stderr.decode().splitlines()) == len(lines)  # by what Unicode calls the end of a line
    assert all(LINE.match(line) or line.startswith("    ") for line in lines), lines
    assert sum(bool(LINE.match(line)) for line in lines) == 5
    assert sum("ValueError" in line for line in lines) >= 1
    assert not set(done.stderr) & {0x1B, 0x0D, 0x00, 0x7F}


def test_every_line_is_an_object_with_all_that_was_said() -> None:
    evil = EVIL.encode("unicode_escape").decode()
    done = subprocess.run([sys.executable, "-c", SCRIPT, evil, "json"], capture_output=True, check=True)
    assert done.stderr.isascii()
    lines = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert [(each["level"], each["logger"]) for each in lines] == [
        ("info", "contour.test"),
        ("info", "contour.test"),
        ("info", "contour.test"),
        ("error", "contour.test"),
        ("warning", "py.warnings"),
    ]
    assert lines[0]["message"] == f"text {EVIL}"
    assert lines[1]["message"] == EVIL
    assert "stack" in lines[2]
    assert lines[3]["traceback"].startswith("Traceback")
    assert all(datetime.fromisoformat(each["time"]).tzinfo is UTC for each in lines)


def test_libraries_do_not_fill_the_log_of_level_debug() -> None:
    script = """
import io, logging
from PIL import Image
from workers.logs import configure
configure("debug")
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "PNG")
Image.open(file).load()
logging.getLogger("contour.test").debug("ours")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert [line.split(": ")[-1] for line in done.stderr.splitlines()] == ["ours"]
