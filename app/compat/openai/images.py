"""`POST /v1/images/edits`: a picture and a prompt in, pictures with the same edges out."""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import msgspec
import pybase64
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app import bodies
from app.access import Access
from app.bodies import Answering
from app.compat.openai import references
from app.compat.openai.errors import error_body, respond
from app.compat.openai.models import Models
from app.compat.openai.partials import Partials, size_of, told
from app.compat.openai.structs import CompletedEvent, EditedImage, EditForm, ImagesAnswer
from app.desk import Desk, Ticket
from app.errors import Error, Faults, Problem
from app.events import event
from app.field_types import given_in, loose, of_fields
from app.fields import Fields, OptionalFields, Rules, Wanted, drawn_seed
from app.generation import unless_gone, warnings_of
from app.json_syntax import broken
from app.making import Maker, Picture

PICTURE = "image"
PICTURES = (PICTURE, "image[]")  # what clients call one, and what they call several
UNUSED = {
    "mask": "A mask cannot be followed: all of the picture is made anew. Leave it out.",
    "markup": "Markup cannot be followed: a prompt and the picture's edges are all that counts. Leave it out.",
}
IDLE = {
    "quality": "steps decides it",
    "input_fidelity": "control_scale decides how closely the edges are kept",
}
FIXED_SIZE = re.compile(r"\d+x\d+", re.IGNORECASE)
MOST_QUALITY = 100
TYPES = "a form (multipart/form-data) or JSON (application/json)"
CALLED = {"text": "prompt", "number_of_images": "n"}


_json_fields = loose(EditForm, (*references.FIELDS, *UNUSED))


class Images:
    """The endpoint, and the one of pictures that are made of nothing, which there are none of."""

    def __init__(self, desk: Desk, access: Access, maker: Maker, models: Models) -> None:
        self._desk = desk
        self._access = access
        self._maker = maker
        self._models = models

    def routes(self) -> Sequence[Route]:
        """Both."""
        return [
            Route("/v1/images/edits", self.edits, methods=["POST"]),
            Route("/v1/images/generations", self.generations, methods=["POST"]),
        ]

    async def edits(self, request: Request) -> Response:
        """Pictures, or a stream of events."""
        return await self._desk.serve(request, self._edit, respond)

    async def generations(self, request: Request) -> Response:
        """A refusal, always: there is no picture whose edges could be kept."""
        return await self._desk.aside(request, self._refuse, respond)

    async def _refuse(self, request: Request, ticket: Ticket) -> Response:
        ticket.client = self._access.client(request)
        detail = "Pictures are made of pictures here: send one to /v1/images/edits (images.edit), with the prompt."
        raise Problem(Error.INVALID_FIELD, detail, PICTURE)

    async def _edit(self, request: Request, ticket: Ticket) -> Response:
        ticket.client = self._access.client(request)
        faults = Faults()
        form, picture, blamed = await self._form(request, faults)
        with faults.noted():
            self._models.check(form.model)
        wanted = _wanted(form, picture, blamed, self._maker, faults)
        if form.stream:
            return await self._stream(request, form, wanted, ticket)
        pictures = ticket.pictures = await unless_gone(request, self._maker.make(request, wanted, ticket))
        data = [_image(each, seed, form) for each, seed in zip(pictures, wanted.seeds(), strict=True)]
        size = size_of(pictures[0].file)
        warnings = _warnings(form, pictures, size)
        answer = ImagesAnswer(
            int(time.time()), data, self._models.name, size, form.output_format, warnings=warnings or msgspec.UNSET
        )
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def _form(self, request: Request, faults: Faults) -> tuple[EditForm, bytes, str]:
        """The fields of a form or of JSON, the image, and what the client calls it."""
        kind = bodies.media_type(request)
        if bodies.is_json(kind):
            return await self._json(request, faults)
        if kind != "multipart/form-data":
            raise bodies.unsupported(kind, TYPES)
        texts, files = await bodies.form(request, self._maker.rules)
        _refuse_unused({name for name, text in texts.items() if text} | {name for name, _ in files}, faults)
        form, image = bodies.converted(texts, EditForm, faults, self._maker.rules.ranges), b""
        with faults.noted():
            image = await bodies.image_of_form(texts, files, PICTURE, PICTURES)
        return form, image, PICTURE

    async def _json(self, request: Request, faults: Faults) -> tuple[EditForm, bytes, str]:
        given = given_in(await bodies.json_body(request, self._maker.rules, _json_fields))
        size = sum(map(len, given.values()))
        return await bodies.in_thread_if_large(size, _of_json, given, faults, self._maker.rules)

    async def _stream(self, request: Request, form: EditForm, wanted: Wanted, ticket: Ticket) -> Response:
        if wanted.images > 1:
            raise Problem(Error.INVALID_FIELD, f"A stream tells of one picture, but n is {wanted.images}.", "n")
        partials = Partials(form.partial_images)

        async def made() -> bytes:
            (picture,) = ticket.pictures = await self._maker.make(request, wanted, ticket, partials.follow)
            encoded, size = pybase64.b64encode_as_string(picture.file), size_of(picture.file)
            completed = CompletedEvent(
                encoded,
                int(time.time()),
                size,
                form.output_format,
                wanted.seed,
                self._models.name,
                warnings=_warnings(form, [picture], size) or msgspec.UNSET,
            )
            return told(completed)

        return await self._desk.stream(
            ticket, partials.feed, made(), lambda problem: event("error", error_body(problem))
        )


