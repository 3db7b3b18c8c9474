"""Send an image and a prompt to the service, and save the image that comes back.

    python example/client.py --prompt "a red heart and a blue star" --image my.png --out new.jpg

It needs the standard library only.
"""

import argparse
import base64
import http.client
import json
import os
import random
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROMPT = "a red heart, a yellow star and a white ring on a blue background"
KEY_VARIABLE = "CONTOUR_API_KEY"
SHOWN_BYTES = 200  # of an answer that cannot be read
ABOUT_SECONDS = 10  # for a line that can be missed
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}  # by how a file begins


class ClientError(Exception):
    """No image was made; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one image and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        image, warnings = generate(options)
        for warning in warnings:
            print(warning, file=sys.stderr)
        print(save(image, options.out))
        if about := known(options.url):
            print(about, file=sys.stderr)
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def generate(options: argparse.Namespace) -> tuple[bytes, list[str]]:
    """Request an image with the edges of `options.image`. Return it, and the warnings of the service.

    Raises ClientError, or OSError when `options.image` cannot be read.
    """
    asked = {
        "request_id": random.getrandbits(31),
        "text": options.prompt,
        "input_image_base64": base64.b64encode(options.image.read_bytes()).decode(),
        "random_seed": options.seed,
    }
    if options.control_image is not None:
        asked["control_image"] = options.control_image
    address = _address(options.url, "/generation/")
    answer = _post(address, asked, options.timeout, options.api_key)
    try:
        content = json.loads(answer)
        if content["request_id"] != asked["request_id"]:
            raise ClientError(f"{address} answered request {content['request_id']}, not {asked['request_id']}")
        return base64.b64decode(content["output_image_base64"], validate=True), content.get("warnings", [])
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f"{address} gave an answer that cannot be read: {answer[:SHOWN_BYTES]!r}") from error


def save(image: bytes, out: Path | None) -> Path:
    """Write the image to `out`, or to output.jpg or output.png if that is None. Return the path."""
    suffix = next((suffix for start, suffix in SUFFIXES.items() if image.startswith(start)), "")
    path = out or Path(f"output{suffix}")
    path.write_bytes(image)
    return path.resolve()


def known(url: str) -> str:
    """Return what the service at `url` says that its model can draw, or "" if it says nothing."""
    try:
        with urllib.request.urlopen(_address(url, "/settings.json"), timeout=ABOUT_SECONDS) as response:
            text: str = json.load(response)["about"]["text"]
            return text
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):  # about may be null
        return ""


def _address(url: str, path: str) -> str:
    return ("" if "://" in url else "http://") + url.rstrip("/") + path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    parser.add_argument("--image", type=Path, default=HERE / "input.png", help="the image to send (%(default)s)")
    parser.add_argument("--prompt", default=PROMPT, help="what the image should show (%(default)s)")
    parser.add_argument("--seed", type=int, default=1234, help="the same seed gives the same image (%(default)s)")
    what = "photo: the service finds its edges; edges: it is an edge map, white on black (photo)"
    parser.add_argument("--control-image", choices=("photo", "edges"), help=what)
    parser.add_argument("--out", type=Path, help="the file to write (output.jpg or output.png)")
    key = os.environ.get(KEY_VARIABLE, "")
    parser.add_argument("--api-key", default=key, help=f"needed if the service has keys; better set ${KEY_VARIABLE}")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for the image (%(default)s)")
    return parser


def _post(url: str, content: Mapping[str, Any], timeout: float, api_key: str) -> bytes:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    try:
        request = urllib.request.Request(url, json.dumps(content).encode(), headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        raise ClientError(f"{url} answered {error.code} {error.reason}: {_detail(error)}") from error
    except TimeoutError as error:
        raise ClientError(f"{url} did not answer within {timeout:g} s; --timeout sets a longer time") from error
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise ClientError(f"Nothing answers at {url} ({reason}). Start the service with `make serve`.") from error
    except (OSError, http.client.HTTPException) as error:
        raise ClientError(f"{url} closed the connection: {str(error) or type(error).__name__}") from error
    except ValueError as error:
        raise ClientError(f"--url {url}: {error}") from error


def _detail(error: urllib.error.HTTPError) -> str:
    """Return the detail of an error (RFC 9457), or the whole body if it has none."""
    body = error.read().decode(errors="replace")
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body.strip() or "no reason was given"


if __name__ == "__main__":
    sys.exit(main())
