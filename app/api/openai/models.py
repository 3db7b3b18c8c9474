"""The one model, and the names that are accepted for it."""

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.api.openai.structs import MAX_NAME, MODEL_FIELD, Model, ModelList, respond
from app.errors import Error, Problem, quoted
from app.lifecycle import RequestContext, RequestLifecycle

# Besides its own name: many clients have OpenAI's names built in. The answer to an edit names the real model.
ALIASES = ("gpt-image-", "chatgpt-image-", "dall-e-")


@dataclass(frozen=True, slots=True)
class Models:
    """`GET /v1/models` and `GET /v1/models/{id}`."""

    lifecycle: RequestLifecycle
    model: Model

    @property
    def name(self) -> str:
        return self.model.id

    def check(self, name: str | None) -> None:
        """Raises Problem for a model that is not here."""
        if name and name != self.name and not (name.startswith(ALIASES) and len(name) <= MAX_NAME):
            raise Problem(
                Error.NOT_FOUND, f"There is no model {quoted(name)} here; the model is {self.name!r}.", MODEL_FIELD
            )

    async def listed(self, request: Request) -> Response:
        return await self.lifecycle.serve_lookup(request, self._list, respond)

    async def one(self, request: Request) -> Response:
        return await self.lifecycle.serve_lookup(request, self._one, respond)

    async def _list(self, request: Request, context: RequestContext) -> Response:
        return Response(msgspec.json.encode(ModelList([self.model])), media_type="application/json")

    async def _one(self, request: Request, context: RequestContext) -> Response:
        name = request.path_params["id"].removesuffix("/")
        self.check(name)
        return Response(msgspec.json.encode(Model(name, self.model.created)), media_type="application/json")
