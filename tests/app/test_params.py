"""The table of request options is whole, and says the same as the requests and the configurations."""

from collections import Counter
from pathlib import Path

import pytest

from app.params import PARAMS, GenerationRequest, RequestFields, Rules
from app.settings import load
from workers.engine.contract import AS_CONFIGURED, resolved

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_every_field_has_a_row_and_every_row_is_a_field() -> None:
    assert {*RequestFields.__struct_fields__, *GenerationRequest.__struct_fields__} == PARAMS.keys()


def test_a_name_means_one_option() -> None:
    flags = Counter(flag for param in PARAMS.values() for flag in param.flags)
    elsewhere = Counter(name for param in PARAMS.values() for name in param.elsewhere)
    assert max(flags.values()) == max(elsewhere.values()) == 1
    assert not elsewhere.keys() & PARAMS.keys()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_defaults_are_within_their_ranges(config: Path) -> None:
    rules = Rules.of(load(config, {}))
    assert all(rules.defaults[name] in allowed for name, allowed in rules.ranges.items() if name in rules.defaults)
    assert None not in resolved(AS_CONFIGURED, rules.engine)
