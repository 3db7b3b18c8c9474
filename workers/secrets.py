"""Removal of secrets from the environment, as no child of this process needs any.

A hostile image may take over the process that decodes it. That process could then read its own environment, and its
parent's under /proc, with all that the person who started the service had there.
"""

import ctypes
import re
from collections.abc import Mapping, MutableMapping

PR_SET_DUMPABLE = 4  # <linux/prctl.h>

# A word of the name, or the end of one: API_KEY, HF_TOKEN, PGPASSWORD, OTEL_EXPORTER_OTLP_HEADERS; not
# TOKENIZERS_PARALLELISM or KEYBOARD_LAYOUT.
_SECRET = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|HEADER|AUTH|_PWD|_PAT|_DSN)S?(_|$)", re.IGNORECASE
)
# What device libraries read in a worker. None of these is a secret.
_NEEDED = re.compile(r"(CUDA|NVIDIA|NCCL|CUDNN|CUBLAS|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|OMP|MKL|KMP|OV|OPENVINO|LD)_")
# user:password@host. A proxy stays: the exporter of traces reads it each time it sends.
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
_PROXY = re.compile(r"_PROXY$", re.IGNORECASE)


def forget_secrets(environ: MutableMapping[str, str]) -> list[str]:
    """Remove secrets from the environment of this process, so that its children do not get them. Return their names.

    Call it after everything that reads them. If there were any, this process also becomes non-dumpable.
    """
    names = [name for name, value in environ.items() if _is_secret(name, value)]
    for name in names:
        del environ[name]
    if names:
        # The environment that a process was started with stays readable under /proc/PID/environ, and what it has read
        # stays in its memory. Once a process is non-dumpable, the kernel denies both to other processes of the same
        # user, and writes no core dump. It also denies profilers, so this is done only where there is a secret.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))
    return names


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a child that is started before `forget_secrets` can be called."""
    return {name: value for name, value in environ.items() if not _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    if _NEEDED.match(name):
        return False
    if name.startswith("CONTOUR_") and "key" in value.lower():  # a whole section as YAML may hold one
        return True
    return bool(_SECRET.search(name) or (_PASSWORD.search(value) and not _PROXY.search(name)))
