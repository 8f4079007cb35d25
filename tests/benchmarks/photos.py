"""Contests of photographs: from files to features, the machine's own limit, and decoding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cutline.schemas.settings import ImageFeaturesSettings, ImagesSettings
from tests.benchmarks import rivals
from tests.benchmarks.harness import OURS, Contest
from tests.benchmarks.places import Place, nobody, photos_of

if TYPE_CHECKING:
    import keras


PHOTOS = 32
LARGE_PHOTOS = 16
GFLOP_PER_PHOTO = 30.7  # of VGG-16's convolutions at 224 × 224


def features(place: Place) -> Contest:
    """Files → VGG-16's features in Parquet."""
    from cutline.tasks.features.cnn import load_network, resolved_precision
    from cutline.tasks.features.image_features import make_image_features
    from cutline.tasks.images.decode import make_images
    from cutline.tasks.storage.tables import tensor, write_table

    photos = photos_of(place.dataset, place.scratch).head(PHOTOS)
    paths = [place.dataset / path for path in photos["path"]]
    settings, images_settings = ImageFeaturesSettings(), ImagesSettings()
    model = vgg16()
    images, _ = make_images(photos, place.dataset, images_settings, nobody)
    squares = tensor(images["square"]).reshape(-1, 224, 224, 3)
    network = load_network(settings, 224)

    def ours() -> None:
        images, _ = make_images(photos, place.dataset, images_settings, nobody)
        features = make_image_features(images, settings, 224, nobody)
        write_table(features, place.scratch / "ours.parquet", "image_features", regions=49, channels=512)

    def note() -> str:
        from keras.applications.vgg16 import preprocess_input

        exact = model.predict(preprocess_input(squares.astype(np.float32)), verbose=0)
        found = _cosines(network.features(squares)[0], exact)
        precision = resolved_precision(settings)
        return (
            f"{precision}; cosine to float32 of the same weights {found.mean():.5f}, "
            f"{found.min():.5f} at worst"
        )

    slow, quick, ceiling = "load_img, predict one at a time", "tf.data, predict", "our network, in memory"
    return Contest(
        name="features",
        title=f"files → VGG-16 features in Parquet, {len(paths)} photographs of {place.name}",
        count=len(paths),
        thing="photographs",
        sides={
            OURS: ours,
            slow: lambda: rivals.features_one_at_a_time(paths, model, place.scratch / "slow.parquet"),
            quick: lambda: rivals.features_by_tf_data(paths, model, place.scratch / "quick.parquet"),
            ceiling: lambda: network.features(squares),
        },
        targets={slow: 4, quick: 1.8, ceiling: 0.95},
        note=note,
    )


def limit(place: Place) -> Contest:
    """Our network beside as many multiplications in one large matrix product of the same precision."""
    from cutline.tasks.features.cnn import load_network, resolved_precision

    settings = ImageFeaturesSettings()
    precision = resolved_precision(settings)
    network = load_network(settings, 224)
    squares = np.random.default_rng(0).integers(0, 256, (PHOTOS, 224, 224, 3), np.uint8)
    product, gflop = rivals.product_int8() if precision == "int8" else rivals.product_float32()
    times = round(PHOTOS * GFLOP_PER_PHOTO / gflop)

    def multiply() -> None:
        for _ in range(times):
            product()

    rival = f"matrix products in {precision} of as many operations"
    return Contest(
        name="limit",
        title=f"VGG-16 on squares in memory, {PHOTOS} times {GFLOP_PER_PHOTO} GFLOP",
        count=PHOTOS,
        thing="photographs",
        sides={OURS: lambda: network.features(squares), rival: multiply},
        note=lambda: f"{times} products of {gflop:.0f} GFLOP; the ratio is the share of the machine's limit",
    )


def decoding(place: Place) -> Contest:
    """JPEGs of 12 megapixels, made by enlarging photographs → squares."""
    from cutline.tasks.images.decode import make_images
    from cutline.tasks.storage.tables import tensor

    folder = place.scratch / "large"
    folder.mkdir()
    for path in photos_of(place.dataset, place.scratch)["path"].head(LARGE_PHOTOS):
        large = cv2.resize(cv2.imread(str(place.dataset / path)), (4000, 3000), interpolation=cv2.INTER_CUBIC)
        grain = np.random.default_rng(0).normal(0, 4, large.shape).astype(np.float32)  # as of a sensor
        large = np.clip(large + grain, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{Path(path).stem}.jpg"), large, [cv2.IMWRITE_JPEG_QUALITY, 92])
    photos = photos_of(folder, place.scratch)
    paths = [folder / path for path in photos["path"]]

    def note() -> str:
        images, _ = make_images(photos, folder, ImagesSettings(), nobody)
        difference = tensor(images["square"]).reshape(-1, 224, 224, 3) - rivals.squares_by_opencv(paths) * 1.0
        psnr = 10 * np.log10(255**2 / (difference**2).mean(axis=(1, 2, 3)))
        size = sum(map(len, data)) / len(data)
        return f"PSNR {psnr.mean():.1f} dB, {psnr.min():.1f} at worst; {size / 1e6:.1f} MB a photograph"

    data = [path.read_bytes() for path in paths]
    rival, least = "cv2.imread, resize INTER_AREA", "libjpeg at 1/8 and nothing else (the least)"
    return Contest(
        name="decoding",
        title=f"decoding and cropping, {len(paths)} JPEGs of 12 megapixels",
        count=len(paths),
        thing="photographs",
        sides={
            OURS: lambda: make_images(photos, folder, ImagesSettings(), nobody),
            rival: lambda: rivals.squares_by_opencv(paths),
            least: lambda: rivals.decoded_at_an_eighth(data),
        },
        targets={rival: 3.5},
        note=note,
    )


def vgg16() -> keras.Model:
    """Keras's own model, as `VGG16(include_top=False, weights="imagenet")` gives it, without a download."""
    import keras

    from cutline.tasks.features.cnn import BUNDLED
    from cutline.tasks.features.vgg16_int8 import float_weights

    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    with np.load(BUNDLED["VGG16"].path, allow_pickle=False) as arrays:
        weights = float_weights(dict(arrays))
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(weights[layer.name])
    return model


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (part.reshape(len(part), -1).astype(np.float64) for part in (a, b))
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
