"""`prepare` raises only its documented errors, whatever a client sends, with every engine."""

from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.engine import demo
from tests.workers.engine.images import small
from workers.engine.config import EngineConfig
from workers.engine.contract import BadImageError, BadOptionError, EngineOptions, Format, OutOfMemoryError, Task
from workers.engine.echo import EchoEngine
from workers.engine.engine import DiffusionEngine

SAID = (BadImageError, BadOptionError, OutOfMemoryError)
IMAGES = [*small(), demo.image(1, 1), demo.image(300, 1)]


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


# The whole range of each option in the API, and text with whatever a string of Python's can hold.
TEXTS = st.text(max_size=300) | st.text(st.sampled_from("a \0\ud800\udfff\u202e\U0010ffff\U0001f388"), max_size=50)
OPTIONS = st.builds(
    EngineOptions,
    negative=maybe(TEXTS),
    steps=maybe(st.integers(1, 10) | st.integers(1, 1000)),
    guidance_scale=maybe(st.floats(0, 50)),
    control_scale=maybe(st.floats(0, 2)),
    canny_low=maybe(st.integers(1, 2000)),
    canny_high=maybe(st.integers(1, 2000)),
    temperature=st.floats(0, 1, exclude_min=True),
    format=maybe(st.sampled_from(get_args(Format))),
    previews=st.booleans(),
)
TASKS = st.builds(
    Task,
    image=st.sampled_from([*IMAGES, b"", b"not an image"]),
    text=TEXTS,
    seed=st.integers(-(2**63), 2**64 - 1),
    options=OPTIONS,
)


@pytest.fixture(scope="module")
def diffusion() -> DiffusionEngine:
    """A model with guidance; each number of steps is planned anew, which takes a while."""
    return demo.engine(replace(demo.CONFIG, sampler=replace(demo.CONFIG.sampler, max_steps=8)))


@settings(max_examples=300, deadline=None)
@given(task=TASKS)
def test_any_task_is_prepared_or_refused(diffusion: DiffusionEngine, task: Task) -> None:
    with suppress(*SAID):
        prepared = diffusion.prepare(task)
        assert [len(prompt) for prompt in prepared.prompts] == [77, 77]
        assert prepared.noise.isfinite().all()
        assert all(0 < scale < float("inf") or scale == 0 for scale in prepared.scales)


@pytest.mark.parametrize("text", ["\ud800", "a \udfff b"])
def test_half_a_surrogate_pair_is_refused(diffusion: DiffusionEngine, text: str) -> None:
    for task in (demo.task(text=text), demo.task(negative=text)):
        with pytest.raises(BadOptionError, match="half a surrogate pair"):
            diffusion.prepare(task)


@settings(max_examples=300, deadline=None)
@given(task=TASKS)
def test_the_echo_engine_prepares_or_refuses_any_task(task: Task) -> None:
    with suppress(*SAID):
        assert EchoEngine(EngineConfig(kind="echo", slots=1)).prepare(task).steps >= 1
