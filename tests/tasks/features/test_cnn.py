"""Networks give the features of Keras's own, and weights that are missing or do not fit are told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cutline.schemas.errors import MissingWeights, UsageError
from cutline.schemas.settings import ImageFeaturesSettings, ImagesSettings
from cutline.tasks.features import cnn
from cutline.tasks.features.cnn import (
    IMAGENET_HASHES,
    Network,
    float_maps,
    load_network,
    resolved_precision,
    weights_digest,
)
from cutline.tasks.images.decode import square_of
from cutline.tasks.runtime import cpu as processor_module
from cutline.tasks.runtime.cpu import has_int8
from tests.conftest import Once

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this processor has no fast 8-bit instructions")
PRECISIONS = ["float32", pytest.param("int8", marks=needs_int8)]
MEAN_BGR = np.array([103.939, 116.779, 123.68])
VGG16 = cnn.BUNDLED["VGG16"].path
SIDE_PX = 64  # small, so that these tests are quick; real photographs are tested at 224


def settings(**values: object) -> ImageFeaturesSettings:
    return ImageFeaturesSettings(**{"batch_size": 4, "precision": "float32", **values})  # type: ignore[arg-type]


def some_squares(n: int, side_px: int = SIDE_PX) -> np.ndarray:
    squares = np.random.default_rng(0).integers(0, 256, (n, side_px, side_px, 3), np.uint8)
    squares[0] = 0  # black all over: shows at once what the padded border stands for
    return squares


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def same_bytes(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(x.view(np.uint16), y.view(np.uint16)) for x, y in zip(a, b, strict=True))


# -- names, and what can go wrong with weights ---------------------------------------------------


def test_every_network_of_keras_has_its_name_and_published_hash_here() -> None:
    import inspect

    import keras

    builders = {n: f for n in dir(keras.applications) if callable(f := getattr(keras.applications, n))}
    assert set(IMAGENET_HASHES) == set(builders)
    for name, published in IMAGENET_HASHES.items():
        module = inspect.getmodule(inspect.unwrap(builders[name]))
        source = inspect.getsource(module) + inspect.getsource(sys.modules["keras.src.applications.resnet"])
        if published is None:
            assert "file_hash" not in inspect.getsource(module), f"Keras now publishes a hash for {name}"
        else:
            assert published in source, f"Keras checks {name} by another hash"


def test_a_mistyped_network_is_answered_with_the_near_names() -> None:
    with pytest.raises(UsageError, match=r"network=vgg-16: .* did you mean VGG16"):
        load_network(settings(network="vgg-16"), SIDE_PX)
    with pytest.raises(UsageError, match=r"choose one of VGG16, EfficientNetLite2, ConvNeXtBase, .*Xception"):
        weights_digest(settings(network="?"))


def test_squares_too_small_for_a_network_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"Xception cannot take squares of images.side_px=64: .*71"):
        load_network(settings(network="Xception", weights="imagenet"), SIDE_PX)


def test_bundled_weights_are_for_two_networks_only() -> None:
    with pytest.raises(UsageError, match="ResNet50; choose imagenet or the path"):
        load_network(settings(network="ResNet50"), SIDE_PX)


def test_a_network_that_keras_does_not_have_is_there_with_its_bundled_weights_only() -> None:
    with pytest.raises(
        UsageError, match=r"EfficientNetLite2: expected weights=bundled, .*found weights=imagenet"
    ):
        load_network(settings(network="EfficientNetLite2", weights="imagenet"), SIDE_PX)


def test_a_download_that_nobody_could_check_is_refused() -> None:
    with pytest.raises(MissingWeights, match=r"publishes no hash for MobileNet, .* give the path"):
        load_network(settings(network="MobileNet", weights="imagenet"), SIDE_PX)


def test_imagenet_weights_offline_fail_and_name_the_other_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # nothing downloaded yet
    with pytest.raises(MissingWeights, match=r"VGG16 cannot be downloaded .*bundled .*path of an \.h5 file"):
        load_network(settings(weights="imagenet"), SIDE_PX)


@pytest.mark.parametrize("kind", ["missing", "folder", "other ending"])
def test_a_weights_path_must_be_an_h5_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("weights.npz" if kind == "other ending" else "weights.h5")
    if kind == "folder":
        path.mkdir()
    elif kind == "other ending":
        path.write_bytes(b"PK")
    found = {"missing": "no such file", "folder": "a folder", "other ending": "another kind of file"}[kind]
    for call in (weights_digest, lambda s: load_network(s, SIDE_PX)):
        with pytest.raises(
            MissingWeights, match=rf"expected the path of an \.h5 file, found {found}; choose"
        ):
            call(settings(weights=str(path)))


@pytest.mark.parametrize("damage", [slice(100, 101), slice(-1, None)])
def test_a_damaged_bundled_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: slice
) -> None:
    data = bytearray(VGG16.read_bytes())
    data[damage] = b"" if damage.stop is None else bytes([data[100] ^ 1])
    (tmp_path / VGG16.name).write_bytes(data)
    monkeypatch.setattr(cnn, "WEIGHTS_FOLDER", tmp_path)
    monkeypatch.setattr(cnn, "_load", cnn._load.__wrapped__)  # not the one loaded before
    with pytest.raises(MissingWeights, match=r"expected (SHA-256 4acbd7|11,934,962 bytes).*found .*restore"):
        load_network(settings(), 32)


def test_digests_and_precision_need_no_tensorflow() -> None:
    code = (
        "import sys; from cutline.schemas.settings import ImageFeaturesSettings as S;"
        "from cutline.tasks.features.cnn import resolved_precision as p, weights_digest as d;"
        "print(d(S()), d(S(weights='imagenet')), p(S()));"
        "assert not {'tensorflow', 'keras', 'h5py'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [
        cnn.BUNDLED["VGG16"].sha256,
        "imagenet-6d6bbae143d832006294945121d1f1fc",
        "int8" if has_int8() else "float32",
    ]


# -- precision -----------------------------------------------------------------------------------


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes this computer's processor one with the given flags."""

    def pretend(flags: str) -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\nvmx flags\t: avx_vnni\nflags\t\t: fpu sse2 {flags}\n")
        monkeypatch.setattr(processor_module, "CPU_INFO", path)
        has_int8.cache_clear()

    yield pretend
    has_int8.cache_clear()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 avx512_vnni", "int8"),
        ("avx2 avx_vnni", "int8"),
        ("amx_tile amx_int8", "int8"),
        ("avx2 avx512f avx512_bf16", "float32"),
    ],
)
def test_auto_is_int8_where_the_processor_has_the_instructions(
    processor: Callable[[str], None], flags: str, expected: str
) -> None:
    processor(flags)
    assert resolved_precision(settings(precision="auto")) == expected
    assert resolved_precision(settings(precision="auto", weights="imagenet")) == "float32"
    assert resolved_precision(settings(precision="auto", network="ResNet50", weights="x.h5")) == "float32"
    assert resolved_precision(settings(precision="float32")) == "float32"


