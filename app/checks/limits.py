"""The system's limits: open files and cores."""

import os
import resource
from collections.abc import Iterator

from app.checks.finding import Finding, Level, Subject
from workers.machine import available_cores

# Beside the clients' connections: what Python, the event loop and the log have open, and for each worker its socket,
# its region and its sentinel. 21 were open with one worker, and 5 more for each other one.
OWN_FILES, WORKER_FILES = 64, 8


def check(subject: Subject) -> Iterator[Finding]:
    """Finds how many clients and threads there may be."""
    yield _files(subject)
    yield _cores(subject)


def _files(subject: Subject) -> Finding:
    connections, workers = subject.settings.server.max_connections, len(subject.placement.devices)
    needed = connections + OWN_FILES + WORKER_FILES * workers
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{limit if limit != resource.RLIM_INFINITY else 'any number'} may be open"
    if limit != resource.RLIM_INFINITY and limit < needed:
        text += f", but {connections} connections (server.max_connections) need {needed}"
        return Finding("open files", Level.WARNING, text, f"ulimit -n {needed}, or lower server.max_connections")
    return Finding("open files", Level.OK, f"{text}, {needed} are needed at most")


def _cores(subject: Subject) -> Finding:
    granted, there = available_cores(), os.cpu_count() or 1
    workers = len(subject.placement.devices)
    threads = subject.settings.workers.threads_per_worker(granted, workers)
    text = f"{granted} of {there} for this process; {workers} worker(s) with {threads} thread(s)"
    if workers * threads > granted and not subject.on_gpu:
        return Finding("cores", Level.WARNING, f"{text}: more than cores", "lower workers.threads or .cpu_workers")
    return Finding("cores", Level.OK, text)
