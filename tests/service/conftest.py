"""One running service for the tests that do it no harm."""

from collections.abc import Iterator

import pytest

from tests.demo.test_quality import CALM
from tests.service.running import Service


@pytest.fixture(scope="package")
def echo() -> Iterator[Service]:
    """A service with two echo workers, ready."""
    with Service("echo", ENGINE__OUTPUT__FORMAT="png", SERVER__MAX_PIXELS=1_000_000) as service:
        yield service.wait_until_ready(workers=2)


@pytest.fixture(scope="package")
def demo() -> Iterator[Service]:
    """The small model on one worker, ready."""
    with Service("demo", WORKERS__CPU_WORKERS=1, **CALM) as service:
        yield service.wait_until_ready()
