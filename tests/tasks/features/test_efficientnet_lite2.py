"""EfficientNet-Lite2: against the same network computed step by step, and what was published about it."""

from __future__ import annotations

import numpy as np
import pytest

from cutline.schemas.settings import ImageFeaturesSettings
from cutline.tasks.features.cnn import BUNDLED, Network, load_network
from tests.tasks.features.test_cnn import cosines, some_squares

SIDE_PX = 64


@pytest.fixture(scope="module")
def parts() -> dict[str, np.ndarray]:
    with np.load(BUNDLED["EfficientNetLite2"].path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network(ImageFeaturesSettings(network="EfficientNetLite2"), SIDE_PX)


def test_the_weights_are_those_of_lite2(parts: dict[str, np.ndarray]) -> None:
    """6,092,072 parameters with the classifier (1,280 × 1,000 + 1,000) and a scale and a bias per channel."""
    kernels = sum(part.size for name, part in parts.items() if name.endswith(".kernel"))
    channels = sum(part.size for name, part in parts.items() if name.endswith(".bias"))
    assert kernels + 2 * channels + 1_281_000 == 6_092_072


def test_features_are_those_of_the_network_computed_step_by_step(
    network: Network, parts: dict[str, np.ndarray]
) -> None:
    square = some_squares(2, SIDE_PX)[1:]
    expected = by_hand(square[0], parts)
    regions, pooled = network.features(square)
    assert expected.std() > 0
    assert regions.shape == (1, 4, 1280)
    np.testing.assert_allclose(regions[0], expected, atol=0.01)
    assert cosines(pooled, expected.mean(axis=0)[None])[0] > 0.9999


def test_features_are_those_of_the_original_file() -> None:
    """Computed once in float64 from the `.pth`, each batch normalisation by itself.

    With the classifier, which is not bundled, the same computation calls scikit-image's cat an Egyptian cat
    (.95) and its cup of coffee an espresso (.99): so the arrays were read in the right order.
    """
    rows, columns = np.mgrid[:96, :96]
    ramps = np.stack([rows * 255 // 95, columns * 255 // 95, (rows + columns) * 255 // 190], axis=-1)
    network = load_network(ImageFeaturesSettings(network="EfficientNetLite2"), 96)
    pooled = network.features(ramps[None].astype(np.uint8))[1][0].astype(np.float64)
    assert pooled.mean() == pytest.approx(0.24325, abs=0.002)
    assert pooled.std() == pytest.approx(0.65997, abs=0.005)
    assert pooled[:8] == pytest.approx([0, 1.4479, 2.1663, 0, 0, 2.2076, 0, 0], abs=0.03)
    largest = {966: 5.9713, 104: 5.2899, 302: 4.8635, 833: 4.4662, 579: 4.4137, 1206: 4.3628}
    assert pooled[list(largest)] == pytest.approx(list(largest.values()), abs=0.03)


def test_a_photographs_features_do_not_depend_on_its_neighbours(network: Network) -> None:
    squares = some_squares(3, SIDE_PX)
    together, alone = network.features(squares)[0], network.features(squares[1:2])[0]
    assert together[1].tobytes() == alone[0].tobytes()


def by_hand(square_rgb: np.ndarray, parts: dict[str, np.ndarray]) -> np.ndarray:
    """(S, S, 3) uint8 → (R, 1280), in float64, from the table of the paper scaled by 1.1 and 1.2."""
    values = (square_rgb.astype(np.float64) - 127) / 128
    values = np.clip(convolve(values, parts, "stem", 2), 0, 6)
    block = 0
    for repeats, first_stride in ((1, 1), (3, 2), (3, 2), (4, 2), (4, 1), (5, 2), (1, 1)):
        for number in range(repeats):
            stride, before = first_stride if number == 0 else 1, values
            if block:
                values = np.clip(convolve(values, parts, f"block{block}.expand", 1), 0, 6)
            values = np.clip(convolve(values, parts, f"block{block}.depthwise", stride), 0, 6)
            values = convolve(values, parts, f"block{block}.project", 1)
            values = values + before if number else values
            block += 1
    return np.clip(convolve(values, parts, "head", 1), 0, 6).reshape(-1, 1280)


def convolve(values: np.ndarray, parts: dict[str, np.ndarray], name: str, stride: int) -> np.ndarray:
    """A convolution with TensorFlow's "same" padding, one tap of the kernel after the other."""
    kernel = parts[f"{name}.kernel"].astype(np.float64)
    size = kernel.shape[0]
    out = -(-values.shape[0] // stride)
    missing = max((out - 1) * stride + size - values.shape[0], 0)
    padded = np.pad(values, ((missing // 2, missing - missing // 2),) * 2 + ((0, 0),))
    sums = np.zeros((out, out, kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            tap = padded[i : i + (out - 1) * stride + 1 : stride, j : j + (out - 1) * stride + 1 : stride]
            sums += tap * kernel[i, j, 0] if name.endswith("depthwise") else tap @ kernel[i, j]
    return sums + parts[f"{name}.bias"]
