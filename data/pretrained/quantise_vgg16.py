"""Make `vgg16_int8.npz` from VGG-16's float32 weights: int8 kernels, one scale an output channel.

    python data/pretrained/quantise_vgg16.py vgg16_notop.weights.h5 data/pretrained/vgg16_int8.npz

The source is the file that Keras 3 writes for `keras.applications.VGG16(include_top=False)` with
`save_weights`. The same source gives the same bytes. The SHA-256 and the size that are printed at
the end belong into `tasks/networks.py`, which checks them when it loads the file.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

LAYERS = (
    *("block1_conv1", "block1_conv2"),
    *("block2_conv1", "block2_conv2"),
    *("block3_conv1", "block3_conv2", "block3_conv3"),
    *("block4_conv1", "block4_conv2", "block4_conv3"),
    *("block5_conv1", "block5_conv2", "block5_conv3"),
)
LARGEST = 127  # the levels are symmetrical, -127..127, so that zero stays exactly zero
CLIPPINGS = np.linspace(0.4, 1.0, 121)  # where the range may end, as a share of the largest weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="float32 weights, .weights.h5")
    parser.add_argument("target", type=Path, help="where the int8 weights go, .npz")
    arguments = parser.parse_args()

    arrays: dict[str, Any] = {}
    for name, (kernel, bias) in read_convolutions(arguments.source).items():
        levels, scale = quantise(kernel)
        noise = np.sum((kernel - levels * scale) ** 2) / np.sum(kernel**2)
        print(f"{name}: {kernel.shape}, noise {10 * np.log10(noise):.1f} dB")
        arrays |= {f"{name}.kernel": levels, f"{name}.scale": scale, f"{name}.bias": bias}
    np.savez_compressed(arguments.target, **arrays)
    data = arguments.target.read_bytes()
    print(f"{arguments.target}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


def read_convolutions(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernel (3, 3, in, out) and bias (out,) of each convolution by its name, float32."""
    with h5py.File(source) as file:
        groups = ["conv2d", *(f"conv2d_{i}" for i in range(1, len(LAYERS)))]
        return {
            layer: (file[f"layers/{group}/vars/0"][:], file[f"layers/{group}/vars/1"][:])
            for layer, group in zip(LAYERS, groups, strict=True)
        }


def quantise(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 levels (3, 3, in, out) and float32 scales (out,) with kernel ≈ levels * scale.

    Of all clippings each output channel takes the one with the least squared error: a few large
    weights cost less when cut than the coarser steps that they would force upon all others.
    """
    weights = kernel.reshape(-1, kernel.shape[-1])
    largest = np.abs(weights).max(axis=0)
    least_error = np.full(largest.shape, np.inf)
    best = np.zeros_like(largest)
    for clipping in CLIPPINGS:
        scale = (largest * clipping / LARGEST).astype(np.float32)
        error = np.sum((weights - _levels(weights, scale) * scale) ** 2, axis=0)
        better = error < least_error
        least_error[better], best[better] = error[better], scale[better]
    return _levels(kernel, best).astype(np.int8), best


def _levels(weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(weights / scale), -LARGEST, LARGEST)


if __name__ == "__main__":
    main()
