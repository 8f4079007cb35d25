"""The rivals, each written in the plain way of its users. Nothing here is used by Cutline itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import nltk
import numpy as np
import polars as pl

if TYPE_CHECKING:
    import keras


# -- files → VGG-16 features in Parquet ------------------------------------------------------------


def features_one_at_a_time(paths: list[Path], model: keras.Model, target: Path) -> None:
    """The tutorials' loop: one photograph after the other through `model.predict`."""
    from keras.applications.vgg16 import preprocess_input
    from keras.utils import img_to_array, load_img

    names, features = [], []
    for path in paths:
        image = img_to_array(load_img(path, target_size=(224, 224)))
        image = preprocess_input(image.reshape((1, *image.shape)))
        names.append(path.name)
        features.append(model.predict(image, verbose=0)[0].reshape(-1))
    pl.DataFrame({"name": names, "features": np.stack(features)}).write_parquet(target)


def features_by_tf_data(paths: list[Path], model: keras.Model, target: Path) -> None:
    """The competent way: decoded and resized in parallel, in batches, ahead of `model.predict`."""
    import tensorflow as tf
    from keras.applications.vgg16 import preprocess_input

    def load(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return preprocess_input(tf.image.resize(image, (224, 224)))

    dataset = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(tf.data.AUTOTUNE)
    features = model.predict(dataset, verbose=0)
    names = [path.name for path in paths]
    pl.DataFrame({"name": names, "features": features.reshape(len(paths), -1)}).write_parquet(target)


# -- photographs → squares ----------------------------------------------------------------------


def squares_by_opencv(paths: list[Path]) -> np.ndarray:
    """Whole photographs decoded, the centre cut out, resized with INTER_AREA: (n, 224, 224, 3), RGB."""
    squares = []
    for path in paths:
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
        image = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
        squares.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return np.stack(squares)


# -- captions → tokens ----------------------------------------------------------------------------


def tokens_by_nltk(texts: list[str], stopwords: frozenset[str]) -> tuple[list[list[str]], list[list[str]]]:
    """A Python loop of `nltk.word_tokenize`, without punctuation, then without stop words."""
    all_tokens, all_content = [], []
    for text in texts:
        tokens = nltk.word_tokenize(text.lower(), preserve_line=True)
        tokens = [token for token in tokens if any(character.isalnum() for character in token)]
        all_tokens.append(tokens)
        all_content.append([token for token in tokens if token not in stopwords])
    return all_tokens, all_content


def tokens_by_our_rules(
    texts: list[str], stopwords: frozenset[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """The same loop with what Cutline adds to NLTK's tokenizer: it must give the same tokens."""
    from tasks.captions import is_word, split_plainly

    all_tokens, all_content = [], []
    for text in texts:
        tokens = [token for token in split_plainly(text) if is_word(token)]
        all_tokens.append(tokens)
        all_content.append([token for token in tokens if token not in stopwords])
    return all_tokens, all_content
