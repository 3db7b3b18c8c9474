"""The image, built and run by buildah: with its own user, environment and command, and the machine's network."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.service.running import ROOT, descendants, until

TAG = "contour-test"
BUILD_SECONDS = 1800


class CannotBuildError(Exception):
    """No image can be built on this machine; the message says why."""


def build(*flags: str) -> subprocess.CompletedProcess[str]:
    """Build the image. Raises CannotBuildError."""
    command = [str(ROOT / "tests" / "image" / "build"), TAG, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode == os.EX_TEMPFAIL:
        raise CannotBuildError(done.stderr.strip().splitlines()[-1])
    return done


def output(*command: str) -> str:
    """What a command prints. Raises CalledProcessError."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Container:
    """A container of the image. `config` is the image's, as Docker has it; `root` its files, seen from outside."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = json.loads(output("buildah", "inspect", "--type", "image", TAG))["Docker"][
            "config"
        ]
        self._name = output("buildah", "from", "--pull=never", TAG)
        self.root = Path(output("buildah", "mount", self._name))

    def start(self, *command: str, user: str = "", **variables: str) -> "subprocess.Popen[str]":
        """Run a command in it, with its environment and more, without capabilities; as the image's user or another."""
        flags = ["--cap-drop=ALL", *([f"--user={user}"] if user else [])]
        flags += [f"--env={name}={value}" for name, value in variables.items()]
        return subprocess.Popen(
            ["buildah", "run", *flags, self._name, "--", *command],
            env=os.environ | {"BUILDAH_ISOLATION": "chroot"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, user: str = "", **variables: str) -> tuple[int, str]:
        """Run a command to its end: the exit code, and what it printed."""
        with self.start(*command, user=user, **variables) as started:
            printed = started.communicate(timeout=120)[0]
        return started.returncode, printed

    def remove(self) -> None:
        """Leave nothing of it."""
        output("buildah", "rm", self._name)


def process_of(started: "subprocess.Popen[str]", program: str) -> int:
    """The process that runs a program in a container, as the machine numbers it: the first, where there are several."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [pid for pid in sorted(descendants(started.pid)) if _runs(pid, program)]
        return bool(found) or started.poll() is not None

    until(look)
    return found[0]


def _runs(pid: int, program: str) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().rpartition("/")[2] == program
    return False
