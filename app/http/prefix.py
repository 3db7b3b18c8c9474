"""A service behind a path of a proxy, such as https://example.com/contour/.

Some proxies take the prefix off a path before they pass it on, some do not. Both work: a path that begins with the
prefix loses it here, and all else sees paths as if there were no proxy. Links are relative, so only what must name a
path from the root needs the prefix: see `prefix_of`.
"""

import re

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

HEADER = "X-Forwarded-Prefix"
KEY = "contour.prefix"  # of a scope
# Letters that mean nothing in HTML, JSON, URLs and headers: a proxy may pass on what a client made up.
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
MAX_CHARS = 200
RELATIVE = (".", "..")
# First parts of our own paths: whether a path has such a prefix, or is one of these, could not be told.
OWN = frozenset(("generation", "edges", "docs", "page", "v1", "sdapi", "controlnet"))
OWN |= {"healthz", "readyz", "metrics", "openapi.json", "settings.json"}


def is_prefix(text: str) -> bool:
    """Whether a text can be a prefix: empty, or parts that each begin with a slash."""
    parts = text.split("/")[1:]
    return (
        len(text) <= MAX_CHARS
        and PREFIX.fullmatch(text) is not None
        and not any(part in RELATIVE for part in parts)
        and not (parts and parts[0] in OWN)
    )


def prefix_of(scope: Scope) -> str:
    """The prefix of the client's paths; empty if there is none."""
    prefix: str = scope.get(KEY, "")
    return prefix


class Proxied:
    """ASGI middleware: believes what trusted proxies say of a request's client, scheme and prefix.

    `root_path` is the prefix of requests whose proxy says nothing of it.
    """

    def __init__(self, app: ASGIApp, trusted: list[str], root_path: str) -> None:
        self._app = app
        self._root_path = root_path
        # Uvicorn's, for X-Forwarded-For and X-Forwarded-Proto. It replaces the client's address, so it must come last.
        self._inner = ProxyHeadersMiddleware(app, trusted)  # type: ignore[arg-type]
        self._varies = bool(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix = scope[KEY] = self._client_prefix(scope)
        path = scope["path"]
        if prefix and path == prefix and scope["method"] in {"GET", "HEAD"}:
            # Relative links of a page need the slash; so does this one, wherever the proxy is.
            query = scope["query_string"].decode("latin-1")
            target = f"{prefix.rpartition('/')[2]}/" + (f"?{query}" if query else "")
            await RedirectResponse(target, 308)(scope, receive, send)
            return
        if prefix and path.startswith(f"{prefix}/"):
            scope["path"] = path[len(prefix) :]
        await self._inner(scope, receive, send)  # type: ignore[arg-type]

    def _client_prefix(self, scope: Scope) -> str:
        client = scope.get("client")
        if self._varies and client and client[0] in self._inner.trusted_hosts:
            name = HEADER.lower().encode()
            found = [value.decode("latin-1") for each, value in scope["headers"] if each == name]
            # Several proxies, one behind the other, each add theirs.
            text = "".join(part.strip().rstrip("/") for value in found for part in value.split(","))
            if found and is_prefix(text):
                return text
        return self._root_path
