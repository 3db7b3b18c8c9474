"""Check whether the service on this machine is ready to generate images, for HEALTHCHECK of a container.

The exit code is 0 if it is ready and 1 if not. The port comes from the configuration and its environment variables.
"""

import os
import sys
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from app.http.listening import REACHED_AT
from app.settings import ServerConfig
from workers.console import Parser, leave
from workers.document import Document, SettingsError

SECONDS = 3.0  # for an answer


def main(arguments: Sequence[str]) -> int:
    """0 when /readyz says so, else 1 and why on standard error."""
    parser = Parser("app.probe", description=__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("configs/demo.yaml"),
        help="configuration file in YAML (default: configs/demo.yaml)",
    )
    try:
        document = Document.read(parser.parse_args(arguments).config, os.environ)
        status = ready(document.section("server", ServerConfig))
    except (SettingsError, OSError, HTTPException) as error:
        print(f"not ready: {error}", file=sys.stderr)
        return 1
    print(f"/readyz answers {status}", file=sys.stderr)
    return int(status != 200)


def ready(server: ServerConfig) -> int:
    """The status of /readyz. Raises OSError or HTTPException where nothing, or nothing of this kind, answers."""
    connection = HTTPConnection(REACHED_AT.get(server.host, server.host), server.port, timeout=SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    leave(main)
