"""The address that would be listened to: free, or taken, and by whom."""

import errno
import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException

from app.checks.finding import Finding, Level, Subject
from app.probe import EVERYWHERE

SECONDS = 3.0  # for an answer of who listens there
REMEDIES = {
    errno.EACCES: "take a port from 1024 on, or grant CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "choose an address of this machine as server.host; 0.0.0.0 is all of them",
}


def check(subject: Subject) -> Iterator[Finding]:
    """Binds it for a moment, as the server would."""
    host, port = subject.settings.server.host, subject.settings.server.port
    try:
        _bind(host, port)
    except OSError as error:
        yield _taken(host, port) if error.errno == errno.EADDRINUSE else _refused(host, port, error)
    else:
        yield Finding("port", Level.OK, f"{host}:{port} is free" if port else f"{host}: any free port")


def _bind(host: str, port: int) -> None:
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as asyncio does
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(1)


def _taken(host: str, port: int) -> Finding:
    if _is_ours(EVERYWHERE.get(host, host), port):
        text = f"{host}:{port} is taken by a service like this one, which is alive: nothing to do, unless for another"
        return Finding("port", Level.WARNING, text, "end that, or choose another port: CONTOUR_SERVER__PORT=...")
    text = f"{host}:{port} is taken by another program"
    return Finding("port", Level.MISSING, text, f"see which: ss -ltnp 'sport = {port}'; or CONTOUR_SERVER__PORT=...")


def _is_ours(host: str, port: int) -> bool:
    connection = HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer: object = json.loads(connection.getresponse().read(1024))
        return answer == {"status": "ok"}
    except (OSError, HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _refused(host: str, port: int, error: OSError) -> Finding:
    text = f"{host}:{port} cannot be listened to: {error.strerror or error}"
    return Finding("port", Level.MISSING, text, REMEDIES.get(error.errno or 0, "choose another server.host"))
