"""Karpathy's file has splits, folders and sentences."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.datasets import photo, put, read


def test_karpathys_splits_and_sentences(root: Path) -> None:
    def image(name: str, split: str, *raws: str, **more: object) -> dict[str, object]:
        return {
            "filename": name,
            "split": split,
            "sentences": [{"raw": raw, "tokens": []} for raw in raws],
            **more,
        }

    images = [
        image("a.jpg", "train", "One", "Two", imgid=7),
        image("b.jpg", "restval", "Three", imgid=8, cocoid=391895, filepath="val2014"),
        image("c.jpg", "val", "Four"),
        image("gone.jpg", "test", "Five"),
        image("d.jpg", "elsewhere", "Six"),
        "nonsense",
        {"filename": "e.jpg", "split": "test", "sentences": [{"tokens": ["Seven", "dogs"]}, {"raw": 8}, 9]},
    ]
    put(root, **{f"img/{name}.jpg": photo(i) for i, name in enumerate("ace")})
    put(root, **{"img/val2014/b.jpg": photo(7), "thumbs/b.jpg": photo(8)})
    put(root, **{"dataset_mine.json": json.dumps({"images": images})})
    found = read(root)
    assert found.captions == {
        "img/a.jpg": ["One", "Two"],
        "img/val2014/b.jpg": ["Three"],
        "img/c.jpg": ["Four"],
        "img/e.jpg": ["Seven dogs"],
        None: ["Five"],
    }
    assert found.missing == {"gone.jpg": ["Five"]}
    assert found.splits["img/val2014/b.jpg"] == {"train"}
    assert found.splits["img/c.jpg"] == {"dev"}
    assert found.splits[None] == {"test"}
    assert found.source_ids == {"img/a.jpg": "7", "img/val2014/b.jpg": "391895"}
    assert found.reasons == [
        ("dataset_mine.json: images[4]", "malformed"),
        ("dataset_mine.json: images[5]", "malformed"),
        ("dataset_mine.json: images[6] [1]", "malformed"),
        ("dataset_mine.json: images[6] [2]", "malformed"),
        ("gone.jpg", "missing_photo"),
    ]
