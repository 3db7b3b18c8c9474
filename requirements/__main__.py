"""python -m requirements: write what serving needs, by version and hash, from pyproject.toml and constraints.txt.

- requirements.txt: for people, by version alone, so that any pip takes it: older ones know no hashes in constraints.
- requirements/image.txt: the same for an image, by hash.
- requirements/cuda.txt: constraints on what the CUDA build of torch brings, which is installed only if that build is.
- requirements/gpu.txt: what an image installs besides, where that build is.
- requirements/pip.txt: a pip that knows them.

uv resolves for every platform at once and reads metadata alone, so no wheel is downloaded.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = "pip==26.3"
# Of torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl, as it is tested with: PyPI's index does not list it.
CPU_BUILD = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
MADE = "# Made by `make requirements`; do not edit.\n"
PEOPLE = f"""{MADE}\
# What serving needs, and no more: pip install -r requirements.txt, then python -m app."""
IMAGE = f"""{MADE}\
# Of torch there are hashes of two builds. PyPI's is for CUDA and asks for what cuda.txt pins; that without CUDA asks
# for none of it, and is taken where pip finds it (x86-64): {CPU_BUILD}
-c cuda.txt"""
ONLY_WITH_CUDA = f"{MADE}# Constraints: nothing here is installed unless the torch that was found asks for it.\n"


def main() -> int:
    """Write the files; the exit code."""
    pinned = names((ROOT / "constraints.txt").read_text())
    blocks = resolve("pyproject.toml", "--extra", "gpu", "--constraint", "constraints.txt")
    gpu = [block for block in blocks if name(block) == "xformers"]
    serving = [block for block in blocks if name(block) in pinned]
    write("requirements.txt", PEOPLE, map(without_hashes, serving))
    by_hash = [with_cpu_build(block) if name(block) == "torch" else block for block in serving]
    write("requirements/image.txt", IMAGE, by_hash)
    write("requirements/cuda.txt", ONLY_WITH_CUDA.rstrip(), [each for each in blocks if each not in (*gpu, *serving)])
    write("requirements/gpu.txt", MADE.rstrip(), gpu)
    write("requirements/pip.txt", MADE.rstrip(), resolve("-", stdin=PIP))
    return 0


def resolve(*sources: str, stdin: str = "") -> list[str]:
    """What uv pins for Linux, a block of lines a package."""
    flags = ("--generate-hashes", "--universal", "--python-version", "3.11", "--no-header", "--no-annotate")
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--no-config", "--quiet", *flags, *sources]
    text = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return [block for block in re.split(r"\n(?=\S)", text.strip()) if "'win32'" not in block or "!= 'win32'" in block]


def without_hashes(block: str) -> str:
    """The same package by its version, on one line."""
    return block.partition("\\")[0].rstrip()


def with_cpu_build(block: str) -> str:
    """The same package, whose CPU build is as good."""
    return f"{block} \\\n    --hash=sha256:{CPU_BUILD}"


def name(requirement: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]*", requirement)[0]).lower()  # type: ignore[index]


def names(text: str) -> set[str]:
    """The packages of a file of requirements."""
    return {name(line) for line in text.splitlines() if line and line[0] not in "# -"}


def write(path: str, head: str, blocks: Iterable[str]) -> None:
    """Write one file and say so."""
    (ROOT / path).write_text("\n".join([head, *blocks]) + "\n")
    print(path, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
