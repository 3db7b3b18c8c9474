"""Check a configuration: whether it can be read, and whether its weights and runtime files are complete."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path

from app.checks.finding import Finding, Level, Subject, size
from app.startup import runtime_in_words
from workers.config import home_folder
from workers.console import command
from workers.engine.config import FLOAT8_CAPABILITY, EngineConfig
from workers.engine.runtimes import openvino_files
from workers.engine.runtimes.files import RuntimeProblem, folder_for
from workers.engine.runtimes.files import check as check_files
from workers.engine.weights import (
    MissingWeightsError,
    absent,
    files,
    folder_of,
    is_folder,
    is_single_file,
    parts_of,
)
from workers.folders import compiler_cache, existing
from workers.preflight import problems
from workers.weights.checkpoints import shapes_in
from workers.weights.messages import FetchError

# -------------------------------------------------------------------------------------------------------- configuration


def configuration(subject: Subject) -> Iterator[Finding]:
    """Whether the configuration can be read and fits together. Raises NotUsableError where it cannot be read."""
    engine = subject.settings.engine
    if engine.model is None:
        yield Finding("configuration", Level.OK, f"{subject.config}: {engine.kind}, no model")
    else:
        text = f"{subject.config}: {engine.model.path}, run by {runtime_in_words(engine, cuda=subject.on_gpu)}"
        yield Finding("configuration", Level.OK, text)
    for problem in problems(engine):
        yield Finding("configuration", Level.MISSING, f"{'.'.join(problem.key)} {problem.text}")
    if engine.faults.wanted:
        text = f"engine.faults is set, so workers fail on purpose: {engine.faults}"
        yield Finding("configuration", Level.WARNING, text, "leave engine.faults out")


# -------------------------------------------------------------------------------------------------------------- weights

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def weights(subject: Subject) -> Iterator[Finding]:
    """Whether all weights are on this machine and complete."""
    engine = subject.settings.engine
    if engine.kind == "echo":
        yield Finding("weights", Level.OK, "not needed: engine.kind is echo")
        return
    fetch = command("-m", "workers.fetch", subject.config)
    if missing := absent(engine):
        yield Finding("weights", Level.MISSING, f"not on this machine: {'; '.join(missing)}", _remedy(engine, fetch))
        return
    try:
        found = list(files(engine, "cuda:0" if subject.on_gpu else "cpu"))
        for path in found:
            shapes_in(path)
        _need_tokenizer(engine)
    except MissingWeightsError as error:
        yield Finding("weights", Level.MISSING, str(error).partition(";")[0], fetch)
    except FetchError as error:
        yield Finding("weights", Level.MISSING, str(error), f"{fetch} --again")
    else:
        yield Finding("weights", Level.OK, f"{_listed(found)}; to read all of them: {fetch} --check")


def _remedy(engine: EngineConfig, fetch: str) -> str:
    """A user's own folder is not fetched; the check of the configuration reports what is wrong with it."""
    gone = [weights for name, weights in parts_of(engine) if folder_of(name, weights) is None]
    own = all(is_folder(weights) and not is_single_file(weights) for weights in gone)
    return "correct the path in the configuration" if own else fetch


def bytes_of_weights(subject: Subject) -> int:
    """The bytes of the weights in a worker's memory; 0 if they are not complete."""
    return number_of_weights(subject) * ITEM_BYTES[subject.settings.engine.dtype_on(cuda=subject.on_gpu)]


def number_of_weights(subject: Subject) -> int:
    """How many weights the model has; 0 if they are not complete."""
    engine = subject.settings.engine
    if engine.kind == "echo" or absent(engine):
        return 0
    name = "cuda:0" if subject.on_gpu else "cpu"
    with suppress(FileNotFoundError, FetchError):  # the check of weights tells of that
        return sum(prod(shape) for path in files(engine, name) for shape in shapes_in(path).values())
    return 0


