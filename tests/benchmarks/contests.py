"""What is timed: each function builds one contest from a folder of real photographs, or the sample."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import polars as pl

from schemas.settings import ImageFeaturesSettings, ImagesSettings, IngestSettings
from tests.benchmarks import rivals
from tests.benchmarks.harness import OURS, Contest

if TYPE_CHECKING:
    import keras

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
PHOTOS = 32
LARGE_PHOTOS = 16
CAPTIONS = 35_000


@dataclass(frozen=True)
class Place:
    """The data set that contests take their input from, and a folder for what they write."""

    dataset: Path
    scratch: Path

    @classmethod
    def of_environment(cls, scratch: Path) -> Place:
        """Flickr8k in the folder that CUTLINE_REAL_DATA names, else the drawn sample."""
        real = os.environ.get("CUTLINE_REAL_DATA")
        return cls(Path(real, "data/flickr8k") if real else SAMPLE, scratch)

    @property
    def name(self) -> str:
        return "the sample" if self.dataset == SAMPLE else self.dataset.name


def features(place: Place) -> Contest:
    """Files → VGG-16's features in Parquet."""
    from tasks.image_features import make_image_features
    from tasks.images import make_images
    from tasks.networks import load_network, resolved_precision
    from tasks.tables import tensor, write_table

    photos = _photos(place.dataset, place.scratch).head(PHOTOS)
    paths = [place.dataset / path for path in photos["path"]]
    settings, images_settings = ImageFeaturesSettings(), ImagesSettings()
    model = _vgg16()
    images, _ = make_images(photos, place.dataset, images_settings, _nobody)
    squares = tensor(images["square"]).reshape(-1, 224, 224, 3)
    network = load_network(settings, 224)

    def ours() -> None:
        images, _ = make_images(photos, place.dataset, images_settings, _nobody)
        features = make_image_features(images, settings, 224, _nobody)
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


def decoding(place: Place) -> Contest:
    """JPEGs of 12 megapixels, made by enlarging photographs → squares."""
    from tasks.images import make_images
    from tasks.tables import tensor

    folder = place.scratch / "large"
    folder.mkdir()
    for path in _photos(place.dataset, place.scratch)["path"].head(LARGE_PHOTOS):
        large = cv2.resize(cv2.imread(str(place.dataset / path)), (4000, 3000), interpolation=cv2.INTER_CUBIC)
        grain = np.random.default_rng(0).normal(0, 4, large.shape).astype(np.float32)  # as of a sensor
        large = np.clip(large + grain, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{Path(path).stem}.jpg"), large, [cv2.IMWRITE_JPEG_QUALITY, 92])
    photos = _photos(folder, place.scratch)
    paths = [folder / path for path in photos["path"]]

    def note() -> str:
        images, _ = make_images(photos, folder, ImagesSettings(), _nobody)
        difference = tensor(images["square"]).reshape(-1, 224, 224, 3) - rivals.squares_by_opencv(paths) * 1.0
        psnr = 10 * np.log10(255**2 / (difference**2).mean(axis=(1, 2, 3)))
        return f"PSNR {psnr.mean():.1f} dB, {psnr.min():.1f} at worst"

    rival = "cv2.imread, resize INTER_AREA"
    return Contest(
        name="decoding",
        title=f"decoding and cropping, {len(paths)} JPEGs of 12 megapixels",
        count=len(paths),
        thing="photographs",
        sides={
            OURS: lambda: make_images(photos, folder, ImagesSettings(), _nobody),
            rival: lambda: rivals.squares_by_opencv(paths),
        },
        targets={rival: 3.5},
        note=note,
    )


def tokens(place: Place) -> Contest:
    """Captions → tokens, with and without stop words; what ours remembers of words is forgotten first."""
    from tasks import captions

    texts = _texts(place)
    table = pl.DataFrame({"caption_id": [f"{i:032x}" for i in range(len(texts))], "text": texts})
    stopwords = captions.load_stopwords("english")

    def ours() -> pl.DataFrame:
        captions._remembered_parts.cache_clear()
        return captions.tokenize_captions(table, stopwords, _nobody)[0]

    def alike(theirs: list[list[str]], content: list[list[str]]) -> float:
        other = pl.DataFrame({"caption_id": table["caption_id"], "theirs": theirs, "content": content})
        both = other.join(ours(), on="caption_id")
        same = (both["theirs"] == both["tokens"]) & (both["content"] == both["content_tokens"])
        return float(same.sum()) / table.height

    def note() -> str:
        plain = alike(*rivals.tokens_by_nltk(texts, stopwords))
        by_our_rules = alike(*rivals.tokens_by_our_rules(texts, stopwords))
        return f"same tokens in {plain:.2%} of captions; by our rules in {by_our_rules:.2%}"

    plainly, by_our_rules = "a loop of nltk.word_tokenize", "the same loop with our rules"
    return Contest(
        name="tokens",
        title=f"tokenizing and stop words, {len(texts):,} captions of {place.name}",
        count=len(texts),
        thing="captions",
        sides={
            OURS: ours,
            plainly: lambda: rivals.tokens_by_nltk(texts, stopwords),
            by_our_rules: lambda: rivals.tokens_by_our_rules(texts, stopwords),
        },
        targets={plainly: 3, by_our_rules: 3},
        note=note,
    )


CONTESTS = {"features": features, "decoding": decoding, "tokens": tokens}


def _nobody(rows: int) -> None:
    """Hears of progress, and tells nobody."""


def _photos(dataset: Path, scratch: Path) -> pl.DataFrame:
    from tasks.ingest import ingest

    return ingest(dataset, IngestSettings(), scratch / "packs", None, _nobody).photos


def _texts(place: Place) -> list[str]:
    """Captions, told again from the first one where there are too few."""
    lines = (place.dataset / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.partition("\t")[2] for line in lines if "\t" in line]
    return (texts * -(-CAPTIONS // len(texts)))[:CAPTIONS]


def _vgg16() -> keras.Model:
    """Keras's own model, as `VGG16(include_top=False, weights="imagenet")` gives it, without a download."""
    import keras

    from tasks.int8 import float_weights
    from tasks.networks import BUNDLED

    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    with np.load(BUNDLED, allow_pickle=False) as arrays:
        weights = float_weights(dict(arrays))
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(weights[layer.name])
    return model


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (part.reshape(len(part), -1).astype(np.float64) for part in (a, b))
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
