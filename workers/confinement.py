"""Limits what the processes that decode images can do.

A hostile image may take over the process that decodes it, through an error in one of the C libraries. This bounds what
it can do then. Workers and the edge process lose the way to more privileges, leave no core dumps, which would hold
clients' images, and get no secrets in their environment. The edge process needs nothing but memory, its socket and
standard error once everything is imported, so it also gets limits on memory, descriptors and processes, and a filter of
system calls.

Workers get none of these: CUDA maps more address space than there is memory and opens device files at any time, and
compilers start processes.
"""

import ctypes
import errno
import logging
import os
import re
import resource
from collections.abc import Mapping, MutableMapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

log = logging.getLogger("contour.confinement")

PR_SET_NO_NEW_PRIVS = 38  # <linux/prctl.h>
PROT_EXEC = 4  # <sys/mman.h>
DESCRIPTORS = 32  # more than the edge process has open
NO_FILTER = "The edge process runs without a seccomp filter: %s"

# What strace shows of the edge process over images of every format; and clocks and random numbers, for which the C
# library sometimes has to ask the kernel. All else fails with EPERM: the process opens no file and no socket, starts no
# process or thread, and signals or inspects no other process.
ALLOWED = (
    *("read", "write", "recvfrom", "sendto", "close"),
    *("brk", "munmap", "mremap", "madvise", "futex", "sched_yield", "sched_getaffinity"),
    *("clock_gettime", "clock_nanosleep", "gettimeofday", "getrandom", "getpid", "gettid"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "exit", "exit_group"),
)
ALLOWED_UNLESS_EXECUTABLE = ("mmap", "mprotect")


def drop_privileges() -> None:
    """Give up setuid programs and core dumps.

    Call it before any thread is started: threads inherit it, and those that run already do not get it.
    """
    # prctl reads five arguments whatever the option, and the kernel insists that the last three are zero.
    if ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        log.warning("This kernel has no PR_SET_NO_NEW_PRIVS; a process that decodes images can run setuid programs")
    # One byte holds no core file. With a limit of 0 the kernel would still pipe the dump to a program such as
    # systemd-coredump; it treats 1 as "no dump at all" (do_coredump in fs/coredump.c).
    _limit(resource.RLIMIT_CORE, 1)


def confine(memory: int) -> None:
    """Limit this process to `memory` more bytes, and to the system calls of one that only computes.

    Call it when everything is imported: nothing can be opened afterwards. Where libseccomp is missing or the kernel
    refuses the filter, the limits alone hold, and the log says so.
    """
    seccomp = _seccomp()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
    _limit(resource.RLIMIT_NOFILE, DESCRIPTORS)
    _limit(resource.RLIMIT_NPROC, 0)  # neither processes nor threads; root is exempt from it
    if seccomp is None:
        return
    try:
        _load_filter(seccomp)
    except OSError as error:
        log.warning(NO_FILTER, error)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _seccomp() -> ModuleType | None:
    try:
        return import_module("pyseccomp")  # it runs ldconfig, to find libseccomp
    except (ImportError, RuntimeError, OSError) as error:
        log.warning(NO_FILTER, error)
        return None


def _load_filter(seccomp: ModuleType) -> None:
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)  # all threads, should a library have started some
    for name in ALLOWED:
        rules.add_rule(seccomp.ALLOW, name)
    for name in ALLOWED_UNLESS_EXECUTABLE:
        rules.add_rule(seccomp.ALLOW, name, seccomp.Arg(2, seccomp.MASKED_EQ, PROT_EXEC, 0))
    rules.add_rule(seccomp.ALLOW, "tgkill", seccomp.Arg(0, seccomp.EQ, os.getpid()))  # abort() signals itself
    rules.load()


# ------------------------------------------------------------------------------------------- secrets in the environment


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
