"""VGG-16 on 8-bit integers: the same network in a quarter of the time, where the processor has them.

Kernels are int8 and activations uint8; products are added up in 32 bits, and each layer's sums are
brought back to 8 bits by limits that were found once on photographs (data/pretrained). The method is
that of Jacob et al. 2018, arXiv:1712.05877.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


LAYERS = (
    *("block1_conv1", "block1_conv2"),
    *("block2_conv1", "block2_conv2"),
    *("block3_conv1", "block3_conv2", "block3_conv3"),
    *("block4_conv1", "block4_conv2", "block4_conv3"),
    *("block5_conv1", "block5_conv2"),
)
LAST_LAYER = "block5_conv3"
BEFORE_POOLING = frozenset({"block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3"})
MEAN_RGB = np.array([123.68, 116.779, 103.939], np.float32)
LARGEST_LEVEL = 127
LARGEST_ACTIVATION = 255.0


def float_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernel (3, 3, in, out) and bias (out,) of each convolution as float32, from the bundled arrays.

    A kernel is level times scale, with the channels' equalisation taken back.
    """
    weights = {}
    stretch_in = np.ones(3, np.float32)
    for name in (*LAYERS, LAST_LAYER):
        stretch = arrays[f"{name}.stretch"]
        kernel = arrays[f"{name}.kernel"] * (arrays[f"{name}.scale"] * stretch) / stretch_in[:, None]
        weights[name] = kernel.astype(np.float32), arrays[f"{name}.bias"]
        stretch_in = stretch
    return weights


def last_maps(arrays: Mapping[str, np.ndarray], side_px: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Build the network: RGB squares (B, S, S, 3) uint8 → block5's maps (B, S/32, S/32, 512) float32.

    To be called within a tf.function. The last convolution is float32, on dequantised activations:
    its sums become the features, which 8 bits would coarsen. The zeros that pad the border of the
    first one stand for ImageNet's mean colour, here rounded to whole levels.
    """
    import tensorflow as tf

    frame = np.zeros((1, side_px + 2, side_px + 2, 3), np.uint8)
    frame[:] = np.rint(MEAN_RGB)
    frame[:, 1:-1, 1:-1] = 0

    def maps(squares: tf.Tensor) -> tf.Tensor:
        framed = tf.pad(squares, [[0, 0], [1, 1], [1, 1], [0, 0]]) + frame
        values, limit = tf.bitcast(framed, tf.quint8), LARGEST_ACTIVATION
        for name in LAYERS:
            values = _convolve(arrays, name, values, limit)
            limit = float(arrays[f"{name}.limit"])
            if name in BEFORE_POOLING:
                values = _pool(values, limit)
        real = tf.cast(tf.bitcast(values, tf.uint8), tf.float32)
        kernel = arrays[f"{LAST_LAYER}.kernel"] * (arrays[f"{LAST_LAYER}.scale"] * limit / LARGEST_ACTIVATION)
        sums = tf.nn.conv2d(real, kernel.astype(np.float32), 1, "SAME")
        # The bias is the same at all places of a channel: added after pooling it costs a quarter.
        return tf.nn.relu(tf.nn.max_pool2d(sums, 2, 2, "VALID") + arrays[f"{LAST_LAYER}.corrected_bias"])

    return maps


def _convolve(arrays: Mapping[str, np.ndarray], name: str, values: tf.Tensor, limit: float) -> tf.Tensor:
    """Convolution, bias and ReLU in one: quint8 to quint8, 255 of `values` standing for `limit`."""
    import tensorflow as tf

    levels, scale, bias = (arrays[f"{name}.{part}"] for part in ("kernel", "scale", "corrected_bias"))
    padding = "SAME"
    if name == LAYERS[0]:
        levels = levels[:, :, ::-1]  # the weights are for BGR
        bias = bias - ((levels * scale).sum(axis=(0, 1)) * MEAN_RGB[:, None]).sum(axis=0)
        padding = "VALID"  # the frame is there already
    filled, _, _ = tf.raw_ops.QuantizedConv2DWithBiasAndReluAndRequantize(
        input=values,
        filter=tf.cast(tf.constant(levels), tf.qint8),
        bias=tf.constant(bias.astype(np.float32)),
        min_input=0.0,
        max_input=limit,
        min_filter=-LARGEST_LEVEL * scale,
        max_filter=LARGEST_LEVEL * scale,
        min_freezed_output=0.0,
        max_freezed_output=float(arrays[f"{name}.limit"]),
        strides=[1, 1, 1, 1],
        padding=padding,
        out_type=tf.quint8,
    )
    return filled


def _pool(values: tf.Tensor, limit: float) -> tf.Tensor:
    import tensorflow as tf

    window = [1, 2, 2, 1]
    pooled, _, _ = tf.raw_ops.QuantizedMaxPool(
        input=values, min_input=0.0, max_input=limit, ksize=window, strides=window, padding="VALID"
    )
    return pooled
