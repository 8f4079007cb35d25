"""The rivals, each written in the plain way of its users. Nothing here is used by Cutline itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import nltk
import numpy as np
import polars as pl

from cutline.tasks.text.vocabulary import END, START
from tests.benchmarks.harness import Skipped

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from cutline.tasks.models.fusion import Fusion
    from cutline.tasks.models.language_model import LanguageModel


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


def decoded_at_an_eighth(data: list[bytes]) -> None:
    """What every way through libjpeg does at least: each Huffman code is read, at whatever scale."""
    for one in data:
        cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)


# -- the machine's own limit ----------------------------------------------------------------------


def product_float32(side: int = 4096) -> tuple[Callable[[], object], float]:
    """A large matrix product, and its GFLOP."""
    import tensorflow as tf

    a = tf.random.normal((side, side))
    return tf.function(lambda: tf.reduce_sum(a @ a)), 2 * side**3 / 1e9


def product_int8() -> tuple[Callable[[], object], float]:
    """The same in 8-bit integers: a convolution by 1 × 1 is a matrix product of all places."""
    import tensorflow as tf

    rows, channels = (16, 64, 64), 1024
    rng = np.random.default_rng(0)
    values = tf.bitcast(tf.constant(rng.integers(0, 255, (*rows, channels), np.uint8)), tf.quint8)
    levels = rng.integers(-127, 128, (1, 1, channels, channels), np.int8)

    @tf.function
    def product() -> tf.Tensor:
        found, _, _ = tf.raw_ops.QuantizedConv2DWithBiasAndReluAndRequantize(
            input=values,
            filter=tf.cast(tf.constant(levels), tf.qint8),
            bias=tf.constant(np.zeros(channels, np.float32)),
            min_input=0.0,
            max_input=255.0,
            min_filter=np.full(channels, -1, np.float32),
            max_filter=np.full(channels, 1, np.float32),
            min_freezed_output=0.0,
            max_freezed_output=1e4,
            strides=[1, 1, 1, 1],
            padding="VALID",
            out_type=tf.quint8,
        )
        return tf.bitcast(found, tf.uint8)[0, 0, 0, 0]

    return product, 2 * np.prod(rows) * channels**2 / 1e9


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
    from cutline.tasks.text.tokenizer import is_word, split_plainly

    all_tokens, all_content = [], []
    for text in texts:
        tokens = [token for token in split_plainly(text) if is_word(token)]
        all_tokens.append(tokens)
        all_content.append([token for token in tokens if token not in stopwords])
    return all_tokens, all_content


# -- captions → language model --------------------------------------------------------------------


def padded_to_the_longest(
    captions: Sequence[np.ndarray], start: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """<start> and the tokens, and what each predicts, (captions, longest + 1) int32 each."""
    from keras.utils import pad_sequences

    inputs = pad_sequences([[start, *caption] for caption in captions], padding="post")
    return inputs, pad_sequences([[*caption, end] for caption in captions], padding="post")


def language_model_to_fit(net: LanguageModel, dropout: float, rate: object) -> keras.Model:
    """The layers of `net`, with Keras's own dropout between them, one mask a caption as in ours, compiled."""
    import keras

    from cutline.tasks.training.language_model import CLIP

    tokens = keras.Input((None,), dtype="int32")

    def drop(values: Any, rate: float) -> Any:
        return keras.layers.Dropout(rate, noise_shape=(None, 1, values.shape[-1]))(values)

    words = drop(net.embedding(tokens), dropout / 2)
    states = drop(net.lstm(words), dropout)
    projected = drop(net.projection(states), dropout / 2)
    model = keras.Model(tokens, net.embedding(projected, reverse=True))
    model.compile(
        keras.optimizers.Adam(rate, global_clipnorm=CLIP),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


# -- photographs and captions → fusion ------------------------------------------------------------


def logits_layer(fusion: Fusion) -> keras.layers.Layer:
    """Our fusion as a Keras layer: photos (B, R, C), states (B, T, S) -> logits (B, T, V)."""
    import keras

    class Logits(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.own = list(fusion.layers.values())

        def build(self, *_: object) -> None:
            self.built = True  # each layer of the fusion is

        def call(self, photos: Any, states: Any) -> Any:
            return fusion.layers["output"](fusion.hidden(fusion.encode(photos), states))

    return Logits()


@dataclass(frozen=True)
class Whole:
    """Our language model and fusion as one Keras model, from photographs and tokens to logits."""

    each: keras.Model  # photos (B, R, C), tokens (B, T) -> logits of each next token (B, T, V)
    last: keras.Model  # the same -> logits of the next token alone (B, V)

    @staticmethod
    def of(fusion: Fusion, net: LanguageModel, learning_rate: float, *, frozen: bool) -> Whole:
        import keras
        from keras import ops

        net.lstm.trainable = net.embedding.trainable = not frozen
        logits, photos = logits_layer(fusion), keras.Input(fusion.model.inputs[0].shape[1:])
        tokens = keras.Input((None,), dtype="int32")
        states = net.lstm(net.embedding(tokens), mask=ops.not_equal(tokens, 0))
        whole = Whole(
            keras.Model([photos, tokens], logits(photos, states)),
            keras.Model([photos, tokens], logits(photos, states[:, -1:])[:, 0]),
        )
        for model in (whole.each, whole.last):
            model.compile(
                keras.optimizers.Adam(learning_rate),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
        return whole

    def fit(
        self, photos: np.ndarray, photo_of: np.ndarray, inputs: np.ndarray, targets: np.ndarray, batch: int
    ) -> None:
        """The competent way: all positions of a caption at once, each batch cut to its longest."""
        import tensorflow as tf

        order = np.random.default_rng(0).permutation(len(inputs))

        def batches() -> Iterator[tuple[Any, ...]]:
            for place in range(0, len(order) - batch + 1, batch):
                yield self._batch(photos, photo_of, inputs, targets, order[place : place + batch])

        # A generator's own shapes would be told from two batches, which may be of one width by chance.
        some = tf.TensorSpec((None, *photos.shape[1:]), photos.dtype)
        tokens, real = tf.TensorSpec((None, None), inputs.dtype), tf.TensorSpec((None, None), tf.float32)
        signature = ((some, tokens), tokens, real)
        self.each.fit(tf.data.Dataset.from_generator(batches, output_signature=signature), verbose=0)

    def fit_prefixes(
        self, photos: np.ndarray, photo_of: np.ndarray, captions: Sequence[np.ndarray], width: int
    ) -> None:
        """The tutorials' way: for each photograph all beginnings of its captions, and the word after each."""
        from keras.utils import pad_sequences

        def one_photo_a_batch() -> Iterator[tuple[Any, ...]]:
            while True:
                for photo in np.unique(photo_of):
                    features, beginnings, nexts = [], [], []
                    for caption in (captions[i] for i in np.flatnonzero(photo_of == photo)):
                        sequence = [START, *caption, END]
                        for i in range(1, len(sequence)):
                            features.append(photos[photo])
                            beginnings.append(pad_sequences([sequence[:i]], maxlen=width, padding="post")[0])
                            nexts.append(sequence[i])
                    yield (np.array(features), np.array(beginnings)), np.array(nexts)

        self.last.fit(one_photo_a_batch(), steps_per_epoch=len(np.unique(photo_of)), verbose=0)

    def loss(
        self, photos: np.ndarray, photo_of: np.ndarray, inputs: np.ndarray, targets: np.ndarray
    ) -> float:
        """Mean of -ln p a token."""
        total = 0.0
        for place in range(0, len(inputs), 50):
            rows = np.arange(place, min(place + 50, len(inputs)))
            (some, tokens), wanted, real = self._batch(photos, photo_of, inputs, targets, rows)
            logits = self.each.predict_on_batch([some, tokens]).astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            told = np.take_along_axis(logits, wanted[..., None], -1)[..., 0]
            total += ((np.log(np.exp(logits).sum(-1)) - told) * real).sum()
        return float(total / (targets > 0).sum())

    def _batch(self, photos, photo_of, inputs, targets, rows) -> tuple[Any, ...]:
        width = int((targets[rows] > 0).sum(1).max())
        wanted = targets[rows, :width]
        return (photos[photo_of[rows]], inputs[rows, :width]), wanted, (wanted > 0).astype(np.float32)


# -- features → captions --------------------------------------------------------------------------


def next_word_model(fusion: Fusion, net: LanguageModel) -> keras.Model:
    """Photographs and the words so far, padded -> how likely each word is next, as the tutorials have it."""
    import keras
    from keras import ops

    logits, photos = logits_layer(fusion), keras.Input(fusion.model.inputs[0].shape[1:])
    tokens = keras.Input((None,), dtype="int32")
    states = net.lstm(net.embedding(tokens), mask=ops.not_equal(tokens, 0))
    return keras.Model([photos, tokens], ops.softmax(logits(photos, states[:, -1:])[:, 0]))


def greedy_captions(
    model: keras.Model, photos: np.ndarray, longest: int, start: int, end: int
) -> list[list[int]]:
    """The tutorials' loop: one photograph, one word, one call of `predict` at a time."""
    from keras.utils import pad_sequences

    captions = []
    for photo in photos:
        caption = [start]
        for _ in range(longest):
            padded = pad_sequences([caption], maxlen=longest + 1, padding="post")
            caption.append(int(np.argmax(model.predict([photo[None], padded], verbose=0)[0])))
            if caption[-1] == end:
                break
        captions.append(caption)
    return captions


def one_step_model(fusion: Fusion, net: LanguageModel) -> keras.Model:
    """Photographs, last words, states and cells -> log-probabilities of the next words, states, cells."""
    import keras
    from keras import ops

    size = net.lstm.units
    logits, photos = logits_layer(fusion), keras.Input(fusion.model.inputs[0].shape[1:])
    words = keras.Input((), dtype="int32")
    before = [keras.Input((size,)), keras.Input((size,))]
    _, (state, cell) = net.lstm.cell(net.embedding(words), before)
    predicted = ops.log_softmax(logits(photos, ops.expand_dims(state, 1))[:, 0])
    return keras.Model([photos, words, *before], [predicted, state, cell])


def stepped_captions(
    model: keras.Model, photos: np.ndarray, beam: int, longest: int, start: int, end: int, batch: int = 64
) -> list[list[int]]:
    """Beam search for a batch of photographs: a call of the model a word, the choosing in NumPy."""
    captions: list[list[int]] = []
    for place in range(0, len(photos), batch):
        some = photos[place : place + batch]
        rows = len(some)
        repeated = np.repeat(some, beam, 0)
        size = model.inputs[2].shape[-1]
        state = cell = np.zeros((rows * beam, size), np.float32)
        said = np.full((rows, beam, 1), start, np.int32)
        total = np.tile([0.0] + [-1e30] * (beam - 1), (rows, 1))
        for _ in range(longest + 1):
            last = said[:, :, -1]
            gained, state, cell = model.predict_on_batch([repeated, last.reshape(-1), state, cell])
            gained = gained.reshape(rows, beam, -1).astype(np.float64)
            gained[:, :, :end] = gained[:, :, end + 1] = -1e30  # <pad>, <start>, <unk>
            ended = last == end
            gained[ended] = -1e30
            gained[ended, end] = 0.0
            ranks = (total[..., None] + gained).reshape(rows, -1)
            best = np.argpartition(-ranks, beam, axis=1)[:, :beam]
            total = np.take_along_axis(ranks, best, 1)
            parent, word = best // gained.shape[-1], best % gained.shape[-1]
            said = np.concatenate([np.take_along_axis(said, parent[..., None], 1), word[..., None]], -1)
            flat = (np.arange(rows)[:, None] * beam + parent).reshape(-1)
            state, cell = state[flat], cell[flat]
            if (word == end).all():
                break
        lengths = (said != end).sum(-1)
        captions += [list(row[i]) for row, i in zip(said, np.argmax(total / lengths, 1), strict=True)]
    return captions


# -- nothing to do --------------------------------------------------------------------------------


def dvc_command(environment: Path) -> Path:
    """The `dvc` of a virtual environment of its own, made where there is none. Raises Skipped."""
    command = environment / "bin" / "dvc"
    if command.exists():
        return command
    try:
        subprocess.run([sys.executable, "-m", "venv", environment], check=True, capture_output=True)
        install = [environment / "bin" / "pip", "install", "--quiet", "dvc"]
        subprocess.run(install, check=True, capture_output=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(environment, ignore_errors=True)
        raise Skipped(f"dvc cannot be installed here: {error}") from None
    return command


DVC_YAML = """
stages:
  images:
    cmd: cp {photos}/Flickr8k.token.txt images.out
    deps: [{photos}/images]
    outs: [images.out]
  captions:
    cmd: cp {photos}/Flickr8k.token.txt captions.out
    deps: [{photos}/Flickr8k.token.txt]
    outs: [captions.out]
  model:
    cmd: cat images.out captions.out > model.out
    deps: [images.out, captions.out]
    outs: [model.out]
"""


def dvc_project(dvc: Path, dataset: Path, project: Path) -> Path:
    """Three stages over a copy of the data set, made once."""
    shutil.copytree(dataset, project / "data")
    (project / "dvc.yaml").write_text(DVC_YAML.format(photos="data"), encoding="utf-8")
    _in(project, dvc, "init", "--no-scm", "--quiet")
    _in(project, dvc, "repro", "--quiet")
    return project


def dvc_repro(dvc: Path, project: Path) -> None:
    _in(project, dvc, "repro")


def _in(project: Path, *command: str | Path) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run(list(map(str, command)), cwd=project, check=True, capture_output=True, env=environment)
