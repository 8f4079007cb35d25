"""COCO's files have captions by the id of an image; a malformed entry costs only itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.datasets import photo, put, read


def coco(names: dict[int, str], captions: list[tuple[int, str]]) -> str:
    images = [{"id": id_, "file_name": name} for id_, name in names.items()]
    annotations = [{"id": i, "image_id": id_, "caption": text} for i, (id_, text) in enumerate(captions)]
    return json.dumps({"images": images, "annotations": annotations})


def test_coco_files_tell_their_splits_and_photographs_of_one_name_by_their_folders(root: Path) -> None:
    put(root, **{"images/train2017/1.jpg": photo(1), "images/val2017/1.jpg": photo(2)})
    put(root, **{"annotations/captions_train2017.json": coco({5: "1.jpg"}, [(5, "One"), (5, "Two")])})
    put(root, **{"annotations/captions_val2017.json": coco({6: "1.jpg"}, [(6, "Three")])})
    found = read(root)
    train, val = "images/train2017/1.jpg", "images/val2017/1.jpg"
    assert found.captions == {train: ["One", "Two"], val: ["Three"]}
    assert found.splits == {train: {"train"}, val: {"dev"}}
    assert found.source_ids == {train: "5", val: "6"}


def test_coco_entries_that_are_not_as_they_should_be(root: Path) -> None:
    data = json.loads(coco({1: "a.jpg", 2: "gone.jpg"}, [(1, "One"), (2, "Two"), (2, "Three"), (9, "Four")]))
    data["images"] += [{"id": 1, "file_name": "a.jpg"}, {"id": 3}, None]
    data["annotations"] += [{"image_id": 1}, {"image_id": [1], "caption": "x"}, 5]
    put(root, **{"a.jpg": photo(), "captions_all.json": json.dumps(data)})
    found = read(root)
    assert found.captions == {"a.jpg": ["One"], None: ["Two", "Three", "Four"]}
    assert found.missing == {"gone.jpg": ["Two", "Three"], "captions_all.json: image 9": ["Four"]}
    malformed = [f"images[{i}]" for i in (2, 3, 4)] + [f"annotations[{i}]" for i in (4, 5, 6)]
    assert found.reasons == sorted(
        [(f"captions_all.json: {place}", "malformed") for place in malformed]
        + [("gone.jpg", "missing_photo"), ("captions_all.json: image 9", "missing_photo")]
    )


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"images": []}', "\ufeff", "NaN"])
def test_a_broken_annotation_file_costs_itself_only(root: Path, content: str) -> None:
    put(
        root,
        **{"captions_a.json": content, "captions_b.json": coco({1: "a.jpg"}, [(1, "One")]), "a.jpg": photo()},
    )
    found = read(root)
    assert found.reasons == [("captions_a.json", "malformed")]
    assert found.captions == {"a.jpg": ["One"]}


def test_one_caption_of_a_json_file_that_is_not_utf8_leaves_the_others_whole(root: Path) -> None:
    content = coco({1: "a.jpg"}, [(1, "caf?"), (1, "One")]).encode().replace(b"caf?", b"caf\xe9")
    put(root, **{"captions_a.json": content, "a.jpg": photo()})
    assert read(root).captions == {"a.jpg": ["caf\udce9", "One"]}


def test_an_image_id_of_true_is_not_that_of_image_1(root: Path) -> None:
    images, one = [{"id": 1, "file_name": "a.jpg"}], {"image_id": True, "caption": "One"}
    put(root, **{"a.jpg": photo(), "captions_x.json": json.dumps({"images": images, "annotations": [one]})})
    assert read(root).reasons == [("captions_x.json: annotations[0]", "malformed")]
