"""The configuration: a YAML file, overridden by environment variables, as frozen dataclasses.

What stops the start, and how a variable is named, is written in `workers.document`.
"""

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from app.http import buffers
from scheduler.policy import Limits
from workers.config import WorkersConfig, engine_problems, locate
from workers.document import Document, Problem, SettingsError, show
from workers.engine.config import EngineConfig
from workers.engine.header import default_max_pixels
from workers.memory import memory_limit

__all__ = ["ServerConfig", "Settings", "SettingsError", "load"]

DAY = 86400  # seconds
VERBATIM = [("server", "api_key"), ("server", "api_key_file")]  # text in a variable as it is: an empty one is no key
MIN_KEY_CHARS = 16
LEAST_BUFFERED_BYTES, MOST_BUFFERED_BYTES = 256 * 2**20, 2 * 2**30
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.IGNORECASE)
HOST = re.compile(r"(\*\.)?[a-z0-9._-]+", re.IGNORECASE)
DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443", re.IGNORECASE)  # which browsers leave out of an origin
Bytes = Annotated[int, Meta(ge=1024, le=2**30)]
Seconds = Annotated[float, Meta(gt=0, le=DAY)]
Secret = Annotated[str, Meta(extra={"secret": True})]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What is listened to, and how much of a client's time and bytes is taken.

    `max_picture_bytes` is an encoded picture after base64, `max_pixels` what its header may declare; auto goes by the
    memory that decoding may take (`engine.decode_bytes`). All bodies and images of requests in hand take at most
    `max_buffered_bytes`, of which a client may have as much as it leaves free; auto is an eighth of the memory there
    is, at least 256 MiB and at most 2 GiB. `deadline` is for clients that set none; auto goes by what a picture takes.
    Clients may ask for `max_deadline` at most. In seconds. A request may ask for up to `max_images` pictures.
    `model_name` is what clients are told that the model is called; the name of its folder, repository or file if it is
    empty. `log_format` auto: for people on a terminal, JSON elsewhere; `log_requests`: a line for each request for
    pictures.

    `allowed_hosts` are names for this service in a Host header, besides loopback's and the address listened on;
    `*.example.com` is any name below, `*` any at all. Beyond loopback, an empty list is any. `allowed_origins` are
    those whose pages may use this service (`https://example.com`, or `*`); its own page always may.
    `shared_progress`: on AUTOMATIC1111's interface, whoever shares an address sees and ends each other's work, as on a
    private machine.

    Without `api_key` and `api_key_file` (one key a line, of at least 16 characters) everybody may ask. A client is its
    key, else its address; `trusted_proxies` are addresses and networks whose X-Forwarded-For is believed. Head and body
    of a request have `header_seconds` and `body_seconds` to arrive, an answer has `body_seconds` to be read. A
    connection may be idle for `keep_alive_seconds`, longer than the 60 s that balancers keep theirs. `max_connections`
    fits the usual limit of 1,024 descriptors; one client may have as many connections as it leaves free.
    """

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    max_body_bytes: Bytes = 32 * 2**20
    max_picture_bytes: Bytes = 16 * 2**20
    max_pixels: Annotated[int, Meta(ge=64 * 64, le=2**30)] | Literal["auto"] = "auto"
    max_buffered_bytes: Annotated[int, Meta(ge=2**20, le=2**40)] | Literal["auto"] = "auto"
    max_text_chars: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_images: Annotated[int, Meta(ge=1, le=64)] = 8
    model_name: Annotated[str, Meta(max_length=100)] = ""
    deadline: Annotated[float, Meta(gt=0, le=DAY)] | Literal["auto"] = "auto"
    max_deadline: Annotated[float, Meta(gt=0, le=DAY)] = 3600.0
    drain_seconds: Annotated[float, Meta(ge=0, le=DAY)] = 60.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "human", "json"] = "auto"
    log_requests: bool = True
    api_key: Secret | None = field(default=None, repr=False)
    api_key_file: Annotated[str, Meta(min_length=1)] | None = None
    allowed_hosts: list[str] = field(default_factory=list)
    allowed_origins: list[str] = field(default_factory=list)
    shared_progress: bool = False
    trusted_proxies: list[str] = field(default_factory=list)
    header_seconds: Seconds = 10.0
    max_header_bytes: Annotated[int, Meta(ge=1024, le=2**20)] = 64 * 2**10
    body_seconds: Seconds = 60.0
    keep_alive_seconds: Seconds = 75.0
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 900

    @property
    def has_keys(self) -> bool:
        """Whether a request needs an API key."""
        return self.api_key is not None or self.api_key_file is not None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of it, a section a package."""

    server: ServerConfig = field(default_factory=ServerConfig)
    scheduler: Limits = field(default_factory=Limits)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def max_pixels(self) -> int:
        """Of an image, by its header."""
        if self.server.max_pixels != "auto":
            return self.server.max_pixels
        return default_max_pixels(self.engine.decode_budget(memory_limit()))

    @property
    def max_buffered_bytes(self) -> int:
        """Of all bodies and their images, while their requests are in hand."""
        if self.server.max_buffered_bytes != "auto":
            return self.server.max_buffered_bytes
        least = max(LEAST_BUFFERED_BYTES, buffers.needed(self.server.max_body_bytes))
        return max(least, min(memory_limit() // 8, MOST_BUFFERED_BYTES))


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read a configuration file and the variables over it. Raises SettingsError."""
    document = Document.read(path, environ, VERBATIM)
    settings = document.convert(Settings)
    if (keys := settings.server.api_key_file) is not None:
        settings = replace(settings, server=replace(settings.server, api_key_file=str(path.parent / keys)))
    scheduler, engine = settings.scheduler, settings.engine
    document.refuse([*_server_problems(settings), *_scheduler_problems(scheduler), *engine_problems(engine)])
    server = replace(settings.server, model_name=settings.server.model_name or _model_name(engine, path.parent))
    return replace(settings, server=server, engine=locate(engine, path.parent, settings.workers.models))


def _model_name(engine: EngineConfig, folder: Path) -> str:
    """By what the configuration says; where the weights lie on this machine is nobody's business."""
    if engine.kind == "echo" or engine.model is None:
        return engine.kind
    if engine.model.file is not None:
        return Path(engine.model.file).stem
    return (folder / engine.model.path).resolve().name.removesuffix(".safetensors")


def read_keys(server: ServerConfig) -> list[str]:
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


def _server_problems(settings: Settings) -> list[Problem]:
    server, room = settings.server, settings.workers.output_bytes
    found = []
    base64_bytes = -(-server.max_picture_bytes // 3) * 4
    if base64_bytes > server.max_body_bytes:
        text = f"is {server.max_picture_bytes}, which is {base64_bytes} in base64: more than server.max_body_bytes"
        found.append(Problem(("server", "max_picture_bytes"), f"{text} ({server.max_body_bytes})"))
    if (needed := buffers.needed(server.max_body_bytes)) > settings.max_buffered_bytes:
        text = f"is {settings.max_buffered_bytes}, but one body of server.max_body_bytes may need {needed}"
        found.append(Problem(("server", "max_buffered_bytes"), text))
    if isinstance(server.deadline, float | int) and server.deadline > server.max_deadline:
        text = f"is {server.deadline}, but must not be above server.max_deadline ({server.max_deadline})"
        found.append(Problem(("server", "deadline"), text))
    found += _access_problems(server)
    if (largest := _largest_result(settings)) > room:
        text = f"is {room}, but a result may take {largest}"
        found.append(Problem(("workers", "output_bytes"), text))
    return found


def _access_problems(server: ServerConfig) -> Iterator[Problem]:
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
            text = f"is {proxy!r}, but must be an address or a network, such as 10.0.0.0/8"
            yield Problem(("server", "trusted_proxies", str(n)), text)
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
            return error.strerror or str(error)
        case _:
            return str(error)


def _largest_result(settings: Settings) -> int:
    """Bytes of the largest result: what came, for echo; else a PNG of noise, which is just above its pixels."""
    if settings.engine.kind == "echo":
        return settings.server.max_picture_bytes
    size = settings.engine.size
    return size.short_side * size.long_side * 3 * 17 // 16


def _scheduler_problems(limits: Limits) -> list[Problem]:
    if limits.restart_pause <= limits.restart_pause_max:
        return []
    text = f"is {limits.restart_pause}, but must not be above scheduler.restart_pause_max ({limits.restart_pause_max})"
    return [Problem(("scheduler", "restart_pause"), text)]
