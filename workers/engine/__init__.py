"""The model: tensors and images, without jobs, queues or HTTP."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from workers.engine.config import EngineConfig
from workers.engine.contract import Engine
from workers.engine.trials import COMPILING, GROUP_NORM, Trials
from workers.engine.weights import read_ahead
from workers.logs import timed

if TYPE_CHECKING:
    from workers.engine.runtime import AnyModel


def build(config: EngineConfig, device: str, trials: Trials | None = None) -> Engine[Any]:
    """The engine that a configuration asks for, on a torch device ("cpu", "cuda:0"); the echo engine needs none.

    `trials` records what may end this process.

    Raises MissingWeightsError, UnsafeModelError, LoraError, UnsupportedModelError and UnsupportedSamplerError.
    """
    engine = _whole(config, device, trials)
    if not config.faults.wanted:
        return engine
    from workers.engine.faults import FaultyEngine

    return cast(Engine[Any], FaultyEngine(engine, config.faults))  # the rest it passes on


def _whole(config: EngineConfig, device: str, trials: Trials | None) -> Engine[Any]:
    # torch and diffusers take seconds to import, so only the engine that needs them imports them.
    if config.kind == "echo":
        from workers.engine.echo import EchoEngine

        return EchoEngine(config)
    trials = trials or Trials()
    if GROUP_NORM in trials.without:
        config = replace(config, speed=replace(config.speed, kernels=False))
    runtime = config.runtime_on(cuda=device.startswith("cuda"))
    converted = runtime == "openvino" and COMPILING not in trials.without and _is_converted(config)
    if runtime != "onnxruntime" and not converted:
        read_ahead(config, device)
    with timed("Imported torch"):
        from workers.engine.engine import DiffusionEngine

    model = _converted(config, device, trials) if converted else None
    return DiffusionEngine(config, model or _model(config, device, runtime), trials=trials)


def _is_converted(config: EngineConfig) -> bool:
    from workers.engine.runtimes import openvino_files as files

    return config.model is not None and files.is_complete(files.folder_for(config))


def _converted(config: EngineConfig, device: str, trials: Trials) -> "AnyModel | None":
    from workers.engine.runtimes import openvino

    return openvino.load(config, device, trials)


def _model(config: EngineConfig, device: str, runtime: str) -> "AnyModel":
    if runtime == "onnxruntime":
        from workers.engine.runtimes import sessions

        return sessions.load(config, device)
    from workers.engine import model

    loaded = model.load(config, device)
    if runtime != "openvino":
        return loaded
    from workers.engine.runtimes.openvino import OpenVino

    return replace(loaded, faster=OpenVino(config, str(loaded.dtype).removeprefix("torch.")))
