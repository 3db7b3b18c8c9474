"""`POST /v1/images/edits`: an image and a prompt in, images with the same edges out."""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import pybase64
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app import bodies, other_names
from app.api.edges import EdgeFinder
from app.api.generation import unless_gone, warnings_of
from app.api.openai import references
from app.api.openai.errors import error_body, respond
from app.api.openai.models import Models
from app.api.openai.partials import PartialImages, encode, size_of
from app.api.openai.structs import CompletedEvent, EditedImage, EditForm, ImagesAnswer
from app.errors import Error, Faults, Problem
from app.field_types import given_in, loose, of_fields
from app.generator import GeneratedImage, ImageGenerator
from app.http.access import Access
from app.http.events import encode_event
from app.json_syntax import broken
from app.lifecycle import RequestContext, RequestLifecycle
from app.params import PARAMS, GenerationParams, OutputOptions, RequestFields, RequestOptions, drawn_seed
from app.rules import Rules

IMAGE = "image"
IMAGES = (IMAGE, "image[]")  # the second is for several
MASK, MARKUP = "mask", "markup"
MASKS = (
    "Masks are not supported: the whole image is generated. Leave the mask out, or send one that is all transparent."
)
MARKS = "Markup is not supported: only the prompt and the image's edges count. Leave it out."
IDLE = {
    "quality": "steps decides it",
    "input_fidelity": "control_scale decides how closely the edges are kept",
}
FIXED_SIZE = re.compile(r"\d+x\d+", re.IGNORECASE)
MOST_QUALITY = 100
TYPES = "a form (multipart/form-data) or JSON (application/json)"
CALLED = {name: param.openai for name, param in PARAMS.items() if param.openai} | {"input_image_base64": IMAGE}
OTHERS = {*other_names.NAMES, *CALLED} - {*EditForm.__struct_fields__, *references.FIELDS, MASK}

_json_fields = loose(EditForm, (*references.FIELDS, MASK, MARKUP, *sorted(OTHERS)))


@dataclass(frozen=True, slots=True)
class Edit:
    """A parsed request: its fields, the image and the client's name for it, a mask, and the names of other fields."""

    form: EditForm
    image: bytes
    blamed: str
    mask: bytes
    others: Collection[str]


class Images:
    """The endpoint, and the one for images without an input image, which always refuses."""

    def __init__(
        self, lifecycle: RequestLifecycle, access: Access, generator: ImageGenerator, finder: EdgeFinder, models: Models
    ) -> None:
        self._lifecycle = lifecycle
        self._access = access
        self._generator = generator
        self._finder = finder
        self._models = models

    def routes(self) -> Sequence[Route]:
        return [
            Route("/v1/images/edits", self.edits, methods=["POST"]),
            Route("/v1/images/generations", self.generations, methods=["POST"]),
        ]

    async def edits(self, request: Request) -> Response:
        """Answer with images, or with a stream of events."""
        return await self._lifecycle.serve(request, self._edit, respond)

    async def generations(self, request: Request) -> Response:
        """Always refuse: there is no image whose edges could be kept."""
        return await self._lifecycle.serve_lookup(request, self._refuse, respond)

    async def _refuse(self, request: Request, context: RequestContext) -> Response:
        context.client = self._access.client(request)
        detail = "This service needs an input image: send one to /v1/images/edits (images.edit), with the prompt."
        raise Problem(Error.INVALID_FIELD, detail, IMAGE)

    async def _edit(self, request: Request, context: RequestContext) -> Response:
        context.client = self._access.client(request)
        faults = Faults()
        edit = await self._read(request, faults)
        form = edit.form
        with faults.noted():
            self._models.check(form.model)
        params = _params(edit, self._generator, faults)
        if edit.mask:
            _, most = await self._finder.range_of(request, context.client, edit.mask, MASK, "alpha")
            if most > 0:
                raise Problem(Error.INVALID_FIELD, MASKS, MASK)
        if form.stream:
            return await self._stream(request, form, params, context)
        images = context.images = await unless_gone(request, self._generator.generate(request, params, context))
        data = [_image(each, seed, form) for each, seed in zip(images, params.seeds(), strict=True)]
        size = size_of(images[0].file)
        warnings = _warnings(form, params, images, size)
        answer = ImagesAnswer(
            int(time.time()), data, self._models.name, size, form.output_format, warnings=warnings or msgspec.UNSET
        )
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def _read(self, request: Request, faults: Faults) -> Edit:
        """Parse the form or the JSON."""
        kind = bodies.media_type(request)
        if bodies.is_json(kind):
            return await self._json(request, faults)
        if kind != "multipart/form-data":
            raise bodies.unsupported(kind, TYPES)
        texts, files = await bodies.form(request, self._generator.rules)
        given = {name for name, text in texts.items() if text} | {name for name, _ in files}
        form, image, mask = bodies.converted(texts, EditForm, faults, self._generator.rules.ranges), b"", b""
        if MARKUP in given:
            faults.add(Problem(Error.INVALID_FIELD, MARKS, MARKUP))
        with faults.noted():
            image = await bodies.image_of_form(texts, files, IMAGE, IMAGES)
        if MASK in given:
            with faults.noted():
                mask = await bodies.image_of_form(texts, files, MASK, (MASK,))
        return Edit(form, image, IMAGE, mask, given & OTHERS)

    async def _json(self, request: Request, faults: Faults) -> Edit:
        given = given_in(await bodies.json_body(request, self._generator.rules, _json_fields))
        size = sum(map(len, given.values()))
        return await bodies.in_thread_if_large(size, _of_json, given, faults, self._generator.rules)

    async def _stream(
        self, request: Request, form: EditForm, params: GenerationParams, context: RequestContext
    ) -> Response:
        if params.number_of_images > 1:
            detail = f"A stream has one image, but n is {params.number_of_images}."
            raise Problem(Error.INVALID_FIELD, detail, "n")
        partials = PartialImages(form.partial_images)

        async def made() -> bytes:
            (image,) = context.images = await self._generator.generate(request, params, context, partials.publish)
            encoded, size = pybase64.b64encode_as_string(image.file), size_of(image.file)
            completed = CompletedEvent(
                encoded,
                int(time.time()),
                size,
                form.output_format,
                params.seed,
                self._models.name,
                warnings=_warnings(form, params, [image], size) or msgspec.UNSET,
            )
            return encode(completed)

        return await self._lifecycle.stream(
            context, partials.feed, made(), lambda problem: encode_event("error", error_body(problem))
        )


