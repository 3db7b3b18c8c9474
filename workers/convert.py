"""python -m workers.convert CONFIG --to onnx|openvino: the model of a configuration as files for another runtime.

`engine.runtime: onnxruntime` needs its files before it starts. OpenVINO's are otherwise made while torch serves; with
them the first start is at full speed, too.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workers.config import WorkersConfig, engine_problems, home_folder, locate
from workers.console import Parser, leave
from workers.document import Document, SettingsError
from workers.engine.config import EngineConfig, rows_of
from workers.engine.runtimes import openvino_files
from workers.engine.runtimes.files import RuntimeProblem, folder_for, identity, need
from workers.engine.weights import MissingWeightsError, absent
from workers.folders import compiler_cache, make, prepare

EXPORTERS = ("onnx", "onnxscript", "onnxruntime")


def main(arguments: Sequence[str]) -> int:
    """Convert; the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("workers").setLevel(logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision, which is not used, is not here
    try:
        engine, workers = read_sections(options.config)
        if engine.kind == "echo":
            print(f"{options.config}: engine.kind is echo, which has no networks to convert", file=sys.stderr)
            return 0
        out = options.out and options.out.absolute()
        if options.to == "openvino":
            paths = to_openvino(engine, out or compiler_cache(openvino_files.CACHE, cache_folder(workers.cache)))
        else:
            paths = to_onnx(replace(engine, onnx=str(out)) if out else engine, options.dtype)
    except (SettingsError, RuntimeProblem, MissingWeightsError, openvino_files.ConversionError) as error:
        print(str(error).replace("CONFIG", str(options.config)), file=sys.stderr)
        return 1
    print(*paths, sep="\n")
    return 0


def _parser() -> Parser:
    parser = Parser("workers.convert", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    parser.add_argument("--to", choices=["onnx", "openvino"], required=True)
    parser.add_argument("--out", type=Path, help="the folder; instead of engine.onnx, or openvino in workers.cache")
    parser.add_argument(
        "--dtype", choices=["float32", "float16"], help="of ONNX files, instead of what suits this machine"
    )
    return parser


def read_engine(path: Path) -> EngineConfig:
    """The engine section of a configuration, with variables of the environment over it. Raises SettingsError."""
    return read_sections(path)[0]


def read_sections(path: Path) -> tuple[EngineConfig, WorkersConfig]:
    """The engine and the workers section, in the same way."""
    document = Document.read(path, os.environ)
    engine, workers = document.section("engine", EngineConfig), document.section("workers", WorkersConfig)
    document.refuse(engine_problems(engine))
    return locate(engine, path.parent, workers.models), workers


def cache_folder(given: str) -> Path:
    """Make workers.cache. Raises RuntimeProblem."""
    if home_folder(given) is None:
        raise RuntimeProblem(f"workers.cache is {given}, but this user has no home folder: choose another folder")
    try:
        return prepare(given)
    except OSError as error:
        raise RuntimeProblem(f"workers.cache is {given}, which cannot be used: {error.strerror or error}") from None


def to_openvino(engine: EngineConfig, place: Path) -> list[Path]:
    """Convert the networks of a (located) configuration for OpenVINO, unless the files are in `place`; their paths.

    Raises RuntimeProblem, MissingWeightsError and ConversionError.
    """
    openvino_files.check(engine.dtype_on(cuda=False), cuda=False, why="the networks are to be converted for OpenVINO")
    if missing := absent(engine):
        raise MissingWeightsError(missing[0])
    folder = place / openvino_files.name_of(engine)
    if not openvino_files.is_complete(folder):
        openvino_files.convert(engine, folder)
    return sorted(folder.iterdir())


def to_onnx(engine: EngineConfig, dtype: str | None = None) -> list[Path]:
    """Make the files of a (located) configuration; their paths. Raises RuntimeProblem and MissingWeightsError."""
    need(EXPORTERS, "ONNX files are to be made")
    import torch

    from workers.engine.model import read
    from workers.engine.runtimes.export import write

    dtype = dtype or engine.dtype_on(cuda=torch.cuda.is_available())
    if dtype not in ("float32", "float16"):
        raise RuntimeProblem(f"engine.dtype is {dtype}: ONNX files are made in float32 and float16 only")
    folder = folder_for(engine, dtype)
    make(folder.parent)
    write(read(engine, getattr(torch, dtype)), rows_of(engine.guidance_scale), identity(engine, dtype), folder)
    return sorted(folder.iterdir())


if __name__ == "__main__":
    leave(main)
