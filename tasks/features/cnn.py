"""Convolutional networks that turn squares into features: which there are, their weights, one pass."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from cutline.schemas.errors import MissingWeights, UsageError
from cutline.schemas.settings import ImageFeaturesSettings, expanded
from cutline.tasks.features import efficientnet_lite2
from cutline.tasks.features.vgg16_int8 import float_weights, last_maps
from cutline.tasks.runtime.cpu import INT8_INSTRUCTIONS, has_int8

if TYPE_CHECKING:
    import h5py
    import keras
    import tensorflow as tf


# The networks of keras.applications by name, with the hash by which Keras checks the weights of the
# convolutional base that it downloads (MD5 or SHA-256). For two of them Keras publishes none.
IMAGENET_HASHES: dict[str, str | None] = {
    "ConvNeXtBase": "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
    "ConvNeXtLarge": "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
    "ConvNeXtSmall": "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
    "ConvNeXtTiny": "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    "ConvNeXtXLarge": "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
    "DenseNet121": "30ee3e1110167f948a6b9946edeeb738",
    "DenseNet169": "b8c4d4c20dd625c148057b9ff1c1176b",
    "DenseNet201": "c13680b51ded0fb44dff2d8f86ac8bb1",
    "EfficientNetB0": "50bc09e76180e00e4465e1a485ddc09d",
    "EfficientNetB1": "74c4e6b3e1f6a1eea24c589628592432",
    "EfficientNetB2": "111f8e2ac8aa800a7a99e3239f7bfb39",
    "EfficientNetB3": "af6d107764bb5b1abb91932881670226",
    "EfficientNetB4": "ebc24e6d6c33eaebbd558eafbeedf1ba",
    "EfficientNetB5": "38879255a25d3c92d5e44e04ae6cec6f",
    "EfficientNetB6": "9ecce42647a20130c1f39a5d4cb75743",
    "EfficientNetB7": "cbcfe4450ddf6f3ad90b1b398090fe4a",
    "EfficientNetV2B0": "893217f2bb855e2983157299931e43ff",
    "EfficientNetV2B1": "0e80663031ca32d657f9caa404b6ec37",
    "EfficientNetV2B2": "1dfe2e7a5d45b6632553a8961ea609eb",
    "EfficientNetV2B3": "f6abf7b5849ac99a89b50dd3fd532856",
    "EfficientNetV2L": "b0b66b5c863aef5b46e8608fe1711615",
    "EfficientNetV2M": "1b8dc055df72dde80d614482840fe342",
    "EfficientNetV2S": "af0682fb74e8c54910f2d4393339c070",
    "InceptionResNetV2": "d19885ff4a710c122648d3b5c3b684e4",
    "InceptionV3": "bcbd6486424b2319ff4ef7d526e38f63",
    "MobileNet": None,
    "MobileNetV2": None,
    "MobileNetV3Large": "07fb09a5933dd0c8eaafa16978110389",
    "MobileNetV3Small": "d3e8ec802a04aa4fc771ee12a9a9b836",
    "NASNetLarge": "d81d89dc07e6e56530c4e77faddd61b5",
    "NASNetMobile": "1ed92395b5b598bdda52abe5c0dbfd63",
    "ResNet101": "88cf7a10940856eca736dc7b7e228a21",
    "ResNet101V2": "c0ed64b8031c3730f411d2eb4eea35b5",
    "ResNet152": "ee4c566cf9a93f14d82f913c2dc6dd0c",
    "ResNet152V2": "ed17cf2e0169df9d443503ef94b23b33",
    "ResNet50": "4d473c1dd8becc155b73f8504c6f6626",
    "ResNet50V2": "fac2f116257151a9d068a22e544a4917",
    "VGG16": "6d6bbae143d832006294945121d1f1fc",
    "VGG19": "253f8cb515780f3b799900260a226db6",
    "Xception": "b0042744bf5b25fce3cb969f33bebb97",
}


@dataclass(frozen=True)
class Bundled:
    """A file of weights that ships with Cutline: its name in data/pretrained, size in bytes, SHA-256."""

    name: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        return WEIGHTS_FOLDER / self.name


WEIGHTS_FOLDER = Path(__file__).resolve().parents[2] / "data" / "pretrained"
BUNDLED = {
    "VGG16": Bundled(
        "vgg16_int8.npz", 11_934_962, "4acbd7c1f8566a6f122266d8a21b121c48062bab3f8dc05b195d6e805ac22ece"
    ),
    efficientnet_lite2.NAME: Bundled(
        "efficientnet_lite2.npz",
        8_935_560,
        "258d368c53f1a5842d24c5fdd537a894a502026bbaca1557c72685d150237708",
    ),
}
WITH_INT8 = "VGG16"  # the bundled network that also computes on 8-bit integers

# The largest float16. VGG-16's features stay far below (a few hundred); other networks and other
# weights need not, and a clipped value is of more use than an infinite one.
LARGEST_FEATURE = float(np.finfo(np.float16).max)

_CHOICES = (
    "choose image_features.weights=bundled (VGG16 or EfficientNetLite2, no download), imagenet (downloaded "
    "by Keras) or the path of an .h5 file"
)
_loading = threading.Lock()

# Builds, within a tf.function, RGB squares (B, S, S, 3) uint8 → the last maps (B, rows, columns, C) float32.
Maps: TypeAlias = "Callable[[tf.Tensor], tf.Tensor]"


class Network:
    """A convolutional base with its preprocessing, compiled once for one shape of batch.

    `regions` is the number of places in the last feature map, `channels` the values at each.
    """

    def __init__(self, maps: Maps, name: str, batch_size: int, side_px: int) -> None:
        self.name = name
        self.side_px = side_px
        self.batch_size = batch_size
        self._pass = _compile(maps, (batch_size, side_px, side_px, 3))
        self.regions: int
        self.channels: int
        _, self.regions, self.channels = self._pass.output_shapes[0]

    def features(
        self, squares: np.ndarray, advance: Callable[[int], None] = lambda rows: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of RGB squares: uint8 (n, S, S, 3) → regions (n, R, C) and pooled (n, C), float16.

        `regions` is the last feature map row by row, `pooled` its mean; both are clipped to what
        float16 holds. A row's bytes depend on its square alone: not on n, its place or its
        neighbours. Raises MissingWeights if the weights yield values that are not numbers.
        """
        n = len(squares)
        regions = np.empty((n, self.regions, self.channels), np.float16)
        pooled = np.empty((n, self.channels), np.float16)
        for start in range(0, n, self.batch_size):
            rows = slice(start, min(start + self.batch_size, n))
            regions[rows], pooled[rows] = self._one_batch(squares[rows])
            advance(rows.stop - rows.start)
        if np.isnan(pooled).any():
            raise MissingWeights(
                f"network '{self.name}': expected features that are numbers, found NaN in "
                f"{np.isnan(pooled).any(axis=1).sum()} of {n} photos; the weights are damaged; {_CHOICES}"
            )
        return regions, pooled

    def _one_batch(self, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import tensorflow as tf

        n = len(squares)
        if n < self.batch_size:
            # Always the same shape: another would be compiled anew, and might round differently.
            filled = np.zeros((self.batch_size, *squares.shape[1:]), np.uint8)
            filled[:n] = squares
            squares = filled
        regions, pooled = self._pass(tf.constant(np.ascontiguousarray(squares)))
        return regions.numpy()[:n], pooled.numpy()[:n]


def load_network(settings: ImageFeaturesSettings, side_px: int) -> Network:
    """The network that `settings` name, for squares of `side_px`; kept for the next call.

    Raises UsageError (no such network, or it cannot take such squares) and MissingWeights.
    """
    with _loading:
        return _load(settings, side_px, weights_digest(settings))


def weights_digest(settings: ImageFeaturesSettings) -> str:
    """What the weights are, as text for a key; does not import TensorFlow.

    For `bundled` and `imagenet` the published hash, which is checked when the weights are loaded;
    for a path the SHA-256 of the file as it is now. Raises UsageError and MissingWeights.
    """
    _check_name(settings.network)
    if settings.weights == "bundled":
        if settings.network not in BUNDLED:
            raise UsageError(
                f"image_features.weights=bundled: the bundled weights are for {' and '.join(BUNDLED)}, found "
                f"image_features.network={settings.network}; choose imagenet or the path of an .h5 file"
            )
        _check_bundled_size(BUNDLED[settings.network])
        return BUNDLED[settings.network].sha256
    if settings.network not in IMAGENET_HASHES:
        raise UsageError(
            f"image_features.network={settings.network}: expected weights=bundled, as Keras does not know "
            f"this network; found weights={settings.weights}"
        )
    if settings.weights == "imagenet":
        published = IMAGENET_HASHES[settings.network]
        if published is None:
            raise MissingWeights(
                f"image_features.weights=imagenet: Keras publishes no hash for {settings.network}, so a "
                "download cannot be checked; download its weights yourself and give the path of the .h5 file"
            )
        return f"imagenet-{published}"
    with _weights_file(settings.weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolved_precision(settings: ImageFeaturesSettings) -> Literal["float32", "int8"]:
    """The precision in which features are computed here; does not import TensorFlow.

    It depends on the processor where `settings` say auto, and it changes the features by a little, so it
    belongs into a key. Raises UsageError where int8 is asked for and cannot be had.
    """
    is_bundled = settings.network == WITH_INT8 and settings.weights == "bundled"
    if settings.precision == "auto":
        return "int8" if is_bundled and has_int8() else "float32"
    if settings.precision == "int8" and not is_bundled:
        raise UsageError(
            f"image_features.precision=int8: expected network={WITH_INT8} with weights=bundled, found "
            f"network={settings.network} with weights={settings.weights}; choose image_features.precision="
            "auto or float32, or the bundled weights"
        )
    if settings.precision == "int8" and not has_int8():
        raise UsageError(
            "image_features.precision=int8: expected a processor with one of "
            f"{', '.join(sorted(INT8_INSTRUCTIONS))} and TensorFlow's oneDNN switched on, found none; choose "
            "image_features.precision=auto or float32"
        )
    return settings.precision


@lru_cache(maxsize=2)
def _load(settings: ImageFeaturesSettings, side_px: int, digest: str) -> Network:
    """`digest` is part of the key: a weights file that was replaced is loaded again."""
    name, batch_size = settings.network, settings.batch_size
    if resolved_precision(settings) == "int8":
        return Network(last_maps(_read_bundled(name), side_px), name, batch_size, side_px)
    if name == efficientnet_lite2.NAME:
        maps = _one_at_a_time(efficientnet_lite2.last_map(_read_bundled(name)))
        return Network(maps, name, batch_size, side_px)
    model = _build(settings.network, side_px)
    if settings.weights == "bundled":
        weights = float_weights(_read_bundled(name))
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(weights[layer.name])
    elif settings.weights == "imagenet":
        model = _download(settings.network, side_px)
    else:
        _load_weights_file(model, settings.network, _weights_file(settings.weights))
    return Network(float_maps(model, name), name, batch_size, side_px)


def _check_name(network: str) -> None:
    known = BUNDLED | IMAGENET_HASHES
    if network in known:
        return
    by_lower = {name.lower(): name for name in known}
    near = [by_lower[name] for name in difflib.get_close_matches(network.lower(), by_lower, n=5)]
    raise UsageError(
        f"image_features.network={network}: there is no network of this name; "
        + (f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(known)}")
    )


def _builder(network: str) -> Callable[..., keras.Model]:
    import keras

    return getattr(keras.applications, network)


def _build(network: str, side_px: int) -> keras.Model:
    """The network with random weights, which tells whether it can take squares of this size."""
    try:
        with warnings.catch_warnings(action="ignore"):  # some prefer another size; this is the user's choice
            return _builder(network)(include_top=False, weights=None, input_shape=(side_px, side_px, 3))
    except ValueError as error:
        raise UsageError(
            f"image_features.network={network} cannot take squares of images.side_px={side_px}: {error}"
        ) from None


def float_maps(model: keras.Model, network: str) -> Maps:
    """A model with the preprocessing of its network before it.

    The mean colour of ImageNet is subtracted in the graph, not folded into the first kernel: the
    zeros that pad the border come after the subtraction, so they stand for that mean, not for black.
    """
    import tensorflow as tf

    # Each network's own preprocessing lies beside the function that builds it.
    preprocess = sys.modules[_builder(network).__module__].preprocess_input

    def maps_of(square: tf.Tensor) -> tf.Tensor:
        return model(preprocess(tf.cast(square[None], tf.float32)), training=False)[0]

    return _one_at_a_time(maps_of)


def _one_at_a_time(maps_of: Maps) -> Maps:
    """Maps of squares (B, S, S, 3) from `maps_of`, which takes one square (S, S, 3).

    The last rows of a matrix of several photographs may be rounded differently (tasks/models/lstm.py).
    """
    import tensorflow as tf

    return lambda squares: tf.map_fn(maps_of, squares, fn_output_signature=tf.float32, parallel_iterations=1)


def _compile(maps: Maps, shape: tuple[int, int, int, int]) -> tf.types.experimental.ConcreteFunction:
    """One graph from RGB bytes to features."""
    import tensorflow as tf

    def to_float16(values: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.clip_by_value(values, -LARGEST_FEATURE, LARGEST_FEATURE), tf.float16)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)
    def one_pass(squares: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        last = maps(squares)  # (B, rows, columns, C)
        _, rows, columns, channels = last.shape
        values = tf.reshape(last, (shape[0], rows * columns, channels))  # (B, R, C)
        return to_float16(values), to_float16(tf.reduce_mean(values, axis=1))

    return one_pass.get_concrete_function()


def _check_bundled_size(bundled: Bundled) -> None:
    found = bundled.path.stat().st_size if bundled.path.is_file() else None
    if found != bundled.size:
        raise MissingWeights(
            f"bundled weights '{bundled.name}': expected {bundled.size:,} bytes at {bundled.path}, found "
            f"{'no such file' if found is None else f'{found:,} bytes'}; restore the file from the "
            f"repository, or {_CHOICES}"
        )


def _read_bundled(network: str) -> dict[str, np.ndarray]:
    bundled = BUNDLED[network]
    data = bundled.path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != bundled.sha256:
        raise MissingWeights(
            f"bundled weights '{bundled.path}': expected SHA-256 {bundled.sha256}, found {found}; restore "
            f"the file from the repository, or {_CHOICES}"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _download(network: str, side_px: int) -> keras.Model:
    """The network with the weights that Keras downloads once, and whose hash it checks each time."""
    try:
        # Keras writes its progress to standard output, which belongs to the caller's results.
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(sys.stderr):
            return _builder(network)(include_top=False, weights="imagenet", input_shape=(side_px, side_px, 3))
    except Exception as error:  # Keras raises a bare Exception where a download fails
        raise MissingWeights(
            f"image_features.weights=imagenet: the weights of {network} cannot be downloaded ({error}); "
            + _CHOICES
        ) from error


def _weights_file(weights: str) -> Path:
    path = expanded(weights)
    if not path.is_file() or path.suffix != ".h5":
        found = "another kind of file" if path.is_file() else "a folder" if path.is_dir() else "no such file"
        raise MissingWeights(
            f"image_features.weights={weights}: expected the path of an .h5 file, found {found}; {_CHOICES}"
        )
    return path


def _load_weights_file(model: keras.Model, network: str, path: Path) -> None:
    import h5py

    found = "found a file that is not HDF5"
    try:
        with h5py.File(path) as file:
            sizes = _array_sizes(file)
            is_old_format = "layer_names" in file.attrs or "model_weights" in file
        found = f"found {len(sizes)} of {sum(sizes):,}"
        if sum(sizes) > sum(int(np.prod(variable.shape)) for variable in model.variables):
            raise ValueError("weights of the convolutional base alone are needed: include_top=False")
        with tempfile.TemporaryDirectory() as folder:
            # Keras tells its two formats apart by the file's name; here the content decides.
            link = Path(folder, "network.h5" if is_old_format else "network.weights.h5")
            link.symlink_to(path.resolve())
            model.load_weights(link)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        detail = str(error).strip().partition("\n")[0]
        raise MissingWeights(
            f"image_features.weights={path} does not fit network {network}: expected "
            f"{len(model.weights)} arrays of {model.count_params():,} numbers in all, {found} ({detail}); "
            + _CHOICES
        ) from error


def _array_sizes(file: h5py.File) -> list[int]:
    """The number of values of each weight in the file; an optimizer's state beside them is no weight."""
    import h5py

    sizes: list[int] = []

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            sizes.append(int(item.size or 0))

    file.visititems(note)
    return sizes