def _of_json(given: Mapping[str, msgspec.Raw], faults: Faults, rules: Rules) -> Edit:
    given = {name: value for name, value in given.items() if references.is_given(name, value)}
    image, blamed, mask = b"", references.FIELDS[0], b""
    try:
        if MARKUP in given and references.is_set(given[MARKUP]):
            faults.add(Problem(Error.INVALID_FIELD, MARKS, MARKUP))
        form = of_fields(given, EditForm, faults, rules.ranges)
        with faults.noted():
            image, blamed = references.image(given)
        if MASK in given and references.is_set(given[MASK]):
            with faults.noted():
                mask, _ = references.file(MASK, given[MASK])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise broken(b"".join(map(bytes, given.values())), error) from None
    return Edit(form, image, blamed, mask, given.keys() & OTHERS)


def _params(edit: Edit, generator: ImageGenerator, faults: Faults) -> GenerationParams:
    form = edit.form
    for name, other in (("n", "number_of_images"), ("seed", "random_seed")):
        one, two = getattr(form, name), getattr(form, other)
        if None not in (one, two) and one != two:
            detail = f"{name} is {one}, but {other} is {two}, which means the same; send one of them."
            faults.add(Problem(Error.INVALID_FIELD, detail, name))
    ours = {name: getattr(form, name) for name in RequestOptions.__struct_fields__}
    if form.n is not None:
        ours["number_of_images"] = form.n
    given, called = form.seed, CALLED
    if form.seed is None:
        given, called = form.random_seed, CALLED | {"random_seed": "random_seed"}
    fields = RequestFields(text=form.prompt, random_seed=drawn_seed() if given is None else given, **ours)
    output = OutputOptions(form.output_format, previews=form.stream and form.partial_images > 0)
    understood = bodies.understood(fields, edit.image, edit.blamed, generator.rules, output, called, faults)
    quality = None if form.output_compression is None else max(form.output_compression, 1)
    ignored = tuple(other_names.warnings(edit.others, CALLED))
    return replace(understood, options=replace(understood.options, quality=quality), warnings=ignored)


def _warnings(form: EditForm, params: GenerationParams, images: Sequence[GeneratedImage], size: str) -> list[str]:
    """What was not followed, and the warnings of the images, which have the given size."""
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
    return [*found, *params.warnings, *warnings_of(images)]


def _image(image: GeneratedImage, seed: int, form: EditForm) -> EditedImage:
    encoded = pybase64.b64encode_as_string(image.file)
    if form.response_format == "url":
        return EditedImage(seed, url=f"data:image/{form.output_format};base64,{encoded}")
    return EditedImage(seed, b64_json=encoded)
