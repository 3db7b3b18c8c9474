"""Kernels of our own, in Triton, where torch and its compiler need several: `group_norm.py`."""

import logging
from importlib.util import find_spec

import torch

from workers.engine import kernel_probe

_log = logging.getLogger(__name__)


def usable(device: torch.device) -> bool:
    """Whether our kernels run on a device and compute what they should; the log says why not."""
    if device.type != "cuda":
        return False
    reason = kernel_probe.flaw_of("triton", device) if find_spec("triton") else "Triton is not installed"
    if reason:
        _log.warning("engine.speed.kernels: %s; torch's kernels are used instead", reason)
    return not reason
