"""The model: tensors and images, without jobs, queues or HTTP."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from workers.engine.config import EngineConfig
from workers.engine.contract import Engine
from workers.engine.trials import Trials
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
    if config.runtime != "onnxruntime":
        read_ahead(config, device)
    with timed("Imported torch"):
        from workers.engine.engine import DiffusionEngine

    return DiffusionEngine(config, _model(config, device), trials=trials)


def _model(config: EngineConfig, device: str) -> "AnyModel":
    if config.runtime == "onnxruntime":
        from workers.engine.runtimes import sessions

        return sessions.load(config, device)
    from workers.engine import model

    loaded = model.load(config, device)
    if config.runtime_on(cuda=loaded.device.type == "cuda") != "openvino":
        return loaded
    from workers.engine.runtimes.openvino import OpenVino

    return replace(loaded, faster=OpenVino(config, str(loaded.dtype).removeprefix("torch.")))
