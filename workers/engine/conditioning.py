"""Inputs of the networks that do not change from step to step, computed once.

Per sampler: the time projections of all ResNets. Per prompt: the keys and values of all cross-attentions. Per image:
the hint embedding. Each is one flat tensor, with the layers side by side in running order.

CLIP's text encoder has 77 positions, of which the first and the last are marks, so it reads 75 tokens. A longer text is
cut there, and a warning quotes what was not read. AUTOMATIC1111's web UI encodes such a text in pieces of 75 tokens
instead; that makes prompts of several lengths, while here all images of a batch share one shape.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from workers.engine.codec import Pixels
from workers.engine.config import Prompting
from workers.engine.contract import BadOptionError
from workers.engine.graphs import Graphs, Work
from workers.engine.streams import upload_into
from workers.engine.tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.autoencoders.vae import Decoder
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from transformers import CLIPTextModel

    from workers.engine.runtime import AnyModel

_log = logging.getLogger(__name__)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
TEXT_TOKENS = 77  # positions of CLIP's text encoder
READ_TOKENS = TEXT_TOKENS - 2  # but for the marks of beginning and end
_QUOTED_CHARS = 300  # of a text that was not read, in a warning


def time_table(net: "UNet2DConditionModel | ControlNetModel", timesteps: Tensor) -> Tensor:
    """The time projection of each ResNet at each of N timesteps [N]: [N, sum of `shift_widths`]."""
    # The sinusoids are float32 whatever the network is, as in diffusers.
    sinusoids = net.time_proj(timesteps).to(net.dtype)
    embedding = silu(net.time_embedding(sinusoids))
    return torch.cat([projection(embedding) for projection in time_projections(net)], dim=1)


def shift_widths(net: "UNet2DConditionModel | ControlNetModel") -> list[int]:
    """Channels of each ResNet's time projection, in running order."""
    return [projection.out_features for projection in time_projections(net)]


def keys_values(net: "UNet2DConditionModel | ControlNetModel", features: Tensor) -> Tensor:
    """Keys and values, alternately, of each cross-attention for text features [77, width]: [77, sum of widths]."""
    return torch.cat([projection(features) for projection in text_projections(net)], dim=1)


def keys_values_widths(net: "UNet2DConditionModel | ControlNetModel") -> list[int]:
    """Channels of each cross-attention's keys and values, alternately, in running order."""
    return [projection.out_features for projection in text_projections(net)]


def pack_projections(net: "UNet2DConditionModel | ControlNetModel") -> None:
    """Make one matrix product of each self-attention's three projections: `attn1.to_qkv`.

    The three stay, as views of the packed weights, so that diffusers' own forward pass runs on and nothing is stored
    twice.
    """
    for layer in _layers(net):
        own = layer.attn1
        if not own.fused_projections:
            own.fuse_projections()
            own.to_qkv.requires_grad_(False)
            for part, weight in zip((own.to_q, own.to_k, own.to_v), own.to_qkv.weight.data.chunk(3), strict=True):
                part.weight.data = weight


def pack_ends(net: "UNet2DConditionModel | ControlNetModel") -> None:
    """Make one matrix product of the two that end each transformer: `end`.

    Its last block returns x + N h, and the output is P (x + N h). That is [P N, P] times [h, x]: as many operations,
    but an addition, a product and a pass over the tokens fewer. P N is rounded once, as N and P were. A second call
    changes nothing, as recorded graphs read the weights where they are.
    """
    for transformer in (each for each in _transformers(net) if not hasattr(each, "end")):
        inner, outer = transformer.transformer_blocks[-1].ff.net[2], transformer.proj_out
        product = outer.weight.flatten(1).float() @ inner.weight.float()
        weight = torch.cat([product, outer.weight.flatten(1)], dim=1)
        bias = outer.weight.flatten(1).float() @ inner.bias.float() + outer.bias
        transformer.end = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        transformer.end.weight, transformer.end.bias = (
            nn.Parameter(each.to(net.dtype), requires_grad=False) for each in (weight, bias)
        )


