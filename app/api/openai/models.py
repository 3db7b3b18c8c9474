"""The one model, and the names that are accepted for it."""

import time
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.api.openai.errors import MODEL_FIELD, respond
from app.api.openai.structs import MAX_NAME, Model, ModelList
from app.errors import Error, Problem, quoted
from app.http.access import Access
from app.lifecycle import RequestContext, RequestLifecycle

# Besides its own name: many clients have OpenAI's names built in. The answer to an edit names the real model.
ALIASES = ("gpt-image-", "chatgpt-image-", "dall-e-")


class Models:
    """`GET /v1/models` and `GET /v1/models/{id}`."""

    def __init__(self, lifecycle: RequestLifecycle, access: Access, name: str) -> None:
        self._lifecycle = lifecycle
        self._access = access
        self._model = Model(name, int(time.time()))

    @property
    def name(self) -> str:
        return self._model.id

    def check(self, name: str | None) -> None:
        """Raises Problem for a model that is not here."""
        if name and name != self.name and not (name.startswith(ALIASES) and len(name) <= MAX_NAME):
            raise Problem(
                Error.NOT_FOUND, f"There is no model {quoted(name)} here; the model is {self.name!r}.", MODEL_FIELD
            )

    def routes(self) -> Sequence[Route]:
        # A name may have slashes.
        return [Route("/v1/models", self.listed), Route("/v1/models/{id:path}", self.one)]

    async def listed(self, request: Request) -> Response:
        return await self._lifecycle.serve_lookup(request, self._list, respond)

    async def one(self, request: Request) -> Response:
        return await self._lifecycle.serve_lookup(request, self._one, respond)

    async def _list(self, request: Request, context: RequestContext) -> Response:
        context.client = self._access.client(request)
        return Response(msgspec.json.encode(ModelList([self._model])), media_type="application/json")

    async def _one(self, request: Request, context: RequestContext) -> Response:
        context.client = self._access.client(request)
        name = request.path_params["id"].removesuffix("/")
        self.check(name)
        return Response(msgspec.json.encode(Model(name, self._model.created)), media_type="application/json")
