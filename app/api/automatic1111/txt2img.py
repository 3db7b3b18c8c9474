"""`POST /sdapi/v1/txt2img`: a prompt, and an image in ControlNet's arguments."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
import pybase64
from starlette.requests import Request
from starlette.responses import Response

from app.api.automatic1111.options import Options
from app.api.automatic1111.parse import Body, ParsedRequest, parse
from app.api.automatic1111.running import RunningRequest, RunningRequests
from app.api.automatic1111.structs import Info, Txt2ImgAnswer, Txt2ImgRequest, respond, wrong
from app.api.edges import EdgeFinder
from app.api.generation import warnings_of
from app.errors import ClientGoneError, Faults
from app.generator import GeneratedImage, ImageGenerator
from app.http.answers import unless_gone
from app.lifecycle import CLIENT_CLOSED_REQUEST, RequestContext, RequestLifecycle
from app.parsing import bodies
from app.settings import Settings
from workers.engine.contract import resolved
from workers.engine.header import Header, read_header
from workers.engine.metadata import CONTROLNET, Metadata, sampler_name

JSON = "application/json"
_json = msgspec.json.Decoder(Body, strict=False)

INTERRUPTED = msgspec.json.encode(Txt2ImgAnswer([], Txt2ImgRequest(), '{"notes":["The request was interrupted."]}'))
SCHEDULE = "automatic"
# No pattern backtracks, as a prompt may have thousands of characters. Escaped characters, as in \(this\), are text.
ESCAPED = re.compile(r"\\.", re.DOTALL)
SYNTAX = [
    re.compile(pattern)
    for pattern in (
        r"\([^()]++\)",  # (word), ((word)), (word:1.3)
        r"\[[^\[\]]++\]",  # [word], [from:to:0.5], [one|other]
        r"\bBREAK\b",
        r"\bAND\b",
        r"<\w++:[^<>]*+>",  # <lora:name:1>
    )
]
SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Txt2Img:
    """The endpoint. `options` are the present settings of the web UI; `metadata` is what files say of themselves."""

    lifecycle: RequestLifecycle
    generator: ImageGenerator
    finder: EdgeFinder
    running: RunningRequests
    settings: Settings
    options: Options
    metadata: Metadata

    async def txt2img(self, request: Request) -> Response:
        """Answer with the images, or with none if the request was interrupted."""
        response = await self.lifecycle.serve(request, self._answer, respond)
        if response.status_code != CLIENT_CLOSED_REQUEST:
            return response
        # A client that has left reads nothing; one that interrupted the request is still there.
        return Response(INTERRUPTED, headers={"X-Request-Id": response.headers["X-Request-Id"]}, media_type=JSON)

    async def img2img(self, request: Request) -> Response:
        """Always refuse: only the edges of an image count here."""
        return await self.lifecycle.serve_lookup(request, self._refuse, respond)

    async def _refuse(self, request: Request, context: RequestContext) -> Response:
        text = (
            "This service has no img2img, as only an image's edges count: send the image to /sdapi/v1/txt2img, as the"
        )
        raise wrong("init_images", f"{text} input of a ControlNet unit with module 'canny'.")

    async def _answer(self, request: Request, context: RequestContext) -> Response:
        parsed = await self._parse(request, context.client)
        steps = self.generator.rules.resolved(parsed.params.options).steps
        current = RunningRequest(
            parsed.request.force_task_id or context.id, context.id, parsed.params.number_of_images, steps
        )
        images = context.images = await self._images(request, parsed, current, context)
        sent = images if parsed.request.send_images is not False else []
        answer = Txt2ImgAnswer(
            [pybase64.b64encode_as_string(image.file) for image in sent],
            parsed.request,
            msgspec.json.encode(_info(parsed, images, self.settings, self.metadata, current)).decode(),
        )
        return Response(msgspec.json.encode(answer), media_type=JSON)

    async def _parse(self, request: Request, client: str) -> ParsedRequest:
        faults = Faults()
        body = await bodies.json_body(request, self.generator.rules, _json, faults=faults)
        size = sum(map(len, body.scripts.values()))
        parsed = await bodies.in_thread_if_large(size, parse, body, self.generator.rules, self.options, faults)
        del body  # with the text of its images
        for mask in parsed.masks:
            mask.check(*await self.finder.range_of(request, client, mask.file, mask.name))
        return replace(parsed, masks=())

    async def _images(
        self, request: Request, parsed: ParsedRequest, current: RunningRequest, context: RequestContext
    ) -> list[GeneratedImage]:
        with self.running.register(context.client, current):
            current.generating = asyncio.ensure_future(
                self.generator.generate(request, parsed.params, context, current.on_progress)
            )
            try:
                return await unless_gone(request, current.generating)
            except asyncio.CancelledError:
                if current.interrupted:
                    raise ClientGoneError from None
                raise


def _info(
    parsed: ParsedRequest,
    generated: Sequence[GeneratedImage],
    settings: Settings,
    metadata: Metadata,
    current: RunningRequest,
) -> Info:
    """The JSON in `info`: what the images were made with, and what of the request was not followed."""
    engine, params, images = settings.engine, parsed.params, parsed.params.number_of_images
    header, seeds, options = read_header(generated[0].file), params.seeds(), resolved(params.options, engine)
    made_from = replace(parsed.made_from, thresholds=generated[0].thresholds)  # all are made from the same edges
    sampler = sampler_name(engine)
    size = (header.width, header.height)
    return Info(
        prompt=params.text,
        all_prompts=[params.text] * images,
        negative_prompt=options.negative_prompt,
        all_negative_prompts=[options.negative_prompt] * images,
        seed=seeds[0],
        all_seeds=seeds,
        subseed=seeds[0],
        all_subseeds=seeds,
        width=header.width,
        height=header.height,
        sampler_name=sampler,
        cfg_scale=options.guidance_scale,
        steps=options.steps,
        batch_size=parsed.request.batch_size or 1,
        sd_model_name=settings.server.model_name,
        extra_generation_params={CONTROLNET: metadata.control(params.options, made_from.thresholds)},
        infotexts=[metadata.infotext(replace(made_from, seed=seed), size) for seed in seeds],
        job_timestamp=current.timestamp,
        task_id=current.task_id,
        notes=[*_notes(parsed, header, (sampler, engine.sampler.name)), *warnings_of(generated)],
    )


def _notes(parsed: ParsedRequest, header: Header, sampler: tuple[str, str]) -> Iterator[str]:
    """Notes on fields that every client sends, often without meaning them; they are not refused."""
    request = parsed.request
    yield from parsed.notes
    yield from _syntax_note(request.prompt, request.negative_prompt)
    given = request.sampler_name or request.sampler_index
    if given and given not in sampler:
        yield f"The sampler is {sampler[0]}, not {given}."
    if request.scheduler and request.scheduler.lower() != SCHEDULE:
        yield f"The noise schedule is that of the sampler, not {request.scheduler}."
    size = (request.width or header.width, request.height or header.height)
    if size != (header.width, header.height):
        text = f"The size is {header.width} x {header.height}, not {size[0]} x {size[1]}"
        yield f"{text}: it follows the image whose edges are kept."


def _syntax_note(*prompts: str | None) -> Iterator[str]:
    """A sentence that quotes the web UI's prompt syntax, which is read as plain words here."""
    found = dict.fromkeys(each for prompt in prompts for each in _syntax(prompt or ""))
    if found:
        yield f"The web UI's prompt syntax has no effect here and was read as plain words: {', '.join(found)}."


def _syntax(prompt: str) -> Iterator[str]:
    """The first match of each pattern."""
    text = ESCAPED.sub("", prompt)
    for pattern in SYNTAX:
        if match := pattern.search(text):
            yield match.group() if len(match.group()) <= SHOWN_CHARS else f"{match.group()[:SHOWN_CHARS]}..."
