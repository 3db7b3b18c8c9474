from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Replace a method: the first call that `when` picks raises, all others do what they did; its name when it has."""

    def replace(owner: object, name: str, error: Exception, when: Callable[..., bool] = lambda *_: True) -> list[str]:
        method, raised = getattr(owner, name), list[str]()

        def instead(*arguments: Any) -> Any:
            if not raised and when(*arguments):
                raised.append(name)
                raise error
            return method(*arguments)

        monkeypatch.setattr(owner, name, instead)
        return raised

    return replace
