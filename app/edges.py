"""`POST /edges`: a picture in, its edges out, as the model would see them. It takes no part in the queue."""

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app import bodies, pictures
from app.access import Access
from app.desk import Desk, Ticket
from app.errors import Error, Problem
from app.fields import Rules
from app.generation import unless_gone
from app.metrics import Metrics
from app.negotiation import negotiated
from workers.edger import FailedError, Wanted
from workers.edging import ClosingError, CrowdedError, Edging, EdgingError, LostError, SlowError
from workers.engine.config import Canny
from workers.engine.contract import BadPictureError
from workers.engine.header import output_size

PNG = "image/png"
TYPES = "the picture itself (image/png, image/jpeg, image/webp), or JSON (application/json)"


class EdgesRequest(msgspec.Struct, frozen=True):
    """A body of JSON. Unknown fields are ignored."""

    input_image_base64: msgspec.Raw
    canny_low: int | None = None
    canny_high: int | None = None


class Thresholds(msgspec.Struct, frozen=True):
    """The query. Unknown parameters are ignored."""

    canny_low: int | None = None
    canny_high: int | None = None


_json = msgspec.json.Decoder(EdgesRequest, strict=False)


class Edges:
    """The endpoint. Everything about a request is checked by its header, before anything is decoded elsewhere."""

    def __init__(
        self,
        desk: Desk,
        access: Access,
        edging: Edging,
        rules: Rules,
        canny: Canny,
        metrics: Metrics,
        draining: Callable[[], bool],
    ) -> None:
        self._desk = desk
        self._access = access
        self._edging = edging
        self._rules = rules
        self._configured = Thresholds(canny.low, canny.high)
        self._metrics = metrics
        self._draining = draining

    async def respond(self, request: Request) -> Response:
        """Answer one request, with a PNG or a problem."""
        return await self._desk.serve(request, self._find, count=self._metrics.edges)

    async def _find(self, request: Request, ticket: Ticket) -> Response:
        ticket.client = self._access.client(request)
        if self._draining():
            raise _problem(ClosingError(), None)
        negotiated(request, [PNG])
        in_query = bodies.converted(bodies.query(request), Thresholds)
        picture, blamed, in_body = await self._body(request)
        canny = self._canny(in_body, in_query)
        header = pictures.measured(picture, self._rules, blamed)
        size = output_size(header.width, header.height, self._rules.sizing)
        try:
            png = await unless_gone(request, self._edging.find(Wanted(picture, size, canny), ticket.client))
        except (BadPictureError, FailedError, EdgingError) as error:
            raise _problem(error, blamed) from None
        return Response(png, media_type=PNG)

    def _canny(self, *chosen: Thresholds | EdgesRequest) -> Canny:
        """The first of each threshold that is chosen, else the configured one."""
        for each in chosen:
            self._rules.check_numbers({"canny_low": each.canny_low, "canny_high": each.canny_high})
        lows, highs = zip(*((each.canny_low, each.canny_high) for each in (*chosen, self._configured)), strict=True)
        return Canny(low=next(filter(None, lows)), high=next(filter(None, highs)))

    async def _body(self, request: Request) -> tuple[bytes, str | None, Thresholds | EdgesRequest]:
        """The image file, what the client calls it, and the thresholds beside it."""
        kind = bodies.media_type(request)
        if bodies.is_json(kind):
            asked = await bodies.json_body(request, self._rules, _json, flat=True)
            encoded = asked.input_image_base64
            return await bodies.in_thread_if_large(len(encoded), pictures.decoded, encoded), pictures.JSON_NAME, asked
        if kind in bodies.PICTURES:
            return await bodies.read(request, self._rules.max_body_bytes), None, Thresholds()
        raise bodies.unsupported(kind, TYPES)


def _problem(error: Exception, blamed: str | None) -> Problem:
    match error:
        case BadPictureError():
            return Problem(Error.INVALID_PICTURE, str(error), blamed)
        case CrowdedError():
            return Problem(Error.BUSY, str(error), retry_after=error.retry_after)
        case ClosingError():
            return Problem(Error.DRAINING, "Nothing new is taken; try another server, or this one when it is back.")
        case SlowError():
            return Problem(Error.EXPIRED, str(error))
        case LostError():
            return Problem(Error.POISONED, str(error))
        case _:
            return Problem(Error.INTERNAL, f"The edges of this picture could not be found: {error}")
