"""Secrets in the environment, of which no child of this process needs any.

A process that decodes images may be taken over by a hostile one. What it could then read in its own environment, or in
its parent's under /proc, is all that the person who started the service had there.
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
# What device libraries read in a worker, which none of them keeps secrets in.
_NEEDED = re.compile(r"(CUDA|NVIDIA|NCCL|CUDNN|CUBLAS|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|OMP|MKL|KMP|OV|OPENVINO|LD)_")
# user:password@host. A proxy stays: the exporter of traces reads it each time it sends.
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
_PROXY = re.compile(r"_PROXY$", re.IGNORECASE)


def forget_secrets(environ: MutableMapping[str, str]) -> list[str]:
    """Remove secrets from the environment of this process, so that its children do not get them; their names.

    Call it when everything that reads them has done so. If there were any, this process also becomes non-dumpable.
    """
    names = [name for name, value in environ.items() if _is_secret(name, value)]
    for name in names:
        del environ[name]
    if names:
        # What a process was started with stays readable under /proc/PID/environ, whatever it removes later, and what it
        # has read stays in its memory. The kernel denies both to other processes of the same user, and core dumps, once
        # a process is non-dumpable. Profilers that attach to it are denied too, so only where there is a secret.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))
    return names


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a child that is started before `forget_secrets` can be called."""
    return {name: value for name, value in environ.items() if not _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    if _NEEDED.match(name):
        return False
    if name.startswith("CONTOUR_") and "key" in value.lower():  # a whole section as YAML may hold one
        return True
    return bool(_SECRET.search(name) or (_PASSWORD.search(value) and not _PROXY.search(name)))
