"""Reads converted networks, and changes what OpenVINO would run slowly.

For fixed shapes, each doubling of a feature map and the convolution after it become four smaller convolutions, as
`conditioning.pack_upsamplers` has them on a GPU: 4/9 of the operations.

Its convolutions have the channels of a pixel side by side, its group norm one channel after the other. So each norm
means two transposed copies of the feature map, and in float32 the code that makes the first is no fast one. Where
feature maps are large that is most of the time: the float32 VAE of the small model takes less than half of it if each
norm is written out as sums over the pixels of each channel, which need no copies. In bfloat16 that gains little, and
the sums would be rounded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openvino import Core, Model, Node

VAE = "vae"


def read(core: "Core", path: Path, dtype: str, shapes: Sequence[Sequence[int]] | None = None) -> "Model":
    """A converted network, to be computed in a number format; its inputs have these shapes, or any."""
    model = core.read_model(path)
    if shapes is not None:
        model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "GroupNormalization" and path.stem == VAE and dtype == "float32" and _is_of_images(node):
            _write_out(node)
        if kind == "Convolution" and shapes is not None and _reads_doubled(node):
            _split(node)
    return model


def _reads_doubled(convolution: "Node") -> bool:
    """Whether each row and column that this 3x3 convolution reads is there twice."""
    doubling, weight = (value.get_node() for value in convolution.input_values())
    if doubling.get_type_name() != "Interpolate" or weight.get_type_name() != "Constant":
        return False
    small, large = doubling.get_input_shape(0), doubling.get_output_shape(0)
    nearest = doubling.get_attributes()["mode"] == "nearest"
    return nearest and [2 * side for side in small[2:]] == [*large[2:]] and [*weight.get_output_shape(0)[2:]] == [3, 3]


def _split(convolution: "Node") -> None:
    """Compute the even and odd rows and columns of the output by 2x2 convolutions of what is not doubled."""
    import torch  # here, as the front end reads the cache and needs neither
    from openvino import opset13 as ops
    from openvino.utils import replace_node

    from workers.engine.conditioning import phases

    doubling, weight = (value.get_node() for value in convolution.input_values())
    by_column = phases(phases(torch.tensor(weight.get_data()), 2), 4)
    parts = [
        ops.convolution(
            doubling.input_value(0),
            ops.constant(by_column[column, row].numpy()),
            strides=[1, 1],
            pads_begin=[1 - row, 1 - column],
            pads_end=[row, column],
            dilations=[1, 1],
        )
        for row in range(2)
        for column in range(2)
    ]
    replace_node(convolution, ops.depth_to_space(ops.concat(parts, 1), "blocks_first", 2))


def _is_of_images(node: "Node") -> bool:
    """Whether it reads [N, C, H, W]; attention has its pixels in a row."""
    rank = node.get_input_partial_shape(0).rank
    return bool(rank.is_static and rank.get_length() == 4)


def _write_out(norm: "Node") -> None:
    """Compute a group norm of [N, C, H, W] as a product and a sum of each element with numbers of its channel."""
    import numpy as np
    from openvino import opset13 as ops
    from openvino.utils import replace_node

    x, weight, bias = norm.input_values()
    channels, given = weight.get_shape()[0], norm.get_attributes()
    groups = given["num_groups"]
    by_channel, by_group = [-1, channels, 1, 1], [-1, groups, channels // groups, 1]

    def mean(values: "Node") -> "Node":
        """Of a group, for each of its channels."""
        of_channels = ops.reduce_mean(values, [2, 3], True)
        of_groups = ops.reduce_mean(ops.reshape(of_channels, by_group, False), [2], True)
        spread = ops.broadcast(of_groups, [1, groups, channels // groups, 1], broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(spread, by_channel, False)

    middle = mean(x)
    distance = ops.subtract(x, middle)
    variance = mean(ops.multiply(distance, distance))
    deviation = ops.sqrt(ops.add(variance, np.float32(given["epsilon"])))
    scale = ops.divide(ops.reshape(weight, by_channel, False), deviation)
    shift = ops.subtract(ops.reshape(bias, by_channel, False), ops.multiply(middle, scale))
    replace_node(norm, ops.add(ops.multiply(x, scale), shift))
