"""The engine's own passes at full size, on tensors of a GPU that is not there, with the inputs that they get."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import register_dataclass

from tests.workers.engine import full_size
from tests.workers.engine.fake_cuda import DEVICE, AsOnCuda
from workers.engine import model as models
from workers.engine import quantisation
from workers.engine.batch import Batch, BatchShape
from workers.engine.conditioning import TEXT_TOKENS, pack_projections
from workers.engine.config import EngineConfig
from workers.engine.denoiser import Denoiser, Guided, Layers, Passes
from workers.engine.graphs import Fallbacks, GraphContext, Graphs
from workers.engine.model import Model, assemble, plans_of
from workers.engine.networks import Attend, Control, LayerInputs
from workers.engine.plan import Size
from workers.engine.streams import SideStream

for _inputs in (LayerInputs, Control):
    register_dataclass(_inputs)  # so that their tensors are inputs of a compiled pass


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments, a tree of tensors."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Noted:
    """A pass that notes what it is called with."""

    name: str
    function: Callable[..., Any]
    calls: dict[str, Call] = field(default_factory=dict)

    def __call__(self, *arguments: Any) -> Any:
        self.calls[self.name] = Call(self.function, arguments)
        return self.function(*arguments)


@contextmanager
def on_a_gpu(config: EngineConfig) -> Iterator[Model]:
    """The full-size model in half precision; tensors that are made within are fake, too."""
    parts = full_size.architecture()
    # Numbers, which a fake device has not: the sampler's matrix, and what `pack_projections` draws and overwrites.
    plans = plans_of(config.sampler, parts.scheduler)
    for part in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder):
        part.half()
    with torch.no_grad():
        for network in (parts.unet, parts.controlnet):
            pack_projections(network)
        # On a device, a product in float8 is tried, whose values are compared.
        with fake(), patch.object(quantisation, "check"), patch.object(models, "plans_of", lambda *_: plans):
            yield assemble(config, parts, DEVICE, fused=True)


@contextmanager
def fake() -> Iterator[None]:
    """Tensors that are made within are fake, on any device."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), AsOnCuda():
        yield


def pass_of(which: str, model: Model, attend: Attend, size: Size, images: int, rows: int) -> Call:
    """A pass, with the inputs that it gets in a step of so many images."""
    match which:
        case "vae":
            return Call(model.decode, (torch.zeros(4, *size, device=DEVICE),))
        case "text":
            return Call(model.text._encoder, (torch.zeros(1, TEXT_TOKENS, dtype=torch.int64, device=DEVICE),))
        case _:
            return _step(model, attend, size, BatchShape(images, rows, (images,)))[which]


def _step(model: Model, attend: Attend, size: Size, shape: BatchShape) -> dict[str, Call]:
    """The passes of a step, with the inputs on which the engine has them compiled."""
    calls: dict[str, Call] = {}
    plain = Passes.of(model.unet, model.controlnet, attend, fused=model.fused)
    noted = Passes(*(_Noted(name, getattr(plain, name), calls) for name in ("control", "encode", "decode")))
    guided = Guided(Denoiser(noted, SideStream(None)), Layers.of(model.unet, model.controlnet))
    graphs = Graphs(GraphContext(None, Fallbacks(), lambda: False, Lock()))
    Batch(model, shape, size, guided, graphs).try_out(shape.slots, guided)
    return calls
