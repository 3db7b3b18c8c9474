"""Other services' names of our fields. Unknown fields are ignored, but these get a warning with the right name."""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from app.params import AS_THEY_ARE, PARAMS

S = TypeVar("S", bound=msgspec.Struct)

OURS: Mapping[str, str] = {other: ours for ours, param in PARAMS.items() for other in param.elsewhere}
STRENGTH = "only the edges of the image count; control_scale sets how closely they are kept"
SAMPLER = "the configuration sets the sampler"
WITHOUT: Mapping[str, str] = {
    "width": "the size follows the image",
    "height": "the size follows the image",
    "size": "the size follows the image",
    "strength": STRENGTH,
    "denoising_strength": STRENGTH,
    "mask": "the whole image is generated anew",
    "sampler": SAMPLER,
    "sampler_name": SAMPLER,
    "scheduler": SAMPLER,
}
NAMES = (*OURS, *WITHOUT)
NOTHING = (b"null", b'""')
_others = attrgetter(*NAMES)
_NONE_SENT = (msgspec.UNSET,) * len(NAMES)


@lru_cache(maxsize=8)
def with_others(kind: type[S], more: tuple[str, ...] = ()) -> type[S]:
    """Make a struct that also has the other names of its fields, and `more`: decoding it shows which were sent."""
    names = [name for name in (*NAMES, *more) if name not in kind.__struct_fields__]
    fields = [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in names]
    return msgspec.defstruct(kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True)  # type: ignore[return-value]


def sent_in(body: msgspec.Struct) -> set[str]:
    """The names of all fields that are set in a struct `with_others`, or nothing if no other name was sent."""
    if _others(body) == _NONE_SENT:
        return set()
    given = ((name, getattr(body, name)) for name in body.__struct_fields__)
    return {name for name, value in given if value not in (None, msgspec.UNSET) and not _is_nothing(value)}


def _is_nothing(value: Any) -> bool:
    return isinstance(value, msgspec.Raw) and bytes(memoryview(value)[:5]).strip() in NOTHING


def called(ours: str, sent: Collection[str]) -> str | None:
    """The other name by which a field was sent, if it was."""
    return next((other for other, name in OURS.items() if name == ours and other in sent), None)


def warnings(sent: Collection[str], called: Mapping[str, str] = AS_THEY_ARE) -> Iterator[str]:
    """Warnings about fields that were ignored. `called` has an API's own names of our fields, if they differ."""
    for name in sorted(sent):
        if (ours := OURS.get(name, name if name in called else None)) is not None:
            yield f"{name} was ignored; its name here is {called.get(ours, ours)}."
        elif (why := WITHOUT.get(name)) is not None:
            yield f"{name} was ignored: {why}."
