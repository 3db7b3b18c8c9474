"""`POST /edges`: the edges of an image, as the model would see them. These requests do not wait in the queue."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Error, Faults, Problem
from app.http.answers import negotiated, unless_gone, with_warnings
from app.lifecycle import RequestContext, RequestLifecycle
from app.metrics import Metrics
from app.params import PARAMS, Rules
from app.parsing import bodies, input_image
from app.parsing.aliases import sent_in, warnings, with_others
from workers.edge_process import (
    BusyError,
    ClosingError,
    CrashedError,
    EdgeError,
    EdgeService,
    EdgeTask,
    SlowError,
    Work,
    at_resolution,
)
from workers.engine.config import Canny
from workers.engine.contract import BadImageError, EngineOptions
from workers.engine.header import output_size

PNG = "image/png"
TYPES = "the image itself (image/png, image/jpeg, image/webp), or JSON (application/json)"


class EdgesRequest(msgspec.Struct, frozen=True):
    """A body of JSON. Unknown fields are ignored."""

    input_image_base64: msgspec.Raw
    canny_low: int | None = None
    canny_high: int | None = None


class Thresholds(msgspec.Struct, frozen=True):
    """The query. Unknown parameters are ignored."""

    canny_low: int | None = None
    canny_high: int | None = None


OTHER_THRESHOLDS = {*PARAMS["canny_low"].elsewhere, *PARAMS["canny_high"].elsewhere}

_json = msgspec.json.Decoder(with_others(EdgesRequest), strict=False)


@dataclass(frozen=True, slots=True)
class EdgeFinder:
    """Decodes images in the edge process, for whichever endpoint needs it. Checks them by their headers before.

    Its methods raise Problem, which blames the image by the name that its client gave it, and ClientGoneError.
    """

    service: EdgeService
    rules: Rules
    draining: Callable[[], bool]

    def check_open(self) -> None:
        """Refuse new work while the service shuts down."""
        if self.draining():
            raise _problem(ClosingError(), None)

    async def png(
        self, request: Request, client: str, image: bytes, blamed: str | None, work: Work, short_side: int | None = None
    ) -> bytes:
        """A PNG of an image's edges or grey values, at the model's size, or with another short side in pixels."""
        nominal = self.rules.engine.size
        sizing = nominal if short_side is None else at_resolution(nominal, short_side)
        header = input_image.measured(image, self.rules, blamed)
        task = EdgeTask(image, output_size(header.width, header.height, sizing), work)
        return await self._find(request, client, task, blamed)

    async def range_of(
        self, request: Request, client: str, image: bytes, blamed: str, work: Literal["range", "alpha"] = "range"
    ) -> tuple[int, int]:
        """The least and the greatest value (0 to 255) of an image, or of its alpha, at full size."""
        header = input_image.measured(image, self.rules, blamed)
        low, high = await self._find(request, client, EdgeTask(image, (header.width, header.height), work), blamed)
        return low, high

    async def _find(self, request: Request, client: str, task: EdgeTask, blamed: str | None) -> bytes:
        try:
            return await unless_gone(request, self.service.find(task, client))
        except (BadImageError, EdgeError) as error:
            raise _problem(error, blamed) from None


@dataclass(frozen=True, slots=True)
class EdgeEndpoint:
    """The parts of endpoints that answer with edges."""

    lifecycle: RequestLifecycle
    finder: EdgeFinder
    metrics: Metrics


class Edges(EdgeEndpoint):
    """`POST /edges`."""

    async def respond(self, request: Request) -> Response:
        return await self.lifecycle.serve(request, self._find, count=self.metrics.edges, level=logging.DEBUG)

    async def _find(self, request: Request, context: RequestContext) -> Response:
        self.finder.check_open()
        negotiated(request, [PNG])
        faults = Faults()
        query = bodies.query(request)
        in_query = bodies.converted(query, Thresholds, faults, self.finder.rules.ranges)
        image, blamed, in_body = await self._body(request, faults)
        canny = self._canny(faults, in_body, in_query)
        if faults:
            with faults.noted():
                input_image.measured(image, self.finder.rules, blamed or bodies.BODY)
        faults.check()
        png = await self.finder.png(request, context.client, image, blamed, canny)
        sent = {name for name, text in query.items() if text}
        if isinstance(in_body, EdgesRequest):
            sent |= sent_in(in_body)
        return with_warnings(Response(png, media_type=PNG), warnings(sent & OTHER_THRESHOLDS))

    def _canny(self, faults: Faults, in_body: Thresholds | EdgesRequest, in_query: Thresholds) -> Canny:
        """The thresholds: from the body, else the query, else the configuration."""
        rules = self.finder.rules
        for each in (in_body, in_query):
            faults.add(*rules.number_faults({"canny_low": each.canny_low, "canny_high": each.canny_high}))
        low, high = in_body.canny_low or in_query.canny_low, in_body.canny_high or in_query.canny_high
        return rules.canny(EngineOptions(canny_low=low, canny_high=high))

    async def _body(self, request: Request, faults: Faults) -> tuple[bytes, str | None, Thresholds | EdgesRequest]:
        """The image file, the client's name for it, and the thresholds in the body."""
        kind = bodies.media_type(request)
        if bodies.is_json(kind):
            body = await bodies.json_body(request, self.finder.rules, _json, flat=True, faults=faults)
            return await bodies.image_of_json(body.input_image_base64, faults), input_image.JSON_NAME, body
        if kind in bodies.IMAGE_TYPES:
            return await bodies.image_alone(request, self.finder.rules), None, Thresholds()
        raise bodies.unsupported(kind, TYPES)


def _problem(error: Exception, blamed: str | None) -> Problem:
    match error:
        case BadImageError():
            return Problem(Error.INVALID_IMAGE, str(error), blamed)
        case BusyError():
            return Problem(Error.BUSY, str(error), retry_after=error.retry_after)
        case ClosingError():
            return Problem(Error.DRAINING, "The service is shutting down. Try another server, or this one later.")
        case SlowError():
            return Problem(Error.EXPIRED, str(error))
        case CrashedError():
            return Problem(Error.WORKER_CRASH, str(error))
        case _:
            return Problem(
                Error.INTERNAL, "Finding the edges failed; the server's log has the reason.", reason=str(error)
            )
