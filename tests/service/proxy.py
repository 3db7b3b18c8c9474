"""A small reverse proxy, as people put one before a service: it passes all that is below a prefix on, streams too."""

import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.service.running import PATIENCE, until

METHODS = ["GET", "HEAD", "POST", "OPTIONS"]
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@contextmanager
def proxied(url: str, prefix: str, *, strips: bool = True, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a proxy, prefix included, before a service at `url`.

    `strips`: it takes the prefix off the paths that it passes on. `headers` are added to each request.
    """
    upstream = httpx.AsyncClient(base_url=url, timeout=PATIENCE)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with upstream:
            yield

    async def passed_on(request: Request) -> Response:
        path = request.scope["raw_path"].decode()
        path = path.removeprefix(prefix) if strips else path
        kept = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
        query = request.url.query
        sent = upstream.build_request(
            request.method,
            path + (f"?{query}" if query else ""),
            headers=[*kept, *(headers or {}).items()],
            content=await request.body(),
        )
        answer = await upstream.send(sent, stream=True)
        back = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
        return StreamingResponse(_chunks(answer), answer.status_code, back)

    async def other(request: Request) -> Response:
        return Response("Nothing of ours is here.", 404)

    routes = [Route(f"{prefix}{{path:path}}", passed_on, methods=METHODS), Route("/{path:path}", other)]
    app = Starlette(routes=routes, lifespan=lifespan)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, loop="asyncio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for chunk in answer.aiter_raw():
        yield chunk
    await answer.aclose()
