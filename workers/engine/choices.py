"""The attention kernels that were chosen on a kind of device, kept in the compiler's cache.

The compiler finds its work of another process only for the same graph, and the chosen kernels are a part of that. Two
that are about as fast would change places from start to start, and from worker to worker.
"""

import json
from pathlib import Path

from workers.folders import replace_file


class Choices:
    """Kernels by shape, in a file; without one they last as long as this."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._kept = self._read()

    def get(self, shape: str) -> str | None:
        """The name of the kernel that was chosen for a shape, if any was."""
        return self._kept.get(shape)

    def keep(self, shape: str, kernel: str) -> None:
        """Keep a choice. A file that cannot be written costs the next process its own measurement."""
        if self._kept.get(shape) == kernel:
            return
        self._kept = self._read() | {shape: kernel}  # other workers write, too
        if self._file is not None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self._file, json.dumps(self._kept).encode())
            except OSError:
                return

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_bytes()) if self._file is not None else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
