"""One running service for the tests that do it no harm."""

from collections.abc import Iterator

import pytest

from tests.service.running import Service


@pytest.fixture(scope="package")
def echo() -> Iterator[Service]:
    """A service with two echo workers, ready."""
    with Service("echo", ENGINE__OUTPUT__FORMAT="png", SERVER__MAX_PIXELS=1_000_000) as service:
        yield service.wait_until_ready(workers=2)
