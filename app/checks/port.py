"""Whether the address to listen on is free, or else what uses it."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException

from app.checks.finding import Finding, Level, Subject
from app.listening import REACHED_AT, ListenError, bracketed, listen

SECONDS = 3.0  # for an answer of who listens there


def check(subject: Subject) -> Iterator[Finding]:
    """Listens there for a moment, as the server would."""
    host, port = subject.settings.server.host, subject.settings.server.port
    try:
        listeners = listen(host, port)
    except ListenError as error:
        ours = error.taken and _is_ours(REACHED_AT.get(host, host), port)
        text = f"{error}" + " It is a service like this one, and it answers." * ours
        yield Finding("port", Level.WARNING if ours else Level.MISSING, text, error.remedy)
        return
    for listener in listeners:
        listener.close()
    yield Finding("port", Level.OK, f"{bracketed(host)}:{port} is free" if port else f"{host}: any free port")


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
