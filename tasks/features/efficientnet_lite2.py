"""EfficientNet-Lite2: photographs to feature maps with a twentieth of VGG-16's operations.

The network is that of Tan & Le 2019 (arXiv:1905.11946) in the variant without squeeze-and-excitation and with
ReLU6, which Google published in 2020 (Apache-2.0). data/pretrained/convert_efficientnet.py makes the weights,
with each batch normalisation folded into its convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

NAME = "EfficientNetLite2"
BLOCKS = 21
HALVING_BLOCKS = frozenset({1, 4, 7, 15})  # these, and the stem, have a stride of 2


def last_map(arrays: Mapping[str, np.ndarray]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Build the network: an RGB square (S, S, 3) uint8 → its map (ceil(S/32), ceil(S/32), 1280) float32.

    `arrays` holds `<layer>.kernel` float16 (rows, columns, in, out) and `<layer>.bias` float32 (out,). To be
    called within a tf.function. The network was trained on squares of 260 pixels; others work as well.
    """
    import tensorflow as tf

    def layer(values: tf.Tensor, name: str, stride: int = 1, activate: bool = True) -> tf.Tensor:
        kernel = arrays[f"{name}.kernel"].astype(np.float32)
        if name.endswith(".depthwise"):
            kernel = kernel.transpose(0, 1, 3, 2)
            values = tf.nn.depthwise_conv2d(values, kernel, [1, stride, stride, 1], "SAME")
        else:
            values = tf.nn.conv2d(values, kernel, stride, "SAME")
        values = values + arrays[f"{name}.bias"]
        return tf.nn.relu6(values) if activate else values

    def map_of(square: tf.Tensor) -> tf.Tensor:
        values = layer((tf.cast(square[None], tf.float32) - 127.0) / 128.0, "stem", stride=2)
        for block in range(BLOCKS):
            before, stride = values, 2 if block in HALVING_BLOCKS else 1
            if f"block{block}.expand.kernel" in arrays:
                values = layer(values, f"block{block}.expand")
            values = layer(values, f"block{block}.depthwise", stride)
            values = layer(values, f"block{block}.project", activate=False)
            if stride == 1 and values.shape[-1] == before.shape[-1]:
                values += before
        return layer(values, "head")[0]

    return map_of
