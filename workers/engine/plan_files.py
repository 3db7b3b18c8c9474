"""A sampler's plans in a file beside converted networks: reading them off its scheduler imports diffusers.

There is a file for each sampler with its options, and for each version of diffusers.
"""

import logging
import os
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from workers.engine.config import Sampler
from workers.engine.contract import BadOptionError
from workers.engine.plan import HistoryLayout, KeptPlans, Plan, Plans
from workers.engine.runtimes.files import digest
from workers.folders import replace_file

log = logging.getLogger(__name__)

_VERSION = 1
_MOST_STEPS = 64  # that are kept; requests for more are rare, and each such file would be large
_MOST_FILES = 8  # of a model: a new one with each sampler, with each of its options, and with each diffusers
_DAMAGED = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
_LAYOUT = "layout"


def path_in(folder: Path, sampler: Sampler, base: Mapping[str, Any]) -> Path:
    """The file of a sampler; `base` is the configuration of the scheduler that the model came with."""
    key = digest([_VERSION, version("diffusers"), msgspec.to_builtins(sampler), base])
    return folder / f"plans-{key[:16]}.npz"


def keep(plans: Plans, sampler: Sampler, base: Mapping[str, Any], folder: Path) -> None:
    """Write the plans for all numbers of steps that requests may ask for, up to a bound. Raises OSError."""
    arrays: dict[str, Any] = {_LAYOUT: [plans.layout.calls, plans.layout.noises]}
    for steps in {sampler.steps, *range(1, min(plans.most, _MOST_STEPS) + 1)}:
        with suppress(BadOptionError):  # a number that the sampler cannot take
            plan = plans.of(steps)
            values = ((field.name, getattr(plan, field.name)) for field in fields(plan))
            arrays |= {f"{steps}.{name}": value for name, value in values if value is not None}
    written = BytesIO()
    np.savez_compressed(written, **arrays)
    replace_file(path_in(folder, sampler, base), written.getvalue())
    _delete_old(folder)


def kept(sampler: Sampler, base: Mapping[str, Any], folder: Path) -> KeptPlans | None:
    """The layout, and the plans by number of steps, if there is a sound file with the configured number."""
    path = path_in(folder, sampler, base)
    try:
        content = BytesIO(path.read_bytes())
        with np.load(content, allow_pickle=False) as file:
            arrays = dict(file)
        layout = HistoryLayout(*map(int, arrays.pop(_LAYOUT)))
        found: dict[int, dict[str, Any]] = {}
        for name, array in arrays.items():
            steps, _, field = name.partition(".")
            found.setdefault(int(steps), {"estimates": None})[field] = _value(array)
        plans = {steps: Plan(**values) for steps, values in found.items()}
    except _DAMAGED as error:
        log.info("No plans of %s are kept: %s", sampler.name, error)
        return None
    with suppress(OSError):  # a folder that is only read
        os.utime(path)
    return (layout, plans) if sampler.steps in plans else None


def _delete_old(folder: Path) -> None:
    """Delete the files that were used least recently, but for a few. Raises OSError."""
    files = sorted(folder.glob("plans-*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[_MOST_FILES:]:
        file.unlink(missing_ok=True)


def _value(array: Any) -> Tensor | int:
    return int(array) if array.ndim == 0 else torch.from_numpy(array)