def pack_upsamplers(net: "UNet2DConditionModel | Decoder") -> None:
    """Make one 2x2 convolution of each doubling of a feature map and the 3x3 convolution after it: `phases`.

    Doubled, each row is there twice, so two of the three rows that the convolution reads are equal: row 2i of its
    output reads i - 1, i and i, and row 2i + 1 reads i, i and i + 1. With their weights added, which is done once, 4/9
    of the operations are left. The even and odd rows and columns of the output, its phases, are channels. A second
    call changes nothing.
    """
    for block in net.up_blocks:
        for sampler in (each for each in block.upsamplers or () if not hasattr(each, "phases")):
            conv = sampler.conv
            weight = phases(phases(conv.weight.float(), 2), 4).flatten(0, 2).to(conv.weight.dtype)
            sampler.phases = nn.Conv2d(conv.in_channels, len(weight), 2, padding=1, device="meta")
            sampler.phases.weight, sampler.phases.bias = (
                nn.Parameter(each, requires_grad=False)
                for each in (weight.contiguous(memory_format=torch.channels_last), conv.bias.repeat(4))
            )


def phases(weight: Tensor, dim: int) -> Tensor:
    """The weights of two rows (or columns) that even ones of the output read, and those that odd ones read."""
    first, middle, last = weight.split(1, dim)
    return torch.stack([torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)])


def hint_embedding(controlnet: "ControlNetModel", image: Tensor) -> Tensor:
    """The hint embedding [B, channels, h, w] of an image [B, 3, 8h, 8w] in 0 .. 1; it is added after `conv_in`."""
    embed = controlnet.controlnet_cond_embedding
    x = silu(embed.conv_in(image))
    for conv in embed.blocks:
        x = silu(conv(x))
    hint: Tensor = embed.conv_out(x)
    return hint


def time_projections(net: "UNet2DConditionModel | ControlNetModel") -> Iterator[nn.Linear]:
    """The layer that makes each ResNet's time projection, in running order."""
    for block in _blocks(net):
        for resnet in block.resnets:
            yield resnet.time_emb_proj


def text_projections(net: "UNet2DConditionModel | ControlNetModel") -> Iterator[nn.Linear]:
    """The layers that make each cross-attention's keys and values, alternately, in running order."""
    for layer in _layers(net):
        yield layer.attn2.to_k
        yield layer.attn2.to_v


def _layers(net: "UNet2DConditionModel | ControlNetModel") -> Iterator["BasicTransformerBlock"]:
    for transformer in _transformers(net):
        yield from transformer.transformer_blocks


def _transformers(net: "UNet2DConditionModel | ControlNetModel") -> Iterator["Transformer2DModel"]:
    for block in _blocks(net):
        yield from getattr(block, "attentions", ())


def _blocks(net: "UNet2DConditionModel | ControlNetModel") -> Iterator["UNet2DConditionModel"]:
    yield from net.down_blocks
    yield net.mid_block
    yield from getattr(net, "up_blocks", ())


# -------------------------------------------------------------------------------------------------------------- prompts


class Prompt(NamedTuple):
    """A text as 77 token numbers. `warning` quotes what was cut off, if anything."""

    tokens: tuple[int, ...]
    warning: str = ""


class Tokens:
    """Turns prompts into token numbers. May be called from several threads at once.

    Raises BadOptionError for text that is not Unicode: half a surrogate pair, which JSON and Python can hold.
    """

    def __init__(self, tokenizer: ClipTokenizer, prompting: Prompting) -> None:
        self._tokenizer = tokenizer
        self._suffix = prompting.suffix
        configured = self._prompt("The configured negative prompt", prompting.negative)
        if configured.warning:
            _log.warning("%s", configured.warning)
        self.configured_negative = configured.tokens

    def positive(self, text: str) -> Prompt:
        """The client's text with the configured suffix. What does not fit is cut off, the suffix first."""
        return self._prompt("The prompt", text, self._suffix)

    def negative(self, text: str | None = None) -> Prompt:
        """A negative prompt; None is the configured one."""
        return Prompt(self.configured_negative) if text is None else self._prompt("The negative prompt", text)

    def _prompt(self, name: str, text: str, suffix: str = "") -> Prompt:
        if _LONE_SURROGATE.search(text):
            raise BadOptionError("The prompt contains half a surrogate pair, which is not a character: remove it.")
        encoded = self._tokenizer(text + suffix)
        numbers = encoded.ids
        if len(numbers) <= TEXT_TOKENS:
            return Prompt((*numbers, *[self._tokenizer.pad] * (TEXT_TOKENS - len(numbers))))
        begins = [begin for begin, _ in encoded.offsets[1:-1]]  # where in the text each token does
        return Prompt((*numbers[: TEXT_TOKENS - 1], numbers[-1]), _cut(name, text, suffix, begins))


