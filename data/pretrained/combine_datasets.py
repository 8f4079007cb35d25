"""Combine Flickr8k, COCO and captions of missing photographs into the pretrained model's data set.

    python data/pretrained/combine_datasets.py SOURCE TARGET

SOURCE holds the folders `flickr8k-full`, `coco-2k`, `coco-mini` and `text`; README.md in this folder has
more about them. TARGET becomes a data set in the layout of Karpathy's splits: `dataset_everyday.json`, and
copies of the photographs. Splits: one in seven of COCO's photographs, by a hash of its number, is `test`, 200
photographs of Flickr8k's dev list are `val`, the rest is `train`. The other dev photographs and `coco-mini`
are left out. No caption of a photograph that is held out or left out is taken from the text.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

DEV_PHOTOGRAPHS = 200


def coco_number(name: str) -> int:
    """The number of a COCO photograph from its file name: `COCO_val2014_000000000042.jpg` → 42."""
    return int(re.findall(r"\d+", Path(name).stem)[-1])


def is_held_out(number: int) -> bool:
    """Whether a photograph of COCO is in the test split: one in seven, whatever else is in the data set."""
    return int.from_bytes(hashlib.blake2b(str(number).encode(), digest_size=4).digest(), "big") % 7 == 0


def read_text(path: Path) -> Iterator[tuple[str, str]]:
    """File name and caption of each line of a gzipped table."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield row[0], row[1]


def copied(photo: Path, images: Path, split: str, sentences: list[dict]) -> dict:
    """The entry of a photograph, which is copied into the folder `images`."""
    shutil.copy(photo, images)
    return {"filename": photo.name, "filepath": images.name, "split": split, "sentences": sentences}


def flickr8k(source: Path, images: Path) -> Iterator[dict]:
    """Entries of Flickr8k: the train list, and DEV_PHOTOGRAPHS of the dev list."""
    sentences = defaultdict(list)
    for line in (source / "Flickr8k.token.txt").read_text().splitlines():
        place, _, text = line.partition("\t")
        sentences[place.partition("#")[0]].append({"raw": text})
    dev = sorted((source / "Flickr_8k.devImages.txt").read_text().split())
    train = (source / "Flickr_8k.trainImages.txt").read_text().split()
    for split, names in (("val", dev[:: len(dev) // DEV_PHOTOGRAPHS][:DEV_PHOTOGRAPHS]), ("train", train)):
        for name in names:
            if (source / "images" / name).is_file():
                yield copied(source / "images" / name, images, split, sentences[name])


def coco(source: Path, images: Path) -> Iterator[dict]:
    """Entries of COCO's photographs."""
    told = json.loads((source / "annotations" / "captions_train.json").read_text())
    sentences = defaultdict(list)
    for note in told["annotations"]:
        sentences[note["image_id"]].append({"raw": note["caption"]})
    for image in told["images"]:
        name = image["file_name"]
        if (source / "images" / name).is_file():
            split = "test" if is_held_out(coco_number(name)) else "train"
            yield copied(source / "images" / name, images, split, sentences[image["id"]])


def text_only(source: Path) -> Iterator[dict]:
    """Entries of captions whose photographs are missing."""
    own = {
        coco_number(path.name) for part in ("coco-2k", "coco-mini") for path in (source / part).rglob("*.jpg")
    }
    sentences = defaultdict(list)
    for name, text in read_text(source / "text" / "coco_captions.tsv.gz"):
        if coco_number(name) not in own:
            sentences[name].append({"raw": text})
    for name, found in sentences.items():
        yield {"filename": name, "filepath": "missing", "split": "train", "sentences": found}


def main(source: Path, target: Path) -> None:
    images = target / "images"
    images.mkdir(parents=True)
    entries = [*flickr8k(source / "flickr8k-full", images), *coco(source / "coco-2k", images)]
    entries += text_only(source)
    (target / "dataset_everyday.json").write_text(json.dumps({"images": entries}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
