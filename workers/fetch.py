"""python -m workers.fetch CONFIG: get the weights that a configuration names ready for the engine.

A repository is downloaded at its pinned commit, verified, and converted to what loads fastest: the layout of diffusers,
one safetensors file a network, float16. Single-file checkpoints are converted too. Pickles are never read. A command
that is killed leaves nothing that could be taken for a model.

Exit codes: 0 all is there; 1 weights are unavailable or damaged; 2 the configuration or the command is wrong;
75 temporary failure (network, hub), try again; 130 interrupted.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl+C during the imports below shows no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workers.config import WorkersConfig, engine_problems, locate, models_folder
from workers.console import INTERRUPTED, WRONG, Parser, leave
from workers.document import Document, SettingsError
from workers.engine.config import EngineConfig, Lora, Weights
from workers.engine.weights import LANDMARKS, is_folder, is_single_file, parts_of
from workers.weights.messages import FetchError, explain, say
from workers.weights.prepare import FetchOptions, prepare
from workers.weights.store import damages, find, manifest_in


def main(arguments: Sequence[str]) -> int:
    """Fetch what a configuration names, or check it; the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        document = Document.read(flags.config, os.environ)
        engine, workers = document.section("engine", EngineConfig), document.section("workers", WorkersConfig)
        document.refuse(engine_problems(engine))
        options = _options(flags, engine, workers.models)
        return (_check if flags.check else _fetch)(locate(engine, flags.config.parent), options)
    except (SettingsError, FetchError) as error:
        print(error, file=sys.stderr)
        return error.code if isinstance(error, FetchError) else WRONG


def _options(flags: Namespace, engine: EngineConfig, configured: str) -> FetchOptions:
    for folder in (flags.source, flags.like):
        if folder is not None and not folder.is_dir():
            raise FetchError(f"{folder}: there is no such folder", WRONG)
    models = models_folder(flags.to or configured)
    if models is None:
        text = f"workers.models is {configured}, but this user has no home: choose a folder with --to"
        raise FetchError(text, WRONG)
    dtype = flags.dtype or ("float16" if engine.dtype == "auto" else engine.dtype)
    same = {name: getattr(flags, name) for name in ("source", "like", "again", "keep", "patience")}
    return FetchOptions(models=models, dtype=dtype, **same)


def _parser() -> Parser:
    parser = Parser("workers.fetch", description="Get the weights that a configuration names ready for the engine.")
    flag, folder = parser.add_argument, dict[str, Any](type=Path, metavar="FOLDER")
    flag("config", type=Path, help="a YAML file, see configs/")
    flag("--to", **folder, help="where prepared weights go; instead of workers.models")
    text = "take repositories from FOLDER/OWNER/NAME, FOLDER/NAME or a Hugging Face cache, not from the hub"
    flag("--from", **folder, dest="source", help=text)
    text = "number format of the weights; the default is engine.dtype, and float16 where that is auto"
    flag("--dtype", choices=("float16", "bfloat16", "float32"), help=text)
    text = "model whose configurations and tokenizer are used to convert single files; the default is SD 1.5"
    flag("--like", **folder, help=text)
    flag("--check", action="store_true", help="read what is there and compare it with its SHA-256")
    flag("--again", action="store_true", help="prepare again what is there already")
    flag("--keep", action="store_true", help="keep the originals, to convert them to another --dtype later")
    text = "how long to keep retrying after the hub or the network failed, 60 by default"
    flag("--patience", type=float, default=60.0, metavar="SECONDS", help=text)
    return parser


def _fetch(engine: EngineConfig, options: FetchOptions) -> int:
    for name, weights in parts_of(engine):
        print(f"engine.{name}: {fetch(name, weights, options)}", flush=True)
    return 0


def fetch(name: str, weights: Weights, options: FetchOptions) -> Path:
    """Prepare one part of the model; its folder. Raises FetchError."""
    try:
        return _own_folder(name, weights) or prepare(name, weights, options)
    except (FetchError, OSError) as error:
        reason = error if isinstance(error, FetchError) else explain(error, options.models)
        raise FetchError(f"engine.{name}: {weights.path}: {reason}", reason.code) from error


def _own_folder(name: str, weights: Weights) -> Path | None:
    """Return a person's own folder, which is read where it is; None for all else. Raises FetchError."""
    if not is_folder(weights) or is_single_file(weights):
        return None
    folder = Path(weights.path)
    if not folder.is_dir():
        raise FetchError("there is no such folder, and only repositories on the hub can be fetched")
    landmark = weights.file if isinstance(weights, Lora) else LANDMARKS[name]
    if not (folder / landmark).is_file():
        raise FetchError(f"there is no {landmark} in it")
    return folder


def _check(engine: EngineConfig, options: FetchOptions) -> int:
    """Say of each part whether it is whole; 1 if one is not."""
    bad = False
    for name, weights in parts_of(engine):
        problems = list(_problems(name, weights, options))
        bad |= bool(problems)
        own = is_folder(weights) and not is_single_file(weights)
        for text in problems or ["your own folder, which has no list of hashes to compare with" if own else "whole"]:
            print(f"engine.{name}: {text}", flush=True)
    if bad:
        say("run the same command without --check to fetch what is missing; add --again to replace what is damaged")
    return int(bad)


def _problems(name: str, weights: Weights, options: FetchOptions) -> Iterator[str]:
    try:
        if _own_folder(name, weights) is not None:
            return
    except FetchError as error:
        yield f"{weights.path}: {error}"
        return
    folder = find(options.models, name, weights, options.dtype)
    manifest = None if folder is None else manifest_in(folder)
    if folder is None or manifest is None:
        yield f"{weights.path} is not in {options.models}, or is incomplete or was changed"
        return
    yield from damages(folder, manifest, read=True)


def interrupted(*_: object) -> None:
    """End at once: downloads run in threads, which cannot be stopped, and nothing half done is taken for a model."""
    said = "\n" * sys.stderr.isatty() + "interrupted; run the same command to continue\n"  # below the bars
    os.write(sys.stderr.fileno(), said.encode())  # sys.stderr may be in the middle of writing
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupted)
    leave(main)
