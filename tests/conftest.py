"""Folders whose tests are all slow: programs of their own, which few changes touch."""

from pathlib import Path

import pytest

SLOW = {"bench", "chaos", "demo"}


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in SLOW:
            item.add_marker(pytest.mark.slow)
