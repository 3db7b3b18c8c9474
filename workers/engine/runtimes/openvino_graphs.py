"""Reads converted networks, and changes what OpenVINO would run slowly.

Its convolutions have the channels of a pixel side by side, its group norm one channel after the other. So each norm
means two transposed copies of the feature map, and in float32 the code that makes the first is no fast one. Where
feature maps are large that is most of the time: the float32 VAE of the small model takes less than half of it if each
norm is written out as sums over the pixels of each channel, which need no copies. In bfloat16 that gains little, and
the sums would be rounded.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openvino import Core, Model, Node

VAE = "vae"


def read(core: "Core", path: Path, dtype: str) -> "Model":
    """A converted network, to be computed in a number format."""
    model = core.read_model(path)
    if path.stem == VAE and dtype == "float32":
        for node in model.get_ordered_ops():
            if node.get_type_name() == "GroupNormalization" and _is_of_images(node):
                _write_out(node)
    return model


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
