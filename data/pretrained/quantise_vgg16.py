"""Make `vgg16_int8.npz` from VGG-16's float32 weights and real photographs.

    CUTLINE_REAL_DATA=FOLDER python data/pretrained/quantise_vgg16.py SOURCE data/pretrained/vgg16_int8.npz

SOURCE (`vgg16_notop.weights.h5`) is the file that Keras 3 writes for
`keras.applications.VGG16(include_top=False)` with `save_weights`. FOLDER holds `data/flickr8k`; of its
training photographs a few show how large the activations become; no pixel of them is kept. The same
sources give the same bytes on the same kind of processor. The SHA-256 and the size that are printed
at the end belong into `tasks/features/cnn.py`, which checks them when it loads the file.

Channels are equalised (Nagel et al. 2019, arXiv:1906.04721): what a channel is divided by, its
`stretch`, is multiplied into the next kernel. Then weak channels keep more of the 256 levels.
"""

from __future__ import annotations

import argparse
import hashlib
import os
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
BEFORE_POOLING = {"block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"}
MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)
LARGEST = 127  # the levels are symmetrical, -127..127, so that zero stays exactly zero
CLIPPINGS = np.linspace(0.4, 1.0, 121)  # where the range may end, as a share of the largest weight

PHOTOS = 48  # every 12th of the 600 training photographs
# With squares (a norm of 2) the limits cut so much of the strongest activations that the features of a
# few photographs suffer: cosine .965 at worst, against .993 with this norm.
NORM = 5
BINS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="float32 weights, .weights.h5")
    parser.add_argument("target", type=Path, help="where the int8 weights go, .npz")
    arguments = parser.parse_args()

    squares = read_squares(Path(os.environ["CUTLINE_REAL_DATA"], "data/flickr8k"))
    arrays = quantise_network(read_convolutions(arguments.source), squares)
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


def read_squares(flickr8k: Path) -> np.ndarray:
    """Squares (n, 224, 224, 3), RGB, of training photographs only: others are for scoring."""
    from cutline.schemas.settings import ImagesSettings
    from cutline.tasks.images.decode import square_of

    names = (flickr8k / "Flickr_8k.trainImages.txt").read_text().split()
    chosen = names[:: len(names) // PHOTOS][:PHOTOS]
    photos = ((flickr8k / "images" / name).read_bytes() for name in chosen)
    return np.stack([square_of(data, ImagesSettings()) for data in photos])


def quantise_network(
    convolutions: dict[str, tuple[np.ndarray, np.ndarray]], squares: np.ndarray
) -> dict[str, Any]:
    """Layer by layer: `exact` flows through the float32 network, `rounded` through the int8 one."""
    exact = rounded = squares[..., ::-1].astype(np.float32) - MEAN_BGR
    stretch_in = np.ones(3, np.float32)
    arrays: dict[str, Any] = {}
    for name, (kernel, bias) in convolutions.items():
        exact = activate(convolve(exact, kernel) + bias, name)
        is_last = name == LAYERS[-1]
        stretch = np.ones(kernel.shape[-1], np.float32) if is_last else find_stretch(exact)
        wanted = kernel * stretch_in[:, None] / stretch
        levels, scale = quantise(wanted)
        # What rounding the kernel adds to the mean of each channel is taken from its bias.
        added = ((levels * scale - wanted).sum(axis=(0, 1)) * rounded.mean(axis=(0, 1, 2))[:, None]).sum(0)
        corrected = (bias / stretch - added).astype(np.float32)
        rounded = activate(convolve(rounded, levels * scale) + corrected, name)
        arrays |= {
            f"{name}.kernel": levels,
            f"{name}.scale": scale,
            f"{name}.bias": bias,
            f"{name}.stretch": stretch,
            f"{name}.corrected_bias": corrected,
        }
        if not is_last:
            limit = np.float32(find_limit(rounded))
            arrays[f"{name}.limit"] = limit
            rounded = np.clip(np.rint(rounded * (255 / limit)), 0, 255) * (limit / 255)
        found = cosines(rounded * stretch, exact)
        print(f"{name}: cosine {found.mean():.6f} on average, {found.min():.6f} at worst", flush=True)
        stretch_in = stretch
    return arrays


def convolve(maps: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    return np.concatenate([tf.nn.conv2d(part, kernel, 1, "SAME") for part in _batches(maps)])


def activate(maps: np.ndarray, name: str) -> np.ndarray:
    """ReLU, and the pooling that follows some of the convolutions."""
    import tensorflow as tf

    maps = np.maximum(maps, 0)
    if name in BEFORE_POOLING:
        maps = np.concatenate([tf.nn.max_pool2d(part, 2, 2, "VALID") for part in _batches(maps)])
    return maps


def _batches(maps: np.ndarray) -> list[np.ndarray]:
    return [maps[start : start + 8] for start in range(0, len(maps), 8)]


def find_stretch(maps: np.ndarray) -> np.ndarray:
    """One factor a channel: the root of its strength, so that channels and kernels share the burden."""
    squares = maps**2
    strength = np.sqrt((squares.mean(axis=(1, 2)) / squares.mean(axis=(1, 2, 3))[:, None]).mean(axis=0))
    strength = np.maximum(strength, strength.max() * 1e-3)  # a channel may be dead
    return np.sqrt(strength / np.exp(np.log(strength).mean())).astype(np.float32)


def find_limit(maps: np.ndarray) -> float:
    """The activation that becomes level 255, such that the error's NORM is least; photographs count alike."""
    largest = float(maps.max())
    counts = np.zeros(BINS)
    for one in maps:
        weight = np.sum(one.astype(np.float64) ** 2) ** (-NORM / 2)
        counts += np.histogram(one, BINS, (0, largest))[0] * weight
    values = (np.arange(BINS) + 0.5) / BINS * largest

    def error(limit: float) -> float:
        found = np.clip(np.rint(values * (255 / limit)), 0, 255) * (limit / 255)
        return float((np.abs(values - found) ** NORM * counts)[1:].sum())

    return min((share * largest for share in np.linspace(0.1, 1, 91)), key=error)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


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