def test_auto_is_float32_where_tensorflow_is_told_to_do_without_onednn(
    processor: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    processor("avx512_vnni")
    assert resolved_precision(settings(precision="auto")) == "float32"


def test_auto_is_float32_where_nobody_can_tell(
    processor: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor("avx512_vnni")
    monkeypatch.setattr(processor_module, "CPU_INFO", tmp_path / "no such file")
    assert resolved_precision(settings(precision="auto")) == "float32"


def test_int8_that_cannot_be_had_is_wrong_usage_and_names_the_choices(
    processor: Callable[[str], None],
) -> None:
    with pytest.raises(
        UsageError, match=r"network=VGG19 with weights=imagenet; choose .*auto or float32, or the bundled"
    ):
        load_network(settings(precision="int8", network="VGG19", weights="imagenet"), SIDE_PX)
    with pytest.raises(UsageError, match="found network=VGG16 with weights=imagenet"):
        resolved_precision(settings(precision="int8", weights="imagenet"))
    processor("avx2")
    with pytest.raises(UsageError, match=r"one of amx_int8, avx512_vnni, avx_vnni .* choose .*float32"):
        resolved_precision(settings(precision="int8"))


@needs_int8
def test_int8_features_are_those_of_the_same_network_computed_step_by_step() -> None:
    """Against NumPy's arithmetic on whole numbers: products of levels, their sums, limits, pooling."""
    with np.load(VGG16, allow_pickle=False) as arrays:
        parts = dict(arrays)
    square = some_squares(2, 32)[1:]
    expected = int8_by_hand(square[0], parts)
    regions, pooled = load_network(settings(precision="int8"), 32).features(square)
    assert expected.std() > 0
    assert cosines(regions, expected[None])[0] > 0.9995  # sums that lie between two levels may go either way
    assert cosines(pooled, expected.mean(axis=0)[None])[0] > 0.9995
    assert np.linalg.norm(regions.astype(np.float32)) == pytest.approx(np.linalg.norm(expected), rel=0.01)


def int8_by_hand(square_rgb: np.ndarray, parts: dict[str, np.ndarray]) -> np.ndarray:
    """(S, S, 3) uint8 → (R, 512); one convolution at a time, in float64, which holds the sums exactly."""
    names = [name.removesuffix(".kernel") for name in parts if name.endswith(".kernel")]
    values, step = square_rgb[..., ::-1] - MEAN_BGR, 1.0
    for name in names:
        kernel = parts[f"{name}.kernel"].astype(np.float64)
        rows, columns, _ = values.shape
        padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
        if name == names[0]:  # round the border lies ImageNet's mean colour, rounded
            padded[[0, -1]] = padded[:, [0, -1]] = np.rint(MEAN_BGR) - MEAN_BGR
        sums = np.zeros((rows, columns, kernel.shape[-1]))
        for i in range(3):
            for j in range(3):
                sums += padded[i : i + rows, j : j + columns] @ kernel[i, j]
        real = np.maximum(sums * step * parts[f"{name}.scale"] + parts[f"{name}.corrected_bias"], 0)
        if name + ".limit" in parts:
            step = parts[f"{name}.limit"] / 255
            values = np.clip(np.rint(real / step), 0, 255)
        else:
            values = real
        if name in {"block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"}:
            values = values.reshape(rows // 2, 2, columns // 2, 2, -1).max(axis=(1, 3))
    return values.reshape(-1, 512)


# -- the bundled weights -------------------------------------------------------------------------


def test_the_bundled_weights_are_vgg16s() -> None:
    """Against the published facts: 14,714,688 parameters, the first biases, the last bias's moments."""
    with np.load(VGG16, allow_pickle=False) as arrays:
        parts = {name: arrays[name] for name in arrays.files}
    kernels = {name: part for name, part in parts.items() if name.endswith(".kernel")}
    assert len(kernels) == 13
    assert all(kernel.dtype == np.int8 for kernel in kernels.values())
    biases = {name: part for name, part in parts.items() if name.endswith(".bias")}
    assert sum(part.size for part in [*kernels.values(), *biases.values()]) == 14_714_688
    assert biases["block1_conv1.bias"][:3] == pytest.approx([0.73429835, 0.09340367, 0.06775674], abs=1e-8)
    last = biases["block5_conv3.bias"].astype(np.float64)
    assert [last.mean(), last.std(), last.min(), last.max()] == pytest.approx(
        [0.14986369, 0.4928213, -0.50036746, 9.431553], abs=1e-6
    )


def test_features_are_those_of_keras_own_vgg16_with_its_preprocessing() -> None:
    import keras

    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(SIDE_PX, SIDE_PX, 3))
    before = np.ones(3)  # what the channels that come in were divided by
    with np.load(VGG16, allow_pickle=False) as arrays:
        for layer in (layer for layer in model.layers if layer.weights):
            kernel, scale, stretch, bias = (
                arrays[f"{layer.name}.{part}"] for part in ("kernel", "scale", "stretch", "bias")
            )
            layer.set_weights([kernel * scale * stretch / before[:, None], bias])
            before = stretch
    squares = some_squares(6)
    maps = model.predict(keras.applications.vgg16.preprocess_input(squares.astype(np.float32)), verbose=0)

    network = load_network(settings(), SIDE_PX)
    regions, pooled = network.features(squares)

    assert (network.regions, network.channels) == (4, 512)
    assert regions.dtype == pooled.dtype == np.float16
    np.testing.assert_allclose(regions, maps.reshape(6, 4, 512), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(pooled, maps.mean(axis=(1, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("count", "side_px", "batch_size", "one"), [(11, SIDE_PX, 4, 7), (3, 224, 2, 1)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_photos_features_do_not_depend_on_its_neighbours_place_or_batch(
    precision: str, count: int, side_px: int, batch_size: int, one: int
) -> None:
    squares = some_squares(count, side_px)
    network = load_network(settings(precision=precision, batch_size=batch_size), side_px)
    all_at_once = network.features(squares)
    order = np.random.default_rng(2).permutation(count)

    assert same_bytes(network.features(squares[order]), tuple(part[order] for part in all_at_once))
    alone = slice(one, one + 1)
    assert same_bytes(network.features(squares[alone]), tuple(part[alone] for part in all_at_once))
    other_batches = load_network(settings(precision=precision, batch_size=3), side_px)
    assert same_bytes(other_batches.features(squares), all_at_once)


def test_a_network_is_loaded_once_a_process() -> None:
    assert load_network(settings(), SIDE_PX) is load_network(settings(), SIDE_PX)


# -- other networks, and weights from a file -----------------------------------------------------


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[[np.ndarray], np.ndarray], Path]:
    """A MobileNet with random weights, and the folder in which it is saved in Keras's two formats."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(SIDE_PX, SIDE_PX, 3))
    folder = tmp_path_factory.mktemp("mobilenet")
    model.save_weights(folder / "new.weights.h5")
    model.save(folder / "old.h5")
    preprocess = keras.applications.mobilenet.preprocess_input
    return lambda squares: model.predict(preprocess(squares.astype(np.float32)), verbose=0), folder


@pytest.mark.parametrize("name", ["new.weights.h5", "old.h5"])
def test_another_network_by_name_with_weights_from_a_file(
    mobilenet: tuple[Callable[[np.ndarray], np.ndarray], Path], name: str
) -> None:
    predict, folder = mobilenet
    network = load_network(settings(network="MobileNet", weights=str(folder / name)), SIDE_PX)
    squares = some_squares(5)
    regions, pooled = network.features(squares)
    maps = predict(squares)
    assert regions.shape == (5, network.regions, network.channels) == (5, 4, 1024)
    assert maps.std() > 0
    np.testing.assert_allclose(regions, maps.reshape(5, 4, 1024), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(pooled, maps.mean(axis=(1, 2)), rtol=1e-3, atol=1e-3)


def test_weights_of_another_network_or_with_its_top_do_not_fit(
    mobilenet: tuple[Callable[[np.ndarray], np.ndarray], Path], tmp_path: Path
) -> None:
    import keras

    _, folder = mobilenet
    with pytest.raises(
        MissingWeights,
        match=r"MobileNetV2: expected 260 arrays of 2,257,984 numbers in all, found 135 of 3,2",
    ):
        load_network(settings(network="MobileNetV2", weights=str(folder / "new.weights.h5")), SIDE_PX)

    with_top = keras.applications.MobileNet(weights=None, input_shape=(SIDE_PX, SIDE_PX, 3), classes=3)
    with_top.save_weights(tmp_path / "top.weights.h5")
    with pytest.raises(MissingWeights, match="include_top=False"):
        load_network(settings(network="MobileNet", weights=str(tmp_path / "top.weights.h5")), SIDE_PX)

    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(MissingWeights, match="found a file that is not HDF5"):
        load_network(settings(network="MobileNet", weights=str(tmp_path / "text.h5")), SIDE_PX)


def test_weights_that_were_replaced_change_the_digest_and_are_loaded_again(
    mobilenet: tuple[Callable[[np.ndarray], np.ndarray], Path], tmp_path: Path
) -> None:
    import h5py

    path = tmp_path / "w.h5"
    path.write_bytes((mobilenet[1] / "old.h5").read_bytes())
    asked = settings(network="MobileNet", weights=str(path))
    digest, first = weights_digest(asked), load_network(asked, SIDE_PX)
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, item: item.write_direct(item[()] * 0) if "kernel" in item.name else None)
    assert weights_digest(asked) != digest
    assert load_network(asked, SIDE_PX) is not first


@pytest.mark.parametrize(("value", "expected"), [(1e6, 65504.0), (-1e6, -65504.0)])
def test_features_too_large_for_float16_are_clipped(value: float, expected: float) -> None:
    regions, pooled = network_of_constant(value).features(some_squares(2))
    assert (regions == expected).all()
    assert (pooled == expected).all()


def test_weights_that_yield_no_numbers_are_named() -> None:
    with pytest.raises(MissingWeights, match="found NaN in 2 of 2 photos"):
        network_of_constant(float("nan")).features(some_squares(2))


def network_of_constant(value: float) -> Network:
    import keras

    model = keras.Sequential(
        [
            keras.Input((SIDE_PX, SIDE_PX, 3)),
            keras.layers.Conv2D(2, 3, strides=32, bias_initializer=keras.initializers.Constant(value)),
        ]
    )
    return Network(float_maps(model, "VGG16"), "VGG16", 4, SIDE_PX)


# -- real photographs ----------------------------------------------------------------------------


def real_squares(folder: Path) -> np.ndarray:
    """Every sixth of Flickr8k's test split and of COCO's, with which the limits of int8 were not found."""
    names = (folder / "data/flickr8k/Flickr_8k.testImages.txt").read_text().split()
    paths = [folder / "data/flickr8k/images" / name for name in names]
    paths += sorted((folder / "data/coco-mini/train2017").glob("*.jpg"))
    return np.stack([square_of(path.read_bytes(), ImagesSettings()) for path in paths[::6]])


@pytest.fixture(scope="module")
def exact(real_data: Path, once: Once) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Real squares, and their features by the float32 weights."""

    def fill(folder: Path) -> None:
        squares = real_squares(real_data)
        network = load_network(settings(weights=str(weights_of(real_data)), batch_size=6), 224)
        regions, pooled = network.features(squares)
        np.savez(folder / "exact.npz", squares=squares, regions=regions, pooled=pooled)

    with np.load(once("exact", fill) / "exact.npz") as found:
        return found["squares"], (found["regions"], found["pooled"])


def weights_of(folder: Path) -> Path:
    return folder / "weights/vgg16_notop.weights.h5"


@pytest.mark.real_data
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bundled_features_of_real_photographs_are_close_to_those_of_the_float32_weights(
    exact: tuple[np.ndarray, tuple[np.ndarray, np.ndarray]], precision: str
) -> None:
    squares, expected = exact
    assert len(squares) == 30
    bundled = load_network(settings(precision=precision, batch_size=6), 224).features(squares)
    for name, a, b in zip(("regions", "pooled"), bundled, expected, strict=True):
        found = cosines(a, b)
        print(f"{precision} {name}: cosine {found.mean():.6f} on average, {found.min():.6f} at worst")
        assert found.mean() >= 0.999
        assert found.min() >= 0.99


@pytest.mark.real_data
def test_features_of_real_photographs_are_those_of_keras_own_model(
    real_data: Path, exact: tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]
) -> None:
    import keras

    squares, (regions, pooled) = exact
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    model.load_weights(weights_of(real_data))
    maps = model.predict(keras.applications.vgg16.preprocess_input(squares[:8].astype(np.float32)), verbose=0)
    np.testing.assert_allclose(regions[:8], maps.reshape(8, 49, 512), rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(pooled[:8], maps.mean(axis=(1, 2)), rtol=1e-3, atol=2e-3)
