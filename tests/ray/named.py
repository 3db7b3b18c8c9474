"""The deployment of example/ray, but each answer says which replica made it: only tests need to know."""

import os
from collections.abc import Mapping

from ray import serve
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from example.ray.service import ROOT, Replica

HEADER = "X-Replica"


class Name:
    """ASGI middleware that adds the replica's process id to each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the header."""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = str(os.getpid())
            await send(message)

        await self._app(scope, receive, send_named)


class NamedReplica(Replica):
    """A replica that says its name."""

    def __serve_build_asgi_app__(self) -> Starlette:
        app = super().__serve_build_asgi_app__()
        app.add_middleware(Name)
        return app


CONTOUR = serve.deployment(name="Contour")(serve.ingress()(NamedReplica))


def build(arguments: Mapping[str, str]) -> serve.Application:
    """As that of example/ray, for arguments that are complete."""
    return CONTOUR.bind(str(ROOT / arguments["config"]), arguments["host"])
