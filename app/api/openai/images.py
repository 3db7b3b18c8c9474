"""`POST /v1/images/edits`: an image and a prompt in, images with the same edges out."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import pybase64
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.api.edges import EdgeFinder
from app.api.generation import warnings_of
from app.api.openai.models import Models
from app.api.openai.parse import IMAGE, MASK, params_of, parse
from app.api.openai.structs import (
    CompletedEvent,
    EditedImage,
    EditForm,
    ImagesAnswer,
    Model,
    PartialImageEvent,
    error_body,
    respond,
)
from app.errors import Error, Faults, Problem
from app.generator import GeneratedImage, ImageGenerator
from app.http.answers import unless_gone
from app.http.events import Feed, encode_event
from app.lifecycle import RequestContext, RequestLifecycle
from app.params import GenerationParams
from workers.engine.header import read_header
from workers.jobs import Advanced, Previewed, ProgressEvent

MASKS = (
    "Masks are not supported: the whole image is generated. Leave the mask out, or send one that is all transparent."
)
IDLE = {
    "quality": "steps sets it",
    "input_fidelity": "control_scale sets how closely the edges are kept",
}
RATIO = re.compile(r"([1-9]\d*):([1-9]\d*)")
MOST_QUALITY = 100


def routes(
    lifecycle: RequestLifecycle, generator: ImageGenerator, finder: EdgeFinder, model_name: str
) -> Iterator[Route]:
    """All paths of the API."""
    models = Models(lifecycle, Model(model_name, int(time.time())))
    images = Images(lifecycle, generator, finder, models)
    yield Route("/v1/models", models.listed)
    yield Route("/v1/models/{id:path}", models.one)  # a name may have slashes
    yield Route("/v1/images/edits", images.edits, methods=["POST"])
    yield Route("/v1/images/generations", images.generations, methods=["POST"])


@dataclass(frozen=True, slots=True)
class Images:
    """The endpoint, and the one for images without an input image, which always refuses."""

    lifecycle: RequestLifecycle
    generator: ImageGenerator
    finder: EdgeFinder
    models: Models

    async def edits(self, request: Request) -> Response:
        return await self.lifecycle.serve(request, self._edit, respond)

    async def generations(self, request: Request) -> Response:
        """Always refuse: there is no image whose edges could be kept."""
        return await self.lifecycle.serve_lookup(request, self._refuse, respond)

    async def _refuse(self, request: Request, context: RequestContext) -> Response:
        detail = "This service needs an input image: send one to /v1/images/edits (images.edit), with the prompt."
        raise Problem(Error.INVALID_FIELD, detail, IMAGE)

    async def _edit(self, request: Request, context: RequestContext) -> Response:
        faults = Faults()
        edit = await parse(request, self.generator.rules, faults)
        form = edit.form
        with faults.noted():
            self.models.check(form.model)
        params = params_of(edit, self.generator.rules, faults)
        if edit.mask:
            _, most = await self.finder.range_of(request, context.client, edit.mask, MASK, "alpha")
            if most > 0:
                raise Problem(Error.INVALID_FIELD, MASKS, MASK)
        if form.stream:
            return await self._stream(request, form, params, context)
        images = context.images = await unless_gone(request, self.generator.generate(request, params, context))
        data = [_image(each, seed, form) for each, seed in zip(images, params.seeds(), strict=True)]
        size = _size_of(images[0].file)
        warnings = _warnings(form, params, images, size)
        answer = ImagesAnswer(
            int(time.time()), data, self.models.name, size, form.output_format, warnings=warnings or msgspec.UNSET
        )
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def _stream(
        self, request: Request, form: EditForm, params: GenerationParams, context: RequestContext
    ) -> Response:
        if params.number_of_images > 1:
            detail = f"A stream has one image, but n is {params.number_of_images}."
            raise Problem(Error.INVALID_FIELD, detail, "n")
        partials = PartialImages(form.partial_images)

        async def made() -> bytes:
            (image,) = context.images = await self.generator.generate(request, params, context, partials.publish)
            encoded, size = pybase64.b64encode_as_string(image.file), _size_of(image.file)
            completed = CompletedEvent(
                encoded,
                int(time.time()),
                size,
                form.output_format,
                params.seed,
                self.models.name,
                warnings=_warnings(form, params, [image], size) or msgspec.UNSET,
            )
            return _encode(completed)

        return await self.lifecycle.stream(
            context, partials.feed, made(), lambda problem: encode_event("error", error_body(problem))
        )


def _warnings(form: EditForm, params: GenerationParams, images: Sequence[GeneratedImage], size: str) -> list[str]:
    """Warnings about what was not followed, and those of the images, which have the given size."""
    found = [
        f"{name} is {value}, which changes nothing here: {why}."
        for name, why in IDLE.items()
        if (value := getattr(form, name)) not in (None, "auto")
    ]
    if form.output_format == "png" and form.output_compression not in (None, MOST_QUALITY):
        text = f"output_compression is {form.output_compression}, which changes nothing in a PNG"
        found.append(f"{text}: ask for jpeg or webp.")
    if not _allows(form.size, size):
        found.append(f"size is {form.size}, but it follows the image: {size}.")
    return [*found, *params.warnings, *warnings_of(images)]


def _allows(wanted: str, size: str) -> bool:
    """Whether `wanted` names any size, that size, such as 512x256, or its ratio, such as 2:1."""
    if ratio := RATIO.fullmatch(wanted):
        width, height = map(int, size.split("x"))
        return int(ratio[1]) * height == int(ratio[2]) * width
    return wanted.lower() in ("auto", size)


def _image(image: GeneratedImage, seed: int, form: EditForm) -> EditedImage:
    encoded = pybase64.b64encode_as_string(image.file)
    if form.response_format == "url":
        return EditedImage(seed, url=f"data:image/{form.output_format};base64,{encoded}")
    return EditedImage(seed, b64_json=encoded)


class PartialImages:
    """Publishes `wanted` previews at equal distances: one after half of the steps, two after a third each."""

    def __init__(self, wanted: int) -> None:
        self.feed = Feed(self._event)
        self._wanted = wanted
        self._share = 0.0  # of the steps that are done
        self._published = 0
        self._sent = 0

    def publish(self, image: int, event: ProgressEvent) -> None:
        match event:
            case Advanced(done, total):
                self._share = done / total
            case Previewed() if self._is_due():
                self._published += 1
                self.feed.publish(image, event)
            case _:
                pass

    def _is_due(self) -> bool:
        return self._published < self._wanted and self._share * (self._wanted + 1) >= self._published + 1

    def _event(self, image: int, event: ProgressEvent) -> bytes:
        assert isinstance(event, Previewed)
        index, self._sent = self._sent, self._sent + 1
        encoded = pybase64.b64encode_as_string(event.jpeg)
        return _encode(PartialImageEvent(encoded, index, int(time.time()), _size_of(event.jpeg)))


def _encode(event: PartialImageEvent | CompletedEvent) -> bytes:
    """Encode an event. OpenAI repeats its name in its data."""
    name = event.__struct_config__.tag
    assert isinstance(name, str)
    return encode_event(name, msgspec.json.encode(event))


def _size_of(file: bytes) -> str:
    """The size of an image file, as OpenAI writes it."""
    header = read_header(file)
    return f"{header.width}x{header.height}"
