"""Keep web pages of other origins from using this service through a visitor's browser.

A browser lets any page send forms, images and untyped bodies to any address, the reader's own machine included, without
asking first; only reading the answer needs a permission (CORS). So what is sent must be refused here. Two checks do it:

- *Origin.* A browser names the page that sends (Origin), and says whether it is of the same origin (Sec-Fetch-Site).
  Programs other than browsers send neither, and pass.
- *Host.* With DNS rebinding, a page of `http://evil.example` points its own name at this machine: then both headers say
  "same origin". What it cannot change is the Host header, which still has its name. So Host must be one of ours.
"""

import re
from collections.abc import Callable, Collection
from functools import lru_cache
from ipaddress import ip_address

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Error, Problem, quoted

ANY = "*"
# Anybody may link to a page, and a link sends no Origin worth checking; probes show nothing of any client.
PAGES = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics")
PAGE_FOLDERS = ("/docs/", "/page/")
CHECKED = (b"host", b"origin", b"sec-fetch-site")
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s\[\]:@,]+))(?::\d{0,5})?")  # RFC 9110, 7.2, in lower case
MAX_HOST_CHARS = 255  # that a name in DNS may have (RFC 1035, 2.3.4)
UNSPECIFIED = ("0.0.0.0", "::")  # noqa: S104 - what people write when they mean this machine

Refuse = Callable[[Request, Problem], Response]


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address, can only be this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class OriginGuard:
    """ASGI middleware that answers 403 to an unknown Host and to a foreign page.

    `hosts`: names that a Host header may have besides those of loopback, of the address listened on and of the
    connection; "*" is any, "*.example.com" any below that name. `origins`: those of pages that may use the service, as
    browsers write them (`https://example.com`); "*" is any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str], refuse: Refuse) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._domains = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._origins = frozenset(origins)
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope)) is not None:
            await self._refuse(Request(scope), problem)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        found: dict[bytes, str] = {}
        for name, value in scope["headers"]:  # once, as every request pays for it
            if name in CHECKED:  # of several, which no browser sends, all are joined, so that none is passed over
                text = value.decode("latin-1").strip().lower()
                found[name] = f"{found[name]}, {text}" if name in found else text
        host = found.get(b"host")
        if host is not None and not self._is_ours(host_of(host), scope):
            return _unknown_host(host)
        if _is_page(scope) or self._may_use(host, found.get(b"origin"), found.get(b"sec-fetch-site")):
            return None
        return _foreign(found.get(b"origin"))

    def _is_ours(self, host: str, scope: Scope) -> bool:
        return len(host) <= MAX_HOST_CHARS and (
            ANY in self._hosts
            or host in self._hosts
            or host in UNSPECIFIED
            or is_loopback(host)
            or host.endswith(self._domains)
            # An IP address needs no DNS, so it cannot be rebound to this machine.
            or (scope.get("server") is not None and host == scope["server"][0])
        )

    def _may_use(self, host: str | None, origin: str | None, site: str | None) -> bool:
        if ANY in self._origins or origin in self._origins:
            return True
        if site == "same-origin" and origin != "null":  # no page can set this header; a proxy may have changed Host
            return True
        own = origin is None or origin.partition("://")[2] == host  # its scheme may have changed at a proxy
        return own and site in (None, "same-origin", "none")  # none: a person, who typed the address


def host_of(header: str) -> str:
    """The host of a Host header in lower case, without port, brackets and final dot; empty if it is invalid."""
    found = HOST.fullmatch(header)
    return "" if found is None else found[1] or found[2].removesuffix(".")


def _is_page(scope: Scope) -> bool:
    path = scope["path"].rstrip("/") or "/"
    return scope["method"] in {"GET", "HEAD"} and (path in PAGES or path.startswith(PAGE_FOLDERS))


def _unknown_host(host: str) -> Problem:
    detail = f"The Host header is {quoted(host)}, which is not a name of this service; server.allowed_hosts adds names."
    return Problem(Error.UNKNOWN_HOST, detail)


def _foreign(origin: str | None) -> Problem:
    page = "A page of another origin" if origin is None else f"A page of {quoted(origin)}"
    return Problem(Error.FOREIGN_ORIGIN, f"{page} may not use this service; server.allowed_origins permits origins.")
