"""Facts for schemathesis that no schema can state. SCHEMATHESIS_HOOKS names this module.

Not any bytes are an image; who asks for events or an image says so in Accept; and an operation has one list of
parameters for all forms of its body, while the service looks for fields in the query only beside an image.
"""

import base64
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, HookContext
from schemathesis.core.parameters import ParameterLocation
from schemathesis.transport.serialization import Binary

from app.params import RequestOptions
from tests.fuzz.seeds import file_of, gradient

FILES = {
    "image/png": file_of(gradient("RGB"), "PNG"),
    "image/jpeg": file_of(gradient("L"), "JPEG"),
    "image/jpg": file_of(gradient("RGB"), "JPEG"),
    "image/webp": file_of(gradient("RGBA"), "WEBP"),
}
TEXT = "a circle"  # what the query says where it is left out
SEED_DIGITS = 18
THRESHOLDS = {"canny_low", "canny_high"}
ACCEPTED = cycle(["application/json", "text/event-stream", "image/png", "image/jpeg", "image/webp"])

for kind, file in FILES.items():
    schemathesis.openapi.media_type(kind, st.just(file))
schemathesis.openapi.format("binary", st.sampled_from([Binary(file) for file in FILES.values()]))
schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(file).decode() for file in FILES.values()]))


@schemathesis.hook
def filter_case(context: HookContext, case: Case[Any]) -> bool:
    """Leave out what is only wrong in a query that is not sent, or in another way than any schema says."""
    query = case.meta.components.get(ParameterLocation.QUERY) if case.meta else None
    if _contradicts_itself(case.query) or _contradicts_itself(case.body) or _has_empty(case.body):
        return False
    if isinstance(case.body, Mapping) and _is_long(case.body.get("random_seed")):
        return False
    if _says_otherwise(case.query) or (case.media_type == "multipart/form-data" and _says_otherwise(case.body)):
        return False
    body = case.meta.components.get(ParameterLocation.BODY) if case.meta else None
    if case.operation.path == "/v1/images/edits" and case.media_type == "application/json":
        # The image counts as it is, whatever its other names say, and so do numbers that are texts.
        return body is None or not body.mode.is_negative
    unread = case.operation.path.startswith("/generation") and case.media_type not in FILES
    return not unread or query is None or not query.mode.is_negative


@schemathesis.hook
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    """Say in the query what an image needs there, and in Accept what is to come back."""
    if case.operation.path.startswith("/generation"):
        if case.media_type in FILES:
            case.query = {"text": TEXT, **case.query}
        if _takes_any_answer(case.query) and _takes_any_answer(case.body):
            case.headers["Accept"] = next(ACCEPTED)
    if case.operation.path == "/v1/images/edits" and isinstance(case.body, dict) and case.body.get("stream") is True:
        case.body.pop("n", None)  # a stream tells of one image
    return case


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Leave out a query beside a body that has the fields; examples, too, which are not mapped."""
    if case.operation.path.startswith("/generation") and case.media_type not in FILES:
        case.query = {}


def _is_long(seed: object) -> bool:
    """No pattern has the range of an integer."""
    return isinstance(seed, str) and len(seed) > SEED_DIGITS


def _says_otherwise(texts: object) -> bool:
    """Where all are texts, msgspec takes "null" for a field that is left out, and of a list's the last counts."""
    return isinstance(texts, Mapping) and any(
        value in (None, "null") or isinstance(value, list) for value in texts.values()
    )


def _has_empty(fields: object) -> bool:
    """An option that is an empty text is not set, which no schema says."""
    return isinstance(fields, Mapping) and any(fields.get(name) == "" for name in RequestOptions.__struct_fields__)


def _contradicts_itself(fields: object) -> bool:
    """An edge map has no thresholds, which no schema says."""
    return isinstance(fields, Mapping) and fields.get("control_image") == "edges" and bool(THRESHOLDS & fields.keys())


def _takes_any_answer(fields: object) -> bool:
    """Whether one image is asked for, and no format."""
    return not isinstance(fields, Mapping) or (fields.get("number_of_images", 1) == 1 and "output_format" not in fields)
