"""Exports the engine's own forward passes as ONNX graphs, so that other runtimes save the same work.

A graph's batch, height and width are free. Attention becomes products and a softmax, which every runtime supports.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from workers.engine.conditioning import (
    TEXT_TOKENS,
    TextEncoder,
    hint_embedding,
    keys_values_widths,
    pack_projections,
    shift_widths,
    text_projections,
    time_projections,
    time_table,
)
from workers.engine.denoiser import Denoiser, Guided, Layers, Passes, StepInputs
from workers.engine.model import Parts, decode, decoder_of, latent_scale
from workers.engine.runtimes.files import to_write
from workers.engine.streams import SideStream

log = logging.getLogger(__name__)

OPSET = 20  # the newest that ONNX Runtime and TensorRT's parser both support
INLINE_BYTES = 2**30  # more weights go to a second file: protobuf's limit is 2 GiB
_SMALL_BYTES = 2**16  # of a tensor that stays in the first: ONNX Runtime does not find the sizes of a Split elsewhere
_MOST_IMAGES, _MOST_SIDE = 64, 512  # limits of the shapes: slots, and latents of 4096 pixels
_LEAST_SIDE = 8


@dataclass(frozen=True, slots=True)
class Graph:
    """A module to export, with example inputs by name, the dimensions that are free, and the output's name."""

    module: nn.Module
    inputs: dict[str, Tensor]
    free: tuple[dict[int, Any] | None, ...]
    output: str


class _Step(nn.Module):
    """ControlNet, UNet and guidance."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.unet, self.controlnet = parts.unet, parts.controlnet
        self._layers = Layers.of(parts.unet, parts.controlnet)

    def forward(self, *inputs: Tensor) -> Tensor:
        passes = Passes.of(self.unet, self.controlnet)
        noise: Tensor = Guided(Denoiser(passes, SideStream(None)), self._layers)(StepInputs(*inputs))
        return noise


class _Vae(nn.Module):
    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._vae = (parts.vae,)  # not the encoder's weights
        self.used = nn.ModuleList(decoder_of(parts.vae))

    def forward(self, latents: Tensor) -> Tensor:
        return decode(self._vae[0], latents)


class _Text(nn.Module):
    def __init__(self, parts: Parts) -> None:
        super().__init__()
        networks = parts.unet, parts.controlnet
        self._encoder = TextEncoder(parts.text_encoder, *networks)
        self.used = nn.ModuleList([parts.text_encoder, *(each for net in networks for each in text_projections(net))])

    def forward(self, tokens: Tensor) -> Tensor:
        return self._encoder(tokens)


class _Hint(nn.Module):
    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._controlnet = (parts.controlnet,)
        self.used = parts.controlnet.controlnet_cond_embedding

    def forward(self, edges: Tensor) -> Tensor:
        return hint_embedding(self._controlnet[0], edges.expand(1, 3, -1, -1))[0]


class _Times(nn.Module):
    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._networks = parts.unet, parts.controlnet
        self.used = nn.ModuleList(
            [*(net.time_embedding for net in self._networks)]
            + [each for net in self._networks for each in time_projections(net)]
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        return torch.cat([time_table(net, timesteps) for net in self._networks], dim=1)


def graphs(parts: Parts, rows: int) -> Iterator[tuple[str, Graph]]:
    """All graphs of a model by name, for images of so many rows."""
    for net in (parts.unet, parts.controlnet):
        pack_projections(net)
    # torch.export takes a side of 1 for fixed, so that of the innermost feature maps has to be longer.
    least = max(_LEAST_SIDE, 2 ** (len(parts.unet.config.block_out_channels) - 1) + 1)
    height, width = Dim("height", min=least, max=_MOST_SIDE), Dim("width", min=least, max=_MOST_SIDE)
    free, dtype = {1: height, 2: width}, parts.unet.dtype
    yield "step", _step(parts, rows, height, width)
    yield "vae", Graph(_Vae(parts), {"latents": torch.zeros(parts.unet.config.in_channels, 16, 24)}, (free,), "pixels")
    tokens = torch.zeros(1, TEXT_TOKENS, dtype=torch.int64)
    yield "text", Graph(_Text(parts), {"tokens": tokens}, (None,), "keys_values")
    sides = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    yield "hint", Graph(_Hint(parts), {"edges": torch.zeros(128, 192, dtype=dtype)}, (sides,), "hint")
    calls = {0: Dim("calls", min=1, max=4096)}
    yield "times", Graph(_Times(parts), {"timesteps": torch.zeros(2)}, (calls,), "times")


def _step(parts: Parts, rows: int, height: Any, width: Any) -> Graph:
    dtype, batch = parts.unet.dtype, Dim("batch", min=1, max=_MOST_IMAGES)
    networks = parts.unet, parts.controlnet
    # Two images, and sides that differ: torch.export takes sizes that are 1 or equal for fixed.
    inputs = {
        "latents": torch.zeros(2, parts.unet.config.in_channels, 16, 24, dtype=dtype),
        "times": torch.zeros(2, sum(sum(shift_widths(net)) for net in networks), dtype=dtype),
        "text": torch.zeros(2, rows, TEXT_TOKENS, sum(sum(keys_values_widths(net)) for net in networks), dtype=dtype),
        "hint": torch.zeros(2, 16, 24, parts.unet.config.block_out_channels[0], dtype=dtype),
        "control_scale": torch.ones(2, dtype=dtype),
        "guidance_scale": torch.ones(2),
        "inverse_temperature": torch.ones(2, dtype=dtype),
    }
    every = {0: batch}
    sides = {0: batch, 2: height, 3: width}
    free = (sides, every, every, {0: batch, 1: height, 2: width}, every, every, every)
    return Graph(_Step(parts), inputs, (free,), "noise")  # type: ignore[arg-type] # of the variadic forward


@torch.no_grad()
def write(parts: Parts, rows: int, facts: Mapping[str, str], folder: Path, inline_bytes: int = INLINE_BYTES) -> None:
    """Write all graphs of a model into a folder, with facts about it in each.

    They replace the folder when all are written, so that it never holds some of both."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    facts = dict(facts) | {"opset": str(OPSET), "latent_scale": str(latent_scale(parts.vae))}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        new = Path(made) / "new"
        new.mkdir()
        for name, graph in graphs(parts, rows):
            log.info("Exporting %s", name)
            write_graph(graph, facts, new / f"{name}.onnx", inline_bytes)
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)


@torch.no_grad()
def write_graph(graph: Graph, facts: Mapping[str, str], path: Path, inline_bytes: int = INLINE_BYTES) -> None:
    """Write one graph; weights of more than `inline_bytes` go to a second file beside it."""
    import onnx_ir

    with warnings.catch_warnings():  # torch warns of its own code
        warnings.simplefilter("ignore", FutureWarning)
        exported = torch.export.export(graph.module.eval(), tuple(graph.inputs.values()), dynamic_shapes=graph.free)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=[*graph.inputs],
            output_names=[graph.output],
            verbose=False,
        )
        assert program is not None
    program.model.metadata_props.update(to_write(facts))
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
    second = f"{path.name}.data" if size > inline_bytes else None
    onnx_ir.save(program.model, path, external_data=second, size_threshold_bytes=_SMALL_BYTES)
