"""The sockets that the server listens on: bound before a worker starts, so that a port in use is reported at once.

They are held from then on. Only a socket that listens keeps its port: two that are merely bound, with SO_REUSEADDR as
servers need it to be restarted, may share one on Linux. Who connects early waits in the backlog, for a fraction of a
second, until the event loop accepts.
"""

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

BACKLOG = 2048  # as uvicorn has it
TRIES = 10  # to find a port that is free at all addresses of a name
FIRST_UNPRIVILEGED = 1024
REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - every address, and one that is always among them
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_Target: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]  # as getaddrinfo returns it, with port 0


class ListenError(Exception):
    """The server cannot listen on this address.

    The message says why, and `remedy` what to do. `taken`: something else listens there.
    """

    def __init__(self, text: str, remedy: str, *, taken: bool = False) -> None:
        super().__init__(text)
        self.remedy = remedy
        self.taken = taken


def listen(host: str, port: int) -> Sequence[socket.socket]:
    """Listen at each address of `host`; at port 0, on one free port for all of them. Raises ListenError."""
    targets = _targets(host)
    for _ in range(TRIES - 1):
        try:
            return _listen(targets, host, port)
        except ListenError as error:
            if port or not error.taken:
                raise
    return _listen(targets, host, port)


def url(listener: socket.socket) -> str:
    """The URL for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://{bracketed(REACHED_AT.get(host, host))}:{port}"


def bracketed(host: str) -> str:
    """A host as addresses have it before a port: those of IPv6 have colons of their own."""
    return f"[{host}]" if ":" in host else host


def _targets(host: str) -> Sequence[_Target]:
    """The addresses of a host, each once."""
    remedy = "set --host to an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all, and --port separately"
    if "/" in host:
        kind = "a URL." if "://" in host else "a path, but Unix sockets are not supported."
        raise ListenError(f"server.host is {host!r}: {kind}", remedy)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ListenError(f"server.host is {host!r}, which is neither an address nor a known name.", remedy) from None
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _listen(targets: Sequence[_Target], host: str, port: int) -> Sequence[socket.socket]:
    """Raises ListenError, and leaves nothing open then."""
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in targets:
            try:
                listeners.append(_bound(family, address, port))
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                absent = error  # localhost, for one, is ::1 as well, on machines without IPv6 too
                continue
            port = listeners[-1].getsockname()[1]
        if not listeners and absent is not None:
            raise absent
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise _explained(error, host, port) from None
    return listeners


def _bound(family: socket.AddressFamily, address: tuple[Any, ...], port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
        listener.bind((address[0], port, *address[2:]))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _explained(error: OSError, host: str, port: int) -> ListenError:
    where = f"{bracketed(host)}:{port}"
    if error.errno == errno.EADDRINUSE:
        holders = ", ".join(_holders(port)) or "another program"
        text = f"{where} is in use by {holders}."
        return ListenError(text, "end that program, or choose another port with --port", taken=True)
    if error.errno == errno.EACCES:
        text = f"{where}: this user may not listen on port {port}, as ports below {FIRST_UNPRIVILEGED} are privileged."
        return ListenError(text, f"choose a --port of at least {FIRST_UNPRIVILEGED}, or grant CAP_NET_BIND_SERVICE")
    if error.errno in NOT_HERE:
        text = f"{host} is not an address of this machine."
        return ListenError(text, "choose one with --host; 0.0.0.0 is all of them (:: for IPv6)")
    return ListenError(f"Nothing can listen on {where}: {error.strerror or error}.", "choose another --host or --port")


def _holders(port: int) -> Iterator[str]:
    """Processes that listen on a port, as far as this user may know."""
    import psutil

    with suppress(psutil.Error, OSError):
        listening = (each for each in psutil.net_connections("tcp") if each.status == "LISTEN")
        for pid in sorted({each.pid for each in listening if each.pid and each.laddr.port == port}):
            yield f"process {pid} ({psutil.Process(pid).name()})"
