"""The configuration: a YAML file, overridden by environment variables and flags, as frozen dataclasses.

`workers.document` reads it. The text below each field is its meaning in docs/configuration.md.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from app.http.access import read_keys
from app.http.prefix import is_prefix
from scheduler.limits import Limits
from workers.config import WorkersConfig, engine_problems, home_folder, locate
from workers.document import Document, SettingsError
from workers.engine.config import EngineConfig
from workers.engine.contract import Embedding
from workers.engine.header import default_max_pixels
from workers.engine.metadata import About, Metadata
from workers.machine import memory_limit
from workers.schema import Problem, show

__all__ = ["ServerConfig", "Settings", "SettingsError", "load"]

ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.IGNORECASE)
HOST = re.compile(r"(\*\.)?[a-z0-9._-]+", re.IGNORECASE)
NAME = re.compile(r"[a-z0-9._-]+", re.IGNORECASE)
DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443", re.IGNORECASE)  # which browsers leave out of an origin
DAY = 86400  # seconds
BODY_COPIES = 2  # in memory until a request is answered: its body, and the image decoded from it
LEAST_BUFFERED_BYTES, MOST_BUFFERED_BYTES = 256 * 2**20, 2 * 2**30
Bytes = Annotated[int, Meta(ge=1024, le=2**30)]
Seconds = Annotated[float, Meta(gt=0, le=DAY)]
# An empty key is refused, also as a variable: a lost key must not open the service to everybody.
Secret = Annotated[str, Meta(extra={"secret": True, "needed": True})]
KeyFile = Annotated[str, Meta(min_length=1, extra={"needed": True})]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The server: its address, its clients, and limits on their requests. Times are in seconds."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    """The address to listen on: `0.0.0.0` is all of IPv4, `::` all of IPv6."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """The port to listen on; 0 is any free one, which the log names."""
    max_body_bytes: Bytes = 32 * 2**20
    """The largest body of a request."""
    max_image_bytes: Annotated[Bytes, Meta(extra={"former": "max_picture_bytes"})] = 16 * 2**20
    """The largest image file in a request, after base64."""
    max_pixels: Annotated[int, Meta(ge=64 * 64, le=2**30)] | Literal["auto"] = "auto"
    """The most pixels that an image's header may declare; `auto` goes by `engine.decode_bytes`."""
    max_buffered_bytes: Annotated[int, Meta(ge=2**20, le=2**40)] | Literal["auto"] = "auto"
    """Memory for all bodies and images of unfinished requests; one client gets at most as much as it leaves free.
    `auto` is an eighth of the machine's memory, at least 256 MiB and at most 2 GiB."""
    max_text_chars: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """The longest prompt, in characters."""
    max_images: Annotated[int, Meta(ge=1, le=64)] = 8
    """The most images of one request."""
    model_name: Annotated[str, Meta(max_length=100)] = ""
    """The model's name as clients see it; if empty, that of its folder, repository or file."""
    embed_metadata: Embedding = "source"
    """What an image file says about itself, unless a request chooses: `full` is all parameters, prompt and seed
    included; `source` only that a model made it; `none` nothing."""
    deadline: Annotated[float, Meta(gt=0, le=DAY)] | Literal["auto"] = "auto"
    """Deadline of requests that set none; `auto` goes by the measured speed, and is 60 at least."""
    max_deadline: Annotated[float, Meta(gt=0, le=DAY)] = 3600.0
    """The longest deadline that a client may ask for."""
    drain_seconds: Annotated[float, Meta(ge=0, le=DAY)] = 60.0
    """How long a shutdown waits for accepted requests."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""
    log_format: Literal["auto", "human", "json"] = "auto"
    """Format of the log; `auto` is `human` on a terminal and `json` elsewhere."""
    log_requests: bool = True
    """Whether each request for images gets a line in the log."""
    api_key: Secret | None = field(default=None, repr=False)
    """A key that requests must send, at least 16 characters. Without this and `api_key_file`, the service is open to
    everybody."""
    api_key_file: KeyFile | None = None
    """A file with API keys, one per line; a relative path counts from the configuration file."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Host names of this service, besides loopback's and the address listened on; `*.example.com` is every name below,
    `*` any. Where the service listens beyond loopback, an empty list is any."""
    allowed_origins: list[str] = field(default_factory=list)
    """Origins whose pages may use this service, such as `https://example.com`, or `*`; its own page always may."""
    shared_progress: bool = False
    """AUTOMATIC1111's interface: whether clients at one address see and cancel each other's work, as on a private
    machine."""
    trusted_proxies: list[str] = field(default_factory=list)
    """Addresses and networks of proxies whose X-Forwarded-For, -Proto and -Prefix are believed, as in `10.0.0.0/8`."""
    root_path: str = ""
    """The path of this service at its proxy, such as `/contour`, whether the proxy removes it or not. A trusted proxy
    may send X-Forwarded-Prefix instead."""
    header_seconds: Seconds = 10.0
    """How long the head of a request may take to arrive."""
    max_header_bytes: Annotated[int, Meta(ge=1024, le=2**20)] = 64 * 2**10
    """The largest head of a request."""
    body_seconds: Seconds = 60.0
    """How long a body may take to arrive, and a client to read an answer."""
    keep_alive_seconds: Seconds = 75.0
    """How long a connection may be idle; more than the 60 s that load balancers keep theirs."""
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 900
    """The most connections; one client gets at most as many as it leaves free. The default fits the usual limit of
    1,024 open files."""

    @property
    def has_keys(self) -> bool:
        """Whether a request needs an API key."""
        return self.api_key is not None or self.api_key_file is not None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings, one section for each package."""

    server: ServerConfig = field(default_factory=ServerConfig)
    scheduler: Limits = field(default_factory=Limits)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def max_pixels(self) -> int:
        if self.server.max_pixels != "auto":
            return self.server.max_pixels
        return default_max_pixels(self.engine.decode_budget(memory_limit()))

    @property
    def max_buffered_bytes(self) -> int:
        """The limit for all bodies and their images together, while their requests are answered."""
        if self.server.max_buffered_bytes != "auto":
            return self.server.max_buffered_bytes
        least = max(LEAST_BUFFERED_BYTES, _buffers_needed(self.server.max_body_bytes))
        return max(least, min(memory_limit() // 8, MOST_BUFFERED_BYTES))


def _buffers_needed(body_bytes: int) -> int:
    """The least budget in which a client alone can send a body of `body_bytes`: half is always left free for others."""
    return 2 * BODY_COPIES * body_bytes


def load(path: Path, environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Settings:
    """Read a configuration file, the variables over it, and flags by dotted key over both. Raises SettingsError."""
    return located(read(path, environ, flags)[0], path.parent)


def read(path: Path, environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> tuple[Settings, Document]:
    """The settings as they are written, and the document that tells where each comes from. Raises SettingsError."""
    document = Document.read(path, environ, flags)
    settings = document.convert(Settings)
    if (keys := settings.server.api_key_file) is not None:
        settings = replace(
            settings,
            server=replace(settings.server, api_key_file=str(path.parent.absolute() / (home_folder(keys) or keys))),
        )
    problems = [*server_problems(settings), *scheduler_problems(settings.scheduler), *engine_problems(settings.engine)]
    document.refuse(problems)
    return settings, document


def located(settings: Settings, folder: Path) -> Settings:
    """The settings with the weights where they lie on this machine; relative paths count from `folder`."""
    engine, server = settings.engine, settings.server
    server = replace(server, model_name=server.model_name or _model_name(engine, folder))
    return replace(settings, server=server, engine=locate(engine, folder, settings.workers.models))


def _model_name(engine: EngineConfig, folder: Path) -> str:
    """From the configuration, without the path of the weights on this machine."""
    if engine.kind == "echo" or engine.model is None:
        return engine.kind
    if engine.model.file is not None:
        return Path(engine.model.file).stem
    return (folder / engine.model.path).resolve().name.removesuffix(".safetensors")


# ----------------------------------------------------------------------------------------- contradictions in settings


def server_problems(settings: Settings) -> list[Problem]:
    """Contradictions in the `server` section, and between it and the others."""
    server, room = settings.server, settings.workers.output_bytes
    found = []
    base64_bytes = -(-server.max_image_bytes // 3) * 4
    if base64_bytes > server.max_body_bytes:
        text = f"is {server.max_image_bytes}, which is {base64_bytes} in base64: more than server.max_body_bytes"
        found.append(Problem(("server", "max_image_bytes"), f"{text} ({server.max_body_bytes})"))
    if (needed := _buffers_needed(server.max_body_bytes)) > settings.max_buffered_bytes:
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
    if NAME.fullmatch(host) or _parses(ip_address, host):
        return
    remedy = "write an IPv6 address without brackets" if host.startswith("[") else "the port is server.port"
    text = f"is {show(host)}, but must be an address such as 127.0.0.1, 0.0.0.0 or ::, or a host name; {remedy}"
    yield Problem(("server", "host"), text)


def _access_problems(server: ServerConfig) -> Iterator[Problem]:
    try:
        read_keys(server.api_key, server.api_key_file)
    except (OSError, ValueError) as error:
        name, text = "api_key", "cannot be used"
        if server.api_key_file is not None:
            name, text = "api_key_file", f"is {server.api_key_file}, which cannot be used"
        yield Problem(("server", name), f"{text}: {_reason(error)}")
    yield from _list_problems(
        "trusted_proxies",
        server.trusted_proxies,
        partial(_parses, ip_network),
        "an address or a network, such as 10.0.0.0/8",
    )
    if not is_prefix(server.root_path):
        text = f"is {show(server.root_path)}, but must begin with a slash and end without one, such as /contour"
        yield Problem(("server", "root_path"), f"{text}; and it must not be a path of this service, such as /docs")
    yield from _list_problems(
        "allowed_hosts",
        server.allowed_hosts,
        lambda host: host == "*" or HOST.fullmatch(host) is not None or _parses(ip_address, host),
        "a host name without port, *.NAME for all names below one, or *",
    )
    yield from _list_problems(
        "allowed_origins",
        server.allowed_origins,
        lambda origin: origin == "*" or (ORIGIN.fullmatch(origin) is not None and not DEFAULT_PORT.fullmatch(origin)),
        "an origin as browsers write it, such as https://example.com, or *",
    )


def _list_problems(name: str, values: list[str], valid: Callable[[str], bool], wanted: str) -> Iterator[Problem]:
    for n, value in enumerate(values):
        if not valid(value):
            yield Problem(("server", name, str(n)), f"is {show(value)}, but must be {wanted}")


def _parses(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _reason(error: OSError | ValueError) -> str:
    match error:
        case UnicodeDecodeError():  # its own text quotes what it found
            return "it is not UTF-8 text"
        case OSError():
            return error.strerror or "it cannot be read"
        case _:
            return str(error)


def _largest_result(settings: Settings) -> int:
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
