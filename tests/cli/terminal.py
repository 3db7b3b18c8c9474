"""Commands on a terminal of their own, as a person runs them: Ctrl+C reaches the whole group of processes."""

import fcntl
import os
import pty
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.service.running import PATIENCE, ROOT, surroundings

CTRL_C = b"\x03"
PYTHON = [sys.executable, "-m"]


class Terminal:
    """A command in front of a terminal. `with` ends it, if it has not ended."""

    def __init__(self, command: Sequence[object], **overrides: object) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))  # rows, columns
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=surroundings(**overrides),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - it is what a terminal is
        )
        os.close(theirs)
        self._read = bytearray()
        self._reader = threading.Thread(target=self._keep_reading, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        os.close(self._ours)

    @property
    def shown(self) -> str:
        """What it has shown so far."""
        return self._read.decode(errors="replace")

    def interrupt(self) -> None:
        """Press Ctrl+C."""
        os.write(self._ours, CTRL_C)

    def wait(self) -> int:
        """The exit code, when all is shown."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def _keep_reading(self) -> None:
        try:
            while piece := os.read(self._ours, 65536):
                self._read += piece
        except OSError:  # the last process has let go of it
            pass
