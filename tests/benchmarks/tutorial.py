"""A captioning script as tutorials have it, from photographs to scores, on a data set in Flickr8k's form.

    python -m tests.benchmarks.tutorial FOLDER [--epochs 20] [--share 1]

Prints the CPU seconds of its parts and its scores as JSON. With a share below 1 it takes only that
part of the photographs in each split and tells the seconds of the whole as if it had taken all; its
scores then say nothing. Tutorials take the 4,096 numbers of VGG-16's layer before the last; here they
are the 512 of its convolutions, as weights of the layers after them are not shipped.
"""

from __future__ import annotations

import argparse
import json
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SCORES = ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr")
Descriptions = dict[str, list[str]]


def load_descriptions(path: Path) -> Descriptions:
    """The captions of each photograph: lower case, words of letters alone and of more than one."""
    table = str.maketrans("", "", string.punctuation)
    descriptions: Descriptions = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, text = line.partition("\t")
        words = [word.translate(table) for word in text.lower().split()]
        words = [word for word in words if len(word) > 1 and word.isalpha()]
        descriptions.setdefault(name.split("#")[0], []).append(f"startseq {' '.join(words)} endseq")
    return descriptions


def extract_features(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """One photograph after the other through VGG-16."""
    from keras.applications.vgg16 import preprocess_input
    from keras.utils import img_to_array, load_img

    from tests.benchmarks.photos import vgg16

    model, features = vgg16(), {}
    for name in names:
        image = img_to_array(load_img(folder / name, target_size=(224, 224)))
        image = preprocess_input(image.reshape((1, *image.shape)))
        features[name] = model.predict(image, verbose=0).mean(axis=(1, 2))[0]
    return features


def define_model(vocabulary_size: int, max_length: int, channels: int) -> Any:
    from keras import Input, Model
    from keras.layers import LSTM, Dense, Dropout, Embedding, add

    inputs1 = Input(shape=(channels,))
    fe1 = Dropout(0.5)(inputs1)
    fe2 = Dense(256, activation="relu")(fe1)
    inputs2 = Input(shape=(max_length,))
    se1 = Embedding(vocabulary_size, 256, mask_zero=True)(inputs2)
    se2 = Dropout(0.5)(se1)
    se3 = LSTM(256)(se2)
    decoder1 = add([fe2, se3])
    decoder2 = Dense(256, activation="relu")(decoder1)
    outputs = Dense(vocabulary_size, activation="softmax")(decoder2)
    model = Model(inputs=[inputs1, inputs2], outputs=outputs)
    model.compile(loss="categorical_crossentropy", optimizer="adam")
    return model


def data_generator(
    descriptions: Descriptions, features: dict[str, np.ndarray], ids: dict[str, int], max_length: int
) -> Iterator[tuple[Any, Any]]:
    """All beginnings of a photograph's captions, and the word after each, one photograph at a time."""
    from keras.utils import pad_sequences, to_categorical

    while True:
        for name, captions in descriptions.items():
            x1, x2, y = [], [], []
            for caption in captions:
                sequence = [ids[word] for word in caption.split() if word in ids]
                for i in range(1, len(sequence)):
                    x1.append(features[name])
                    x2.append(pad_sequences([sequence[:i]], maxlen=max_length)[0])
                    y.append(to_categorical([sequence[i]], num_classes=len(ids) + 1)[0])
            yield (np.array(x1), np.array(x2)), np.array(y)


def generate_description(
    model: Any, words: dict[int, str], ids: dict[str, int], feature: np.ndarray, max_length: int
) -> str:
    from keras.utils import pad_sequences

    text = "startseq"
    for _ in range(max_length):
        sequence = pad_sequences([[ids[word] for word in text.split()]], maxlen=max_length)
        word = words.get(int(np.argmax(model.predict([feature[None], sequence], verbose=0))))
        if word is None:
            break
        text += " " + word
        if word == "endseq":
            break
    return text.removeprefix("startseq").removesuffix("endseq").strip()


def main() -> None:
    from cutline.tasks.evaluation.caption_metrics import score

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--share", type=float, default=1.0)
    arguments = parser.parse_args()
    folder, epochs, share = arguments.folder, arguments.epochs, arguments.share
    descriptions = load_descriptions(folder / "Flickr8k.token.txt")
    splits = {}
    for split in ("train", "dev", "test"):
        names = (folder / f"Flickr_8k.{split}Images.txt").read_text(encoding="utf-8").split()
        names = [name for name in names if name in descriptions and (folder / "images" / name).exists()]
        splits[split] = names[: max(1, round(share * len(names)))]
    seconds, begun = {}, time.process_time()

    def lap(part: str, times: float = 1.0) -> None:
        nonlocal begun
        seconds[part] = (time.process_time() - begun) * times / share
        begun = time.process_time()

    features = extract_features(folder / "images", [name for names in splits.values() for name in names])
    lap("features")
    train = {name: descriptions[name] for name in splits["train"]}
    ids: dict[str, int] = {}
    for caption in (caption for captions in descriptions.values() for caption in captions):
        for word in caption.split():  # of all captions, as most of them do
            ids.setdefault(word, len(ids) + 1)
    max_length = max(len(caption.split()) for captions in train.values() for caption in captions)
    model = define_model(len(ids) + 1, max_length, len(features[splits["train"][0]]))
    model.fit(data_generator(train, features, ids, max_length), steps_per_epoch=1, verbose=0)
    begun = time.process_time()  # the compilation is not multiplied by the share
    done = epochs if share == 1 else 1
    generator = data_generator(train, features, ids, max_length)
    model.fit(generator, epochs=done, steps_per_epoch=len(train), verbose=0)
    lap(f"training, {epochs} epochs", epochs / done)
    words = {number: word for word, number in ids.items()}
    said = {n: generate_description(model, words, ids, features[n], max_length) for n in splits["test"]}
    lap("captions")
    references = {n: [c[len("startseq ") : -len(" endseq")] for c in descriptions[n]] for n in said}
    plain = raw_captions(folder / "Flickr8k.token.txt")
    report = {
        "seconds": {part: round(value, 1) for part, value in seconds.items()},
        "scores": {k: v for k, v in score(said, {n: plain[n] for n in said}).items() if k in SCORES},
        "scores on captions as it cleans them": {
            k: v for k, v in score(said, references).items() if k in SCORES
        },
        "share": share,
    }
    print(json.dumps(report))


def raw_captions(path: Path) -> Descriptions:
    """The captions as people wrote them: what everybody is scored on."""
    captions: Descriptions = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, text = line.partition("\t")
        captions.setdefault(name.split("#")[0], []).append(text)
    return captions


if __name__ == "__main__":
    main()
