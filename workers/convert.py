"""python -m workers.convert CONFIG --to onnx: the model of a configuration as files for other runtimes.

These files are what `engine.runtime: onnxruntime` reads.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workers.config import WorkersConfig, engine_problems, locate
from workers.console import Parser, leave
from workers.document import Document, SettingsError
from workers.engine.config import EngineConfig, rows_of
from workers.engine.runtimes.files import RuntimeProblem, folder_for, identity, need
from workers.engine.weights import MissingWeightsError
from workers.folders import make

EXPORTERS = ("onnx", "onnxscript", "onnxruntime")


def main(arguments: Sequence[str]) -> int:
    """Convert; the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("workers").setLevel(logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision, which is not used, is not here
    try:
        engine = read_engine(options.config)
        if options.out is not None:
            engine = replace(engine, onnx=str(options.out.absolute()))
        for path in convert(engine, options.dtype):
            print(path)
    except (SettingsError, RuntimeProblem, MissingWeightsError) as error:
        print(str(error).replace("CONFIG", str(options.config)), file=sys.stderr)
        return 1
    return 0


def _parser() -> Parser:
    parser = Parser("workers.convert", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    parser.add_argument("--to", choices=["onnx"], required=True)
    parser.add_argument("--out", type=Path, help="the folder; instead of the configuration's engine.onnx")
    parser.add_argument("--dtype", choices=["float32", "float16"], help="instead of what suits this machine")
    return parser


def read_engine(path: Path) -> EngineConfig:
    """The engine section of a configuration, with variables of the environment over it. Raises SettingsError."""
    document = Document.read(path, os.environ)
    engine, workers = document.section("engine", EngineConfig), document.section("workers", WorkersConfig)
    document.refuse(engine_problems(engine))
    if engine.kind != "diffusion":
        raise SettingsError(f"{path}: engine.kind is {engine.kind}, which has no networks to convert")
    return locate(engine, path.parent, workers.models)


def convert(engine: EngineConfig, dtype: str | None = None) -> list[Path]:
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
