"""python -m workers.fetch CONFIG: get the weights that a configuration names ready for the engine.

What it names by repository is downloaded at its pinned commit, verified, and converted to what loads fastest: the
layout of diffusers, one safetensors file a component, float16. Single-file checkpoints are converted as well. Never a
pickle. A command that is killed leaves nothing that could be taken for a model; the next goes on where it stopped.

Exit codes: 0 all is there; 1 it cannot be had, or is damaged; 2 the configuration or the command is wrong;
75 it may go well later (network, hub); 130 interrupted.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C during the imports below shows no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))

import httpx

from workers.config import WorkersConfig, engine_problems, locate, models_folder
from workers.console import INTERRUPTED, WRONG, Parser, leave
from workers.document import Document, SettingsError
from workers.engine.config import EngineConfig, Lora, Weights
from workers.engine.weights import LANDMARKS, is_folder, is_single_file, parts_of
from workers.fetching.errors import FetchError, explain
from workers.fetching.prepare import Options, prepare
from workers.fetching.progress import say
from workers.fetching.store import damages, find, manifest_in


def main(arguments: Sequence[str]) -> int:
    """Fetch what a configuration names; the exit code."""
    given = _parser().parse_args(arguments)
    try:
        engine, workers = _read(given.config)
        options = _options(given, engine, workers)
        return (_check if given.check else _fetch)(engine, options)
    except SettingsError as error:
        return _fail(str(error), WRONG)
    except FetchError as error:
        return _fail(str(error), error.code)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", INTERRUPTED)


def _fail(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _parser() -> Parser:
    parser = Parser("workers.fetch", description="Get the weights that a configuration names ready for the engine.")
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where prepared weights go; instead of workers.models"
    )
    parser.add_argument(
        "--from",
        type=Path,
        metavar="FOLDER",
        dest="given",
        help="take repositories from FOLDER/OWNER/NAME, FOLDER/NAME or a Hugging Face cache, not from the hub",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="number format of the weights; the default is engine.dtype, and float16 where that is auto",
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FOLDER",
        help="convert single-file checkpoints with the configurations and the tokenizer of this model, laid out as "
        "diffusers does; the default is Stable Diffusion 1.5",
    )
    parser.add_argument("--check", action="store_true", help="read what is there and compare it with its SHA-256")
    parser.add_argument("--again", action="store_true", help="make anew what is there already")
    parser.add_argument(
        "--keep", action="store_true", help="keep the originals, to convert them to another --dtype later"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to go on trying while the hub does not answer, 60 by default",
    )
    return parser


def _read(path: Path) -> tuple[EngineConfig, WorkersConfig]:
    document = Document.read(path, os.environ)
    engine, workers = document.section("engine", EngineConfig), document.section("workers", WorkersConfig)
    document.refuse(engine_problems(engine))
    return locate(engine, path.parent), workers


def _options(given: argparse.Namespace, engine: EngineConfig, workers: WorkersConfig) -> Options:
    for folder in (given.given, given.like):
        if folder is not None and not folder.is_dir():
            raise FetchError(f"{folder}: there is no such folder", WRONG)
    models = models_folder(given.to or workers.models)
    if models is None:
        raise FetchError(
            f"workers.models is {workers.models}, but this user has no home: choose a folder by --to", WRONG
        )
    return Options(
        models=models,
        dtype=given.dtype or ("float16" if engine.dtype == "auto" else engine.dtype),
        given=given.given,
        like=given.like,
        again=given.again,
        keep=given.keep,
        patience=given.patience,
    )


def _fetch(engine: EngineConfig, options: Options) -> int:
    for name, weights in parts_of(engine):
        print(f"engine.{name}: {fetch(name, weights, options)}", flush=True)
    return 0


def fetch(name: str, weights: Weights, options: Options) -> Path:
    """Have one part of the model ready; its folder. Raises FetchError."""
    try:
        if _is_own(weights):
            return _existing(name, weights)
        return prepare(name, weights, options)
    except FetchError as error:
        raise FetchError(f"engine.{name}: {weights.path}: {error}", error.code) from error
    except (OSError, httpx.HTTPError) as error:
        reason = explain(error, weights, options.models)
        raise FetchError(f"engine.{name}: {weights.path}: {reason}", reason.code) from error


def _is_own(weights: Weights) -> bool:
    """Whether weights are a person's own folder, which is read where it is."""
    return is_folder(weights) and not is_single_file(weights)


def _existing(name: str, weights: Weights) -> Path:
    folder = Path(weights.path)
    if not folder.is_dir():
        raise FetchError("there is no such folder, and only repositories on the hub can be fetched")
    landmark = weights.file if isinstance(weights, Lora) else LANDMARKS[name]
    if not (folder / landmark).is_file():
        raise FetchError(f"there is no {landmark} in it")
    return folder


def _check(engine: EngineConfig, options: Options) -> int:
    """Say of each part whether it is whole; 1 if any is not."""
    bad = 0
    for name, weights in parts_of(engine):
        problems = list(_problems(name, weights, options))
        bad += bool(problems)
        fine = "a folder of your own: nothing says what should be in it" if _is_own(weights) else "whole"
        for text in problems or [fine]:
            print(f"engine.{name}: {text}", flush=True)
    if bad:
        say("what is missing is fetched by the same command without --check, what is damaged is made anew by --again")
    return int(bad > 0)


def _problems(name: str, weights: Weights, options: Options) -> Iterator[str]:
    if _is_own(weights):
        try:
            _existing(name, weights)
        except FetchError as error:
            yield f"{weights.path}: {error}"
        return
    folder = find(options.models, name, weights, options.dtype)
    manifest = None if folder is None else manifest_in(folder)
    if folder is None or manifest is None:
        yield f"{weights.path} is not prepared in {options.models}, or was changed or not all of it is there"
        return
    yield from (f"{folder / damage.file} {damage.reason}" for damage in damages(folder, manifest))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    leave(main)
