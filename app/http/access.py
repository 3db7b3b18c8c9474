"""API keys, and the client of a request: by its key, or else by its address."""

import base64
import hmac
import stat
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from starlette.requests import HTTPConnection

from app.errors import Error, Problem

IPV6_NETWORK_BITS = 64  # a site gets a whole network (RFC 6177), so its addresses are one client
NAME_CHARS = 64  # of an invalid address, as a proxy sent it


class Access:
    """Accepts requests with one of the keys, or all requests if there are no keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def client(self, request: HTTPConnection) -> str:
        """The client of a request, by whom the scheduler's shares count. Reads only headers.

        Raises Problem for a request without a valid key.
        """
        if not self._digests:
            return client_of(request.client.host if request.client else "")
        given = _given(request)
        if given is None:
            raise _refusal("Send an API key, as Authorization: Bearer KEY or as X-API-Key: KEY.", "")
        # All keys are compared, each in constant time, so that the time reveals nothing about them.
        matches = [hmac.compare_digest(_digest(given), digest) for digest in self._digests]
        if True not in matches:
            raise _refusal("This API key is not valid.", ', error="invalid_token"')
        return f"key {matches.index(True) + 1}"


def _given(request: HTTPConnection) -> bytes | None:
    if (key := request.headers.get("x-api-key")) is None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        match scheme.lower():
            case "bearer":
                pass
            case "basic":
                return _password(key)
            case _:
                return None
    return key.strip().encode("latin-1")


def _password(credentials: str) -> bytes | None:
    """The password of Basic credentials (RFC 7617), for clients without other schemes; any user name will do."""
    try:
        _, colon, password = base64.b64decode(credentials.encode("latin-1"), validate=True).partition(b":")
    except ValueError:
        return None
    return password if colon else None


def _digest(key: bytes) -> bytes:
    """A digest, so that all keys have the same length."""
    return sha256(key).digest()


def _refusal(detail: str, reason: str) -> Problem:
    """A challenge as in RFC 6750, 3: its reason is named only where a key was given."""
    return Problem(Error.UNAUTHORIZED, detail, headers={"WWW-Authenticate": f'Bearer realm="contour"{reason}'})


@lru_cache(maxsize=1024)
def client_of(host: str) -> str:
    """The client of an address: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        address = ip_address(host)
    except ValueError:
        return host[:NAME_CHARS]
    if isinstance(address, IPv4Address):
        return str(address)
    network = IPv6Address(int(address) >> IPV6_NETWORK_BITS << IPV6_NETWORK_BITS)
    return str(address.ipv4_mapped or f"{network}/{IPV6_NETWORK_BITS}")


MIN_KEY_CHARS = 16
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_keys(api_key: str | None, file: str | None) -> list[str]:
    """The API keys: the one in the configuration, and those in a file, one a line; # begins a comment.

    Raises OSError or ValueError, whose messages quote no key.
    """
    keys = [] if api_key is None else [api_key]
    if file is not None:
        keys += _keys_in(Path(file))
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(
                "a key has characters that cannot be sent in a header; use letters, digits and punctuation"
            )
        if len(key) < MIN_KEY_CHARS:
            text = f"a key has {len(key)} characters, but needs at least {MIN_KEY_CHARS} so that nobody can guess it"
            raise ValueError(f"{text}; `openssl rand -hex 16` makes one. Set no key to serve everybody")
    return keys


def _keys_in(path: Path) -> list[str]:
    if path.stat().st_mode & OTHERS_WRITE:
        raise ValueError("other users can write to it and so add their own keys; run chmod go-w on it")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError("it has no keys; write one per line")
    return found
