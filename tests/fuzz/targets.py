"""What is fuzzed: bytes go in, and either the right thing comes out or the documented error. All else is a finding."""

from collections.abc import Callable

import numpy as np

from app import generation
from app.errors import Error, Problem, respond
from app.settings import ServerConfig
from workers.engine import codec
from workers.engine.contract import BadPictureError, Task
from workers.engine.header import read_header

Target = Callable[[bytes], None]

MAX_PIXELS = 4_000_000  # a tenth of the service's own limit, so that an example is done quickly
REFUSALS = {Error.BROKEN_JSON, Error.INVALID_FIELD, Error.INVALID_PICTURE, Error.TOO_LARGE}

CONFIG = ServerConfig()


def decoder(data: bytes) -> None:
    """The picture decoder: pixels of the size that the header tells, or BadPictureError."""
    try:
        header = read_header(data)
        pixels = codec.decode(data) if header.width * header.height <= MAX_PIXELS else None
    except BadPictureError as error:
        respond(Problem(Error.INVALID_PICTURE, str(error)))
    else:
        assert pixels is None or pixels.shape == (header.height, header.width, 3)
        assert pixels is None or pixels.dtype == np.uint8


def parser(body: bytes) -> None:
    """The parser of bodies: a task within the limits, or a problem that can be told."""
    try:
        task = parsed(body)
    except Problem as problem:
        if problem.error not in REFUSALS:
            raise
        respond(problem)
    else:
        assert generation.SEED_MIN <= task.seed <= generation.SEED_MAX
        assert len(task.text.encode()) <= 4 * CONFIG.max_text_chars


def parsed(body: bytes) -> Task:
    """What the endpoint makes of a body before it queues anything. Raises Problem."""
    wanted = generation._decode(body)
    task = generation._task(wanted, CONFIG)
    header = generation._header(task, MAX_PIXELS)
    assert b"%d" % wanted.request_id
    assert 0 < header.width * header.height <= MAX_PIXELS
    return task


TARGETS: dict[str, Target] = {"decoder": decoder, "parser": parser}
