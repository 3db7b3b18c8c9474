"""Shared by the benchmarks by simulation: options, and the files of their tables."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def parser(description: str | None, seeds: Sequence[int], seconds: float | None = None) -> argparse.ArgumentParser:
    """The options of all of them. One that simulates all cases for as long has `seconds` as well."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seconds is not None:
        found.add_argument("--seconds", type=float, default=seconds, help="simulated time of each run")
    found.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    found.add_argument("--processes", type=int, default=1)
    found.add_argument("--out", type=Path, help="write the JSON here as well")
    found.add_argument("--markdown", type=Path, help="write the tables here as well")
    return found


def publish(options: argparse.Namespace, result: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Print the tables, and write them and the figures where asked to."""
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text + "\n")