def _of_json(given: Mapping[str, msgspec.Raw], faults: Faults, rules: Rules) -> tuple[EditForm, bytes, str]:
    given = {name: value for name, value in given.items() if references.is_given(name, value)}
    image, blamed = b"", references.FIELDS[0]
    try:
        _refuse_unused({name for name in UNUSED if name in given and references.is_set(given[name])}, faults)
        form = of_fields(given, EditForm, faults, rules.ranges)
        with faults.noted():
            image, blamed = references.image(given)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise broken(b"".join(map(bytes, given.values())), error) from None
    return form, image, blamed


def _refuse_unused(given: Collection[str], faults: Faults) -> None:
    for name, detail in UNUSED.items():
        if name in given:
            faults.add(Problem(Error.INVALID_FIELD, detail, name))


def _wanted(form: EditForm, picture: bytes, blamed: str, maker: Maker, faults: Faults) -> Wanted:
    ours = {name: getattr(form, name) for name in OptionalFields.__struct_fields__}
    if form.n is not None:
        ours["number_of_images"] = form.n
    given, called = (form.random_seed, CALLED) if form.seed is None else (form.seed, CALLED | {"random_seed": "seed"})
    fields = Fields(text=form.prompt, random_seed=drawn_seed() if given is None else given, **ours)
    answering = Answering(form.output_format, previews=form.stream and form.partial_images > 0)
    understood = bodies.understood(fields, picture, blamed, maker.rules, answering, called, faults)
    quality = None if form.output_compression is None else max(form.output_compression, 1)
    return replace(understood, options=replace(understood.options, quality=quality))


def _warnings(form: EditForm, pictures: Sequence[Picture], size: str) -> list[str]:
    """What was not followed, and what else the client should know of its images, which are of a size."""
    found = [
        f"{name} is {value}, which changes nothing here: {why}."
        for name, why in IDLE.items()
        if (value := getattr(form, name)) not in (None, "auto")
    ]
    if form.output_format == "png" and form.output_compression not in (None, MOST_QUALITY):
        text = f"output_compression is {form.output_compression}, which changes nothing in a PNG"
        found.append(f"{text}: ask for jpeg or webp.")
    if FIXED_SIZE.fullmatch(form.size) and form.size.lower() != size:
        found.append(f"size is {form.size}, but it follows the image: {size}.")
    return found + warnings_of(pictures)


def _image(picture: Picture, seed: int, form: EditForm) -> EditedImage:
    encoded = pybase64.b64encode_as_string(picture.file)
    if form.response_format == "url":
        return EditedImage(seed, url=f"data:image/{form.output_format};base64,{encoded}")
    return EditedImage(seed, b64_json=encoded)
