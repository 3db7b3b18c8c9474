"""Checks across settings that are valid one by one: contradictions, and unusable API keys."""

import re
import stat
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from app.http import buffers
from app.http.prefix import is_prefix
from scheduler.limits import Limits
from workers.engine.metadata import About, Metadata
from workers.schema import Problem, show

if TYPE_CHECKING:
    from app.settings import ServerConfig, Settings

MIN_KEY_CHARS = 16
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.IGNORECASE)
HOST = re.compile(r"(\*\.)?[a-z0-9._-]+", re.IGNORECASE)
NAME = re.compile(r"[a-z0-9._-]+", re.IGNORECASE)
DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443", re.IGNORECASE)  # which browsers leave out of an origin


def read_keys(server: "ServerConfig") -> list[str]:
    """The API keys of a configuration: its own, and those of its file, one a line; # begins a comment.

    Raises OSError or ValueError, which do not quote any.
    """
    keys = [] if server.api_key is None else [server.api_key]
    if server.api_key_file is not None:
        keys += _keys_in(Path(server.api_key_file))
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("a key has characters that no header carries; take letters, digits and punctuation")
        if len(key) < MIN_KEY_CHARS:
            text = f"a key has {len(key)} characters, and can be guessed with fewer than {MIN_KEY_CHARS}"
            raise ValueError(f"{text}; `openssl rand -hex 16` makes one. Leave it out to serve everybody")
    return keys


def _keys_in(path: Path) -> list[str]:
    if path.stat().st_mode & OTHERS_WRITE:
        raise ValueError("others can write to it, and so add keys of their own: chmod go-w")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError("it has no key; write one a line")
    return found


def server_problems(settings: "Settings") -> list[Problem]:
    """Contradictions in the `server` section, and between it and the others."""
    server, room = settings.server, settings.workers.output_bytes
    found = []
    base64_bytes = -(-server.max_image_bytes // 3) * 4
    if base64_bytes > server.max_body_bytes:
        text = f"is {server.max_image_bytes}, which is {base64_bytes} in base64: more than server.max_body_bytes"
        found.append(Problem(("server", "max_image_bytes"), f"{text} ({server.max_body_bytes})"))
    if (needed := buffers.needed(server.max_body_bytes)) > settings.max_buffered_bytes:
        text = f"is {settings.max_buffered_bytes}, but one body of server.max_body_bytes may need {needed}"
        found.append(Problem(("server", "max_buffered_bytes"), text))
    if isinstance(server.deadline, float | int) and server.deadline > server.max_deadline:
        text = f"is {server.deadline}, but must not be above server.max_deadline ({server.max_deadline})"
        found.append(Problem(("server", "deadline"), text))
    found += _host_problems(server.host)
    found += _access_problems(server)
    if (largest := _largest_result(settings)) > room:
        text = f"is {room}, but a result may take {largest}"
        found.append(Problem(("workers", "output_bytes"), text))
    return found


def _host_problems(host: str) -> Iterator[Problem]:
    if NAME.fullmatch(host) or _is_address(host):
        return
    remedy = "write an IPv6 address without brackets" if host.startswith("[") else "the port is server.port"
    text = f"is {show(host)}, but must be an address such as 127.0.0.1, 0.0.0.0 or ::, or a host name; {remedy}"
    yield Problem(("server", "host"), text)


def _access_problems(server: "ServerConfig") -> Iterator[Problem]:
    try:
        read_keys(server)
    except (OSError, ValueError) as error:
        name, text = "api_key", "cannot be used"
        if server.api_key_file is not None:
            name, text = "api_key_file", f"is {server.api_key_file}, which cannot be used"
        yield Problem(("server", name), f"{text}: {_reason(error)}")
    for n, proxy in enumerate(server.trusted_proxies):
        try:
            ip_network(proxy)
        except ValueError:
            text = f"is {show(proxy)}, but must be an address or a network, such as 10.0.0.0/8"
            yield Problem(("server", "trusted_proxies", str(n)), text)
    if not is_prefix(server.root_path):
        text = f"is {show(server.root_path)}, but must begin with a slash and end without one, such as /contour"
        yield Problem(("server", "root_path"), f"{text}; and it must not be a path of this service, such as /docs")
    for n, host in enumerate(server.allowed_hosts):
        if host != "*" and not (HOST.fullmatch(host) or _is_address(host)):
            text = f"is {show(host)}, but must be a host name without port, *.NAME for all names below one, or *"
            yield Problem(("server", "allowed_hosts", str(n)), text)
    for n, origin in enumerate(server.allowed_origins):
        if origin != "*" and (not ORIGIN.fullmatch(origin) or DEFAULT_PORT.fullmatch(origin)):
            text = f"is {show(origin)}, but must be an origin as browsers write it, such as https://example.com, or *"
            yield Problem(("server", "allowed_origins", str(n)), text)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _reason(error: OSError | ValueError) -> str:
    match error:
        case UnicodeDecodeError():  # its own text quotes what it found
            return "it is not text in UTF-8"
        case OSError():
            return error.strerror or "it cannot be read"
        case _:
            return str(error)


def _largest_result(settings: "Settings") -> int:
    """Bytes of the largest result: what came, for echo; else a PNG of noise, which is just above its pixels, with all
    of its metadata."""
    engine, server = settings.engine, settings.server
    if engine.kind == "echo":
        return server.max_image_bytes
    metadata = Metadata(engine, About(server.model_name)).largest(server.max_text_chars)
    return engine.size.short_side * engine.size.long_side * 3 * 17 // 16 + metadata


def scheduler_problems(limits: Limits) -> list[Problem]:
    """Contradictions in the `scheduler` section."""
    if limits.restart_backoff <= limits.restart_backoff_max:
        return []
    most = f"scheduler.restart_backoff_max ({limits.restart_backoff_max})"
    text = f"is {limits.restart_backoff}, but must not be above {most}"
    return [Problem(("scheduler", "restart_backoff"), text)]
