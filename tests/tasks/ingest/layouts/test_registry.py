"""Each layout is known by its files, and what fits none is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutline.flows.pipeline.settings import make_settings
from cutline.schemas.errors import UnknownDataset, UsageError
from cutline.tasks.ingest.files import Files, scan
from cutline.tasks.ingest.layouts import registry
from cutline.tasks.ingest.layouts.base import Item, Layout, Source, entries_of
from tests.support.datasets import photo, put, read


@pytest.mark.parametrize(
    ("layout", "name", "content"),
    [
        ("flickr8k", "text/Flickr8k.token.txt", "a.jpg#0\tA dog .\n"),
        ("karpathy", "dataset_flickr8k.json", '{"images": [{"sentences": []}]}'),
        ("coco", "annotations/captions_val2017.json", '{"images": [], "annotations": []}'),
        ("kaggle", "captions.txt", "image,caption\n"),
        ("kaggle", "results.csv", "image_name| comment_number| comment\n"),
        ("imagefolder", "train/metadata.jsonl", "{}\n"),
        ("imagefolder", "metadata.csv", "file_name,text\n"),
        ("webdataset", "shards/00000.tar", b"\0" * 1024),
        ("folder", "notes.txt", "nothing of a layout"),
    ],
)
def test_a_layout_is_known_by_its_files(root: Path, layout: str, name: str, content: bytes | str) -> None:
    put(root, **{"images/a.JPG": photo(), name: content})
    assert read(root).layout == layout


def test_where_several_layouts_fit_the_most_specific_is_taken_and_the_others_are_told(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "captions.txt": "image,caption\na.jpg,One\n", "x.tar": b"\0" * 1024})
    put(root, **{"captions_all.json": '{"images": [], "annotations": []}'})
    found = read(root)
    assert found.layout == "coco"
    assert found.reasons == [("captions.txt", "not_read"), ("x.tar", "not_read")]
    assert "ingest.layout=kaggle" in found.problems[0].detail
    assert read(root, "kaggle").captions == {"a.jpg": ["One"]}


def test_a_data_set_info_of_hugging_face_is_not_karpathys_file(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "dataset_info.json": '{"features": {}}', "dataset_dict.json": "{}"})
    assert read(root).layout == "folder"


def test_captions_beside_a_photograph_called_captions_are_no_table(root: Path) -> None:
    put(root, **{"captions.jpg": photo(), "captions.txt": "Two dogs on a beach, running"})
    found = read(root)
    assert (found.layout, found.captions) == ("folder", {"captions.jpg": ["Two dogs on a beach, running"]})


def test_where_nothing_fits_the_error_says_what_was_looked_for_and_found(root: Path) -> None:
    put(root, **{"a.doc": b"x", "b.doc": b"y", "README": b"z"})
    with pytest.raises(UnknownDataset, match=r"(?s)Flickr8k\.token\.txt.*\*\.tar.*found 3 files: 2 × \.doc"):
        read(root)
    with pytest.raises(UnknownDataset, match="found nothing at"):
        scan(root / "missing")
    with pytest.raises(UnknownDataset, match="found a file at"):
        scan(root / "a.doc")


def test_another_layout_than_asked_for_is_refused(root: Path) -> None:
    put(root, **{"a.jpg": photo()})
    with pytest.raises(UnknownDataset, match=r"(?s)ingest\.layout=coco.*captions_\*\.json.*1 × \.jpg"):
        read(root, "coco")


OUTSIDE = "../secret.jpg"
NAMING = {
    "flickr8k": ("Flickr8k.token.txt", f"{OUTSIDE}#0\tOne\na.jpg#0\tTwo\n"),
    "karpathy": (
        "dataset_x.json",
        json.dumps(
            {
                "images": [
                    {"filename": name, "split": "train", "sentences": [{"raw": text}]}
                    for name, text in ((OUTSIDE, "One"), ("a.jpg", "Two"))
                ]
            }
        ),
    ),
    "coco": (
        "captions_x.json",
        json.dumps(
            {
                "images": [{"id": 1, "file_name": OUTSIDE}, {"id": 2, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 1, "caption": "One"}, {"image_id": 2, "caption": "Two"}],
            }
        ),
    ),
    "kaggle": ("captions.txt", f"image,caption\n{OUTSIDE},One\na.jpg,Two\n"),
    "imagefolder": ("metadata.csv", f"file_name,text\n{OUTSIDE},One\na.jpg,Two\n"),
}


@pytest.mark.parametrize("layout", NAMING)
def test_in_no_layout_does_a_name_lead_out_of_the_data_set(root: Path, layout: str) -> None:
    put(root.parent, **{"secret.jpg": photo(9)})
    name, content = NAMING[layout]
    found = read(put(root, **{"a.jpg": photo(), name: content}))
    assert (found.layout, list(found.photos)) == (layout, ["a.jpg"])
    assert found.captions.items() >= {None: ["One"], "a.jpg": ["Two"]}.items()
    assert found.reasons == [(OUTSIDE, "outside_dataset")]


def test_texts_that_nothing_was_read_from_are_told_by_folder_and_ending(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "captions_all.json": '{"images": [], "annotations": []}'})
    put(root, **{f"labels/{number}.txt": "0 .5 .5 1 1" for number in range(3)} | {"list.csv": "a;b"})
    found = read(root)
    assert found.reasons == [("labels/*.txt", "not_read"), ("list.csv", "not_read")]
    assert "3 such files; the data set is read as coco" in found.problems[0].detail


def _matches_toy(files: Files, path: str) -> bool:
    return path.endswith(".toy")


def _read_toy(source: Source) -> Iterator[Item]:
    """`name = caption` per line."""
    for path in source.markers:
        for line in source.files.read_text(path).splitlines():
            name, _, caption = line.partition(" = ")
            yield from entries_of(source, name, [(path, caption)], "test")


TOY = Layout("toy", "*.toy", _matches_toy, _read_toy)


def test_a_new_layout_is_one_object_in_the_registry(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LAYOUTS", (TOY, *registry.LAYOUTS))
    put(root, **{"a.jpg": photo(), "notes.toy": "a.jpg = A dog\ngone.jpg = A cat\n"})
    found = read(root)
    assert found.layout == "toy"
    assert found.captions == {"a.jpg": ["A dog"], None: ["A cat"]}
    assert found.splits == {"a.jpg": {"test"}, None: {"test"}}
    assert found.reasons == [("gone.jpg", "missing_photo")]
    assert read(root, "toy").captions == found.captions
    assert read(root, "folder").captions == {"a.jpg": []}  # where the setting says another one
    assert make_settings({"ingest": {"layout": "toy"}}).ingest.layout == "toy"
    (root / "notes.toy").unlink()
    with pytest.raises(UnknownDataset, match=r"ingest\.layout=toy; looked for:\n  toy: \*\.toy"):
        read(root, "toy")


def test_a_layout_that_does_not_exist_is_refused_with_those_that_do(root: Path) -> None:
    put(root, **{"a.jpg": photo()})
    expected = r"ingest\.layout: expected one of auto, flickr8k, .*, folder; found 'cocoa'"
    with pytest.raises(UsageError, match=expected):
        read(root, "cocoa")
    with pytest.raises(UsageError, match=expected):
        make_settings({"ingest": {"layout": "cocoa"}})
