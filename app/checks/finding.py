"""The result of a check, and its input. Imports only packages that cannot be missing."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.settings import Settings
    from workers.devices import DeviceChoice
    from workers.nvml import Nvml

MIB, GIB = 2**20, 2**30


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"  # it can serve, though not as well as it might
    MISSING = "missing"  # it cannot serve


@dataclass(frozen=True, slots=True)
class Finding:
    """A result of a check, and what to do about it."""

    check: str
    level: Level
    text: str
    remedy: str = ""


class NotUsableError(Exception):
    """The settings cannot be read; the message says why."""


@dataclass
class Subject:
    """The input of all checks: this machine, with a configuration and an environment."""

    config: Path
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @cached_property
    def settings(self) -> "Settings":
        """The configuration. Raises NotUsableError, and ImportError where packages are missing."""
        from app.settings import SettingsError, load

        try:
            return load(self.config, self.environ)
        except SettingsError as error:
            raise NotUsableError(str(error)) from None

    @cached_property
    def nvml(self) -> "Nvml | None":
        """NVML; None where no driver answers."""
        from workers.nvml import Nvml

        return Nvml.open()

    @cached_property
    def placement(self) -> "DeviceChoice":
        """Which workers would run where."""
        from workers.devices import choose_devices

        try:
            cpu_workers = self.settings.workers.cpu_workers
        except NotUsableError:  # which devices there are can be told all the same
            cpu_workers = 1
        return choose_devices(self.environ, self.nvml, cpu_workers)

    @property
    def on_gpu(self) -> bool:
        return self.placement.on_gpu


def size(number: float) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / MIB:.0f} MiB"
