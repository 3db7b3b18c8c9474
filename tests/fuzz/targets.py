"""Fuzzing targets: bytes go in, and a correct result or a documented error comes out. Anything else is a finding."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from app.errors import Error, Problem, respond
from app.params import SEED_MAX, SEED_MIN, GenerationParams, GenerationRequest, OutputOptions, Rules
from app.parsing import bodies, input_image
from app.parsing.json import parsed_json
from app.settings import Settings
from workers.engine import codec
from workers.engine.contract import BadImageError
from workers.engine.header import read_header

Target = Callable[[bytes], None]

MAX_PIXELS = 4_000_000  # a tenth of the service's own limit, so that an example is done quickly
REFUSALS = {Error.MALFORMED_JSON, Error.INVALID_FIELD, Error.INVALID_IMAGE, Error.TOO_LARGE}

DECODER = msgspec.json.Decoder(GenerationRequest, strict=False)
RULES = replace(Rules.of(Settings()), max_pixels=MAX_PIXELS)


def decoder(data: bytes) -> None:
    """The image decoder: pixels of the size that the header tells, or BadImageError."""
    try:
        header = read_header(data)
        pixels = codec.decode(data) if header.width * header.height <= MAX_PIXELS else None
    except BadImageError as error:
        respond(Problem(Error.INVALID_IMAGE, str(error)))
    else:
        assert pixels is None or pixels.shape == (header.height, header.width, 3)
        assert pixels is None or pixels.dtype == np.uint8


def parser(body: bytes) -> None:
    """The parser of bodies: what is wanted, within the limits, or a problem that can be told."""
    try:
        params = parsed(body)
    except Problem as problem:
        if problem.error not in REFUSALS:
            raise
        respond(problem)
    else:
        assert all(SEED_MIN <= seed <= SEED_MAX for seed in params.seeds())
        assert len(params.text.encode()) <= 4 * RULES.max_text_chars


def parsed(body: bytes) -> GenerationParams:
    """What the endpoint makes of a body before it queues anything. Raises Problem."""
    fields = parsed_json(body, DECODER, RULES.max_json_values)
    image = input_image.decoded(fields.input_image_base64)
    params = bodies.understood(fields, image, input_image.JSON_NAME, RULES, OutputOptions())
    header = input_image.measured(params.image, RULES, params.blamed)
    assert b"%d" % params.request_id
    assert 0 < header.width * header.height <= MAX_PIXELS
    return params


TARGETS: dict[str, Target] = {"decoder": decoder, "parser": parser}
