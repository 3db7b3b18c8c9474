"""Where a figure was measured: it goes into every result."""

import os
import platform

import torch


def environment() -> dict[str, object]:
    """Cores, processor, Python, torch and the GPU, if there is one."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