def _cut(name: str, text: str, suffix: str, begins: list[int]) -> str:
    """The warning for a text that is cut; `begins` are the offsets of its tokens."""
    own, first = sum(begin < len(text) for begin in begins), begins[READ_TOKENS]
    unread = _quoted((text + suffix)[first:] if own <= READ_TOKENS else text[first:])
    if own <= READ_TOKENS:
        room = f"The model reads {READ_TOKENS} tokens. {name} has {own}, so the configured suffix was cut."
        return f"{room} Not read: {unread}."
    besides = ", nor the configured suffix" if suffix else ""
    return f"{name} has {own} tokens; the model reads the first {READ_TOKENS}. Not read: {unread}{besides}."


def _quoted(text: str) -> str:
    """A text in quotation marks, on one line, of bounded length."""
    text = text.strip()
    short = text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 3] + "..."
    return json.dumps(short, ensure_ascii=False)


class TextEncoder:
    """The text encoder, followed by both networks' projections to keys and values."""

    def __init__(
        self, text_encoder: "CLIPTextModel", unet: "UNet2DConditionModel", controlnet: "ControlNetModel"
    ) -> None:
        self._text_encoder = text_encoder
        self._networks = (unet, controlnet)
        self.width = sum(sum(keys_values_widths(network)) for network in self._networks)
        # By default, transformers makes a mask only while a graph is recorded (`is_tracing`), so other kernels would be
        # recorded than were warmed up.
        masked = torch.full((1, 1, TEXT_TOKENS, TEXT_TOKENS), -math.inf, dtype=unet.dtype)
        self._causal = masked.triu(1).to(text_encoder.device)

    def __call__(self, numbers: Tensor) -> Tensor:
        """Keys and values [77, width] of tokens [1, 77], the UNet's layers before the ControlNet's."""
        features = self._text_encoder(numbers, self._causal)[0][0]
        return torch.cat([keys_values(network, features) for network in self._networks], dim=1)


class TextConditioning:
    """Keys and values [77, `width`] of every cross-attention of both networks; `encode` makes them of tokens [1, 77].

    Only those of the `configured` negative prompt are kept. With a cache of clients' prompts, a client could see from
    its request's duration whether another has sent the same prompt lately. And it would save little: 3 ms of the small
    model's 1,000, and less of a full-size model's time.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        configured: tuple[int, ...],
    ) -> None:
        self.width = width
        self._encoder = encode
        self._configured = configured
        self._kept: Tensor | None = None
        # Buffers of the text encoder's graph.
        self._numbers = torch.zeros(1, TEXT_TOKENS, dtype=torch.int64, device=device)
        self._flat = torch.zeros(TEXT_TOKENS, width, dtype=dtype, device=device)

    def keys_values(self, tokens: tuple[int, ...], graphs: Graphs | None = None) -> Tensor:
        """[77, total], the UNet's layers before the ControlNet's; by a graph, given `graphs`. Read only."""
        if tokens != self._configured:
            return self._compute(tokens, graphs)
        if self._kept is None:
            self._kept = self._compute(tokens, graphs)
        return self._kept

    def _compute(self, tokens: tuple[int, ...], graphs: Graphs | None) -> Tensor:
        encode = self._encode if graphs is None else graphs.of("text", self._encode)
        upload_into(self._numbers, torch.tensor([tokens]))
        encode()
        return self._flat.clone()

    def _encode(self) -> None:
        self._flat.copy_(self._encoder(self._numbers))


# ----------------------------------------------------------------------------------------------------------------- hint


class HintEncoder:
    """Embeds the edges of images of one size: some twenty kernels, which a graph launches at once."""

    def __init__(self, model: "AnyModel", size: tuple[int, int], graphs: Graphs) -> None:
        self._model = model
        self.graphs = graphs
        # Buffers of the graph.
        sides = (side * model.latent_scale for side in size)
        self._edges = torch.zeros(*sides, dtype=torch.uint8, device=model.device)
        self._embedding = torch.zeros(model.hint_channels, *size, dtype=model.dtype, device=model.device)

    @property
    def size(self) -> int:
        """Bytes of device memory, without the graph."""
        return self._edges.nbytes + self._embedding.nbytes

    def prepare(self) -> Work:
        """The fastest way to run it. Recorded, if possible, before it is needed."""
        return self.graphs.of("hint", self._work)

    def __call__(self, edges: Pixels) -> Tensor:
        """The hint embedding [channels, h, w] of edges, uint8 [height, width]. The next call overwrites it."""
        embed = self.prepare()  # before the upload: recording runs the work on whatever is there
        upload_into(self._edges, torch.from_numpy(edges))
        embed()
        return self._embedding

    def _work(self) -> None:
        self._embedding.copy_(self._model.hint(self._edges.to(self._model.dtype) / 255))
