"""For all tests: which ones are slow, coroutines as tests, and how services are started."""

import asyncio
import inspect
import locale
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest

from tests.service.running import CACHE, USUAL

SLOW = {"bench", "chaos", "demo"}  # programs of their own, which few changes touch
LONGEST = "test_openvino.py"  # a file is tested by one process, so this one is begun first
LONGEST_SECONDS = 900.0  # of a coroutine, which else may wait without end
LOCALE = locale.setlocale(locale.LC_ALL)  # before anything has changed it


def pytest_configure(config: pytest.Config) -> None:
    """Services have a cache of this run, which pytest-xdist's processes share, and none in the home folder.

    Their networks are run by torch, unless a test asks for another runtime. OpenVINO would take over in the middle of a
    test, with other rounding, and before that convert for some ten seconds of all cores: `test_openvino.py` tests that.
    """
    if CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="contour-cache-")
        config.add_cleanup(partial(shutil.rmtree, os.environ[CACHE], ignore_errors=True))
    USUAL["ENGINE__RUNTIME"] = "torch"


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(autouse=True)
def _locale_as_it_was() -> None:
    """OpenVINO sets it while it compiles; of two threads that compile at once, one restores what the other has set.

    That may happen after the test that began them, so each test sets it.
    """
    locale.setlocale(locale.LC_ALL, LOCALE)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    asyncio.run(asyncio.wait_for(test, LONGEST_SECONDS))
    return True
