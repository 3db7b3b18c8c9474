"""`POST /controlnet/detect`: run ControlNet's preprocessors, as its extension for the web UI does."""

import logging
from typing import Annotated

import msgspec
import pybase64
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.api.automatic1111.controlnet_unit import CANNY, Mask, module_of
from app.api.automatic1111.parse import threshold
from app.api.automatic1111.structs import MAX_ITEMS, Name, Number, respond, wrong
from app.api.edges import EdgeEndpoint
from app.errors import Error, Faults, Problem, joined, quoted
from app.lifecycle import RequestContext
from app.parsing import bodies, input_image
from workers.edge_process import RESOLUTIONS, Work
from workers.engine.contract import EngineOptions

IMAGES, MASKS, RESOLUTION = "controlnet_input_images", "controlnet_masks", "controlnet_processor_res"
LOW, HIGH = "controlnet_threshold_a", "controlnet_threshold_b"
JSON = "application/json"
ANSWER_BYTES = 8 * 2**20  # of all PNGs together, so that writing the answer does not block the event loop

Texts = Annotated[list[str | None], Meta(max_length=MAX_ITEMS)]


class DetectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body. Module canny finds edges; none answers with the images as the model takes edge maps.

    `controlnet_processor_res` is the short side of the answer, in pixels; what is missing or negative is as the model
    takes it. Both thresholds are as configured if they are missing or negative. Masks must be blank.
    """

    controlnet_module: Name | None = None
    controlnet_input_images: Texts | None = None
    controlnet_images: Texts | None = None  # as some clients call them
    controlnet_processor_res: Number | None = None
    controlnet_threshold_a: Number | None = None
    controlnet_threshold_b: Number | None = None
    controlnet_masks: Texts | None = None


class DetectAnswer(msgspec.Struct, frozen=True):
    """Grey PNGs in base64: white edges on black."""

    images: list[str]
    info: str = "Success"


_json = msgspec.json.Decoder(DetectRequest, strict=False)


class Detect(EdgeEndpoint):
    """The endpoint. Each image waits for its turn in the edge process, as one of `/edges` does."""

    async def respond(self, request: Request) -> Response:
        return await self.lifecycle.serve(request, self._answer, respond, self.metrics.edges, level=logging.DEBUG)

    async def _answer(self, request: Request, context: RequestContext) -> Response:
        self.finder.check_open()
        body, work, short_side, images = await self._parse(request)
        for text in filter(None, body.controlnet_masks or []):
            mask = Mask(MASKS, await _decoded(text, MASKS))
            mask.check(*await self.finder.range_of(request, context.client, mask.file, mask.name))
        found, room = [], ANSWER_BYTES
        for name, image in images:
            png = await self.finder.png(request, context.client, image, name, work, short_side)
            if (room := room - len(png)) < 0:
                detail = f"The edge maps take more than {ANSWER_BYTES} bytes. Send fewer images at a time, or"
                raise Problem(Error.TOO_LARGE, f"{detail} lower {RESOLUTION}.", RESOLUTION)
            found.append(b'"%b"' % pybase64.b64encode(png))
        # Joined: a JSON encoder looks at each character, and these are millions.
        return Response(b'{"images":[%b],"info":"Success"}' % b",".join(found), media_type=JSON)

    async def _parse(self, request: Request) -> tuple[DetectRequest, Work, int | None, list[tuple[str, bytes]]]:
        """The body, the work, the short side, and the images with their names. Raises one Problem for all faults."""
        faults = Faults()
        body = await bodies.json_body(request, self.finder.rules, _json, faults=faults)
        work: Work = "grey"
        short_side, images = None, list[tuple[str, bytes]]()
        with faults.noted():
            work = self._work(body)
        with faults.noted():
            short_side = _short_side(body.controlnet_processor_res)
        with faults.noted():
            for name, text in self._images(body):
                with faults.noted():
                    image = await _decoded(text, name)
                    input_image.measured(image, self.finder.rules, name)
                    images.append((name, image))
        faults.check()
        return body, work, short_side, images

    def _work(self, body: DetectRequest) -> Work:
        if module_of(body.controlnet_module, "controlnet_module") != CANNY:
            return "grey"
        rules = self.finder.rules
        low, high = threshold(body.controlnet_threshold_a), threshold(body.controlnet_threshold_b)
        found = rules.number_faults({"canny_low": low, "canny_high": high}, {"canny_low": LOW, "canny_high": HIGH})
        if wrong_ones := list(found):
            raise joined(wrong_ones)
        return rules.canny(EngineOptions(canny_low=low, canny_high=high))

    def _images(self, body: DetectRequest) -> list[tuple[str, str]]:
        texts = body.controlnet_input_images or body.controlnet_images or []
        images = [(f"{IMAGES}[{n}]", text) for n, text in enumerate(texts) if text]
        most = int(self.finder.rules.ranges["number_of_images"].high)
        if not 1 <= len(images) <= most:
            text = f"{IMAGES} has {len(images)} images; it must have from 1 to {most}, each a file in base64."
            raise wrong(IMAGES, text)
        return images


async def _decoded(text: str, name: str) -> bytes:
    return await bodies.in_thread_if_large(len(text), input_image.from_base64, text, name)


def _short_side(resolution: float | None) -> int | None:
    """The short side in pixels; None means the model's own. Raises Problem."""
    if resolution is None or resolution < 0:
        return None
    least, most = RESOLUTIONS
    if not least <= resolution <= most or resolution != int(resolution):
        text = f"{RESOLUTION} is {quoted(resolution)}; it must be a whole number from {least} to {most}, or -1."
        raise wrong(RESOLUTION, text)
    return int(resolution)