def _need_tokenizer(engine: EngineConfig) -> None:
    """Raises MissingWeightsError."""
    folder = None if engine.model is None else folder_of("model", engine.model)
    if folder is not None and not any((folder / "tokenizer").glob("*.json")):
        raise MissingWeightsError(str(folder / "tokenizer"))


def _listed(paths: list[Path]) -> str:
    return f"{len(paths)} files with {size(sum(path.stat().st_size for path in paths))}, none truncated"


# ------------------------------------------------------------------------------------------------------------- runtimes


def onnx(subject: Subject) -> Iterator[Finding]:
    """Whether the files for ONNX Runtime exist; nothing where torch runs the networks."""
    engine = subject.settings.engine
    if engine.kind == "echo" or engine.runtime != "onnxruntime":
        return
    dtype = engine.dtype_on(cuda=subject.on_gpu)
    try:
        check_files(engine, dtype, cuda=subject.on_gpu)
    except RuntimeProblem as error:
        text, _, remedy = str(error).replace("CONFIG", str(subject.config)).partition("; make it")
        yield Finding("onnx", Level.MISSING, text, f"make it{remedy}" if remedy else "")
    else:
        yield Finding("onnx", Level.OK, f"the files of this model are in {folder_for(engine, dtype)}")


def quantisation(subject: Subject) -> Iterator[Finding]:
    """Whether the GPUs compute in 8-bit floats; nothing where that is not wanted."""
    engine, nvml = subject.settings.engine, subject.nvml
    if engine.kind == "echo" or engine.quantisation != "fp8":
        return
    remedy = "set engine.quantisation to none, or to fp8-emulated to compare images"
    if not subject.on_gpu or nvml is None:
        yield Finding("quantisation", Level.MISSING, "engine.quantisation is fp8, which needs a GPU", remedy)
        return
    for gpu in nvml.devices():
        capability = nvml.capability(gpu.uuid)
        if capability is not None and tuple(map(int, capability.split("."))) < FLOAT8_CAPABILITY:
            text = f"{gpu.name} has no instructions for 8-bit floats (compute capability {capability})"
            yield Finding("quantisation", Level.MISSING, text, remedy)


def openvino(subject: Subject) -> Iterator[Finding]:
    """Whether OpenVINO is installed, and its files exist or fit on the disk; nothing where it is not to be used."""
    engine = subject.settings.engine
    wanted = engine.runtime == "openvino" or (engine.runtime == "auto" and not subject.on_gpu)
    unused = engine.speed.compile is False or engine.quantisation != "none"
    if engine.kind == "echo" or absent(engine) or unused or not wanted:
        return
    try:
        dtype = engine.dtype_on(cuda=subject.on_gpu)
        openvino_files.check(dtype, cuda=subject.on_gpu, why=f"engine.runtime is {engine.runtime}")
    except RuntimeProblem as error:
        # With `auto` torch runs the networks then, slower.
        yield Finding("openvino", Level.WARNING if engine.runtime == "auto" else Level.MISSING, str(error))
    else:
        yield from _converted(subject)


def _converted(subject: Subject) -> Iterator[Finding]:
    cache = home_folder(subject.settings.workers.cache)
    if cache is None:  # the check of the disk says so
        return
    place = compiler_cache(openvino_files.CACHE, cache.absolute())
    folder = openvino_files.folder_for(subject.settings.engine, place)
    if openvino_files.is_complete(folder):
        yield Finding("openvino", Level.OK, f"the converted networks are in {folder}")
        return
    needed, free = (
        number_of_weights(subject) * ITEM_BYTES[openvino_files.STORED],
        shutil.disk_usage(existing(place)).free,
    )
    text = f"the first start converts the networks, which takes up to {size(needed)} in {place}; {size(free)} free"
    if free < needed:
        yield Finding("openvino", Level.WARNING, text, "free some space, or torch goes on running the networks")
    else:
        yield Finding("openvino", Level.OK, text)
