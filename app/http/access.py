"""Who may ask, and whose request it is: API keys, and clients by their key or else by their address."""

import base64
import hmac
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.requests import HTTPConnection

from app.errors import Error, Problem

IPV6_NETWORK_BITS = 64  # a host is given its network whole (RFC 6177): all addresses in it are one client
NAME_CHARS = 64  # of an address that is none, as a proxy told it


class Access:
    """Lets requests through that bring one of the keys; without keys, all of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def client(self, request: HTTPConnection) -> str:
        """Whose request it is, as the scheduler's shares count. Nothing of the body is needed for that.

        Raises Problem for a request that brings none of the keys.
        """
        if not self._digests:
            return client_of(request.client.host if request.client else "")
        given = _given(request)
        if given is None:
            raise _refusal("Send an API key, as Authorization: Bearer KEY or as X-API-Key: KEY.", "")
        # All are compared, each in constant time: no time tells how much of which key was right.
        matches = [hmac.compare_digest(_digest(given), digest) for digest in self._digests]
        if True not in matches:
            raise _refusal("This API key is not known here.", ', error="invalid_token"')
        return f"key {matches.index(True) + 1}"


def _given(request: HTTPConnection) -> bytes | None:
    """The key that a request brings."""
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
    """That of Basic credentials (RFC 7617), for clients that know no other scheme; the user's name does not matter."""
    try:
        _, colon, password = base64.b64decode(credentials.encode("latin-1"), validate=True).partition(b":")
    except ValueError:
        return None
    return password if colon else None


def _digest(key: bytes) -> bytes:
    """Of one length, whatever the key's."""
    return sha256(key).digest()


def _refusal(detail: str, reason: str) -> Problem:
    """A challenge as in RFC 6750, 3: its reason is named only where a key was given."""
    return Problem(Error.UNAUTHORIZED, detail, headers={"WWW-Authenticate": f'Bearer realm="contour"{reason}'})


@lru_cache(maxsize=1024)
def client_of(host: str) -> str:
    """Whose an address is: an IPv4 address is one client, and so are all addresses of a /64 of IPv6."""
    try:
        address = ip_address(host)
    except ValueError:
        return host[:NAME_CHARS]
    if isinstance(address, IPv4Address):
        return str(address)
    network = IPv6Address(int(address) >> IPV6_NETWORK_BITS << IPV6_NETWORK_BITS)
    return str(address.ipv4_mapped or f"{network}/{IPV6_NETWORK_BITS}")
