"""Start-up of the server and of the commands: checked settings, and a pool of workers."""

import sys
from collections.abc import Mapping
from pathlib import Path

from app import __version__
from app.settings import Settings, SettingsError, located, read
from scheduler.core import Scheduler
from workers.channel import PARAMS_BYTES
from workers.console import command
from workers.devices import DeviceChoice
from workers.engine.config import EngineConfig
from workers.engine.metadata import About
from workers.engine.runtimes import files, openvino_files
from workers.engine.weights import absent
from workers.folders import prepare
from workers.logs import configure, suitable
from workers.machine import keep_freed_memory
from workers.pool import Observer, Pool
from workers.preflight import problems
from workers.shared_memory import SlotLayout
from workers.worker_main import WorkerSetup

TEXTS = 2  # prompt and negative prompt
UTF8_BYTES = 4  # the most of a character
# Of an integer in a request: the smallest limit that Python has, as parsing time grows with the square of the digits.
MAX_DIGITS = 640
RUNTIMES = {"torch": "torch", "onnxruntime": "ONNX Runtime"}


class StartError(Exception):
    """The start failed; the message says why, and what to do."""


def prepared(config: Path, environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Settings:
    """Read a configuration, check that its files exist, and set up this process.

    Raises StartError.
    """
    try:
        settings, document = read(config, environ, flags)
        settings = located(settings, config.parent)
        configure(settings.server.log_level, suitable(settings.server.log_format))
        document.refuse(problems(settings.engine, _cache(settings.workers.cache)))
    except SettingsError as error:
        raise StartError(str(error)) from None
    if missing := absent(settings.engine):
        listed = "\n  ".join(missing)
        get = command("-m", "workers.fetch", config)
        raise StartError(f"These weights are not on this machine:\n  {listed}\nFetch them with: {get}")
    sys.set_int_max_str_digits(MAX_DIGITS)
    keep_freed_memory()
    return settings


def _cache(folder: str) -> Path:
    """The cache folder, ready to be written to. Raises StartError."""
    try:
        return prepare(folder)
    except OSError as error:
        raise StartError(f"workers.cache is {folder}, which cannot be used: {error.strerror or error}") from None
    except RuntimeError:
        raise StartError(f"workers.cache is {folder}, but this user has no home folder") from None


def check_runtime(settings: Settings, placement: DeviceChoice) -> None:
    """Check the packages and files of the runtime before any worker starts. Raises StartError."""
    engine, cuda = settings.engine, placement.on_gpu
    if engine.kind != "diffusion":
        return
    if engine.quantisation == "fp8" and not cuda:  # a worker's GPU may be too old, and says so itself
        raise StartError(
            "engine.quantisation is fp8, which needs a GPU: make it none, or fp8-emulated to compare images"
        )
    try:
        if engine.runtime == "onnxruntime":
            files.check(engine, engine.dtype_on(cuda=cuda), cuda=cuda)
        elif engine.runtime == "openvino":
            openvino_files.check(engine.dtype_on(cuda=cuda), cuda=cuda)
    except files.RuntimeProblem as error:
        raise StartError(str(error)) from None


def runtime_in_words(engine: EngineConfig, *, cuda: bool) -> str:
    """The runtime and the number format, for people."""
    if engine.kind == "echo":
        return "nothing: the echo engine has no networks"
    runtime, dtype = engine.runtime_on(cuda=cuda), engine.dtype_on(cuda=cuda)
    if runtime == "openvino":
        return f"OpenVINO in {dtype}; torch until its networks are converted and compiled"
    layers = "" if engine.quantisation == "none" else f", linear layers in {engine.quantisation}"
    return f"{RUNTIMES[runtime]} in {dtype}{layers}"


def slot_layout(settings: Settings) -> SlotLayout:
    return SlotLayout(
        settings.engine.slots,
        settings.server.max_image_bytes + TEXTS * UTF8_BYTES * settings.server.max_text_chars + PARAMS_BYTES,
        settings.workers.output_bytes,
    )


def about(settings: Settings) -> About:
    """The service's name and version in image metadata."""
    return About(settings.server.model_name, f"Contour {__version__}")


def build_pool(settings: Settings, placement: DeviceChoice, cores: int, observe: Observer) -> Pool:
    """Build a pool with one worker per device; the workers share `cores`."""
    threads = settings.workers.threads_per_worker(cores, len(placement.devices))
    core = Scheduler([device.id for device in placement.devices], settings.scheduler)
    return Pool(
        [
            WorkerSetup(
                device,
                settings.engine,
                threads,
                settings.server.log_level,
                settings.workers.cache,
                suitable(settings.server.log_format),
                about(settings),
                workers=len(placement.devices),
            )
            for device in placement.devices
        ],
        core,
        slot_layout(settings),
        observe,
    )
