"""The one model that there is, and the names that it answers to."""

import time
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.access import Access
from app.compat.openai.errors import MODEL_FIELD, respond
from app.compat.openai.structs import MAX_NAME, Model, ModelList
from app.desk import Desk, Ticket
from app.errors import Error, Problem, quoted

# Beside its own name: many clients have OpenAI's built in, and there are more of them each year. The answer to an edit
# says which model it was.
ALIASES = ("gpt-image-", "chatgpt-image-", "dall-e-")


class Models:
    """`GET /v1/models` and `GET /v1/models/{id}`."""

    def __init__(self, desk: Desk, access: Access, name: str) -> None:
        self._desk = desk
        self._access = access
        self._model = Model(name, int(time.time()))

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._model.id

    def check(self, asked: str | None) -> None:
        """Raises Problem for a model that is not here."""
        if asked and asked != self.name and not (asked.startswith(ALIASES) and len(asked) <= MAX_NAME):
            raise Problem(Error.NOT_FOUND, f"There is no model {quoted(asked)} here, but {self.name!r}.", MODEL_FIELD)

    def routes(self) -> Sequence[Route]:
        """Names may have slashes."""
        return [Route("/v1/models", self.listed), Route("/v1/models/{id:path}", self.one)]

    async def listed(self, request: Request) -> Response:
        """All of them."""
        return await self._desk.aside(request, self._list, respond)

    async def one(self, request: Request) -> Response:
        """One of them."""
        return await self._desk.aside(request, self._one, respond)

    async def _list(self, request: Request, ticket: Ticket) -> Response:
        ticket.client = self._access.client(request)
        return Response(msgspec.json.encode(ModelList([self._model])), media_type="application/json")

    async def _one(self, request: Request, ticket: Ticket) -> Response:
        ticket.client = self._access.client(request)
        asked = request.path_params["id"].removesuffix("/")
        self.check(asked)
        return Response(msgspec.json.encode(Model(asked, self._model.created)), media_type="application/json")
