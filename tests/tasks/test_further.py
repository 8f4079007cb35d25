"""Further captions: read as text from whatever holds them, and never an answer to what is held out."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import UnknownDataset, UsageError
from schemas.settings import FurtherSettings
from schemas.tables import check
from tasks.further import Further, read_further
from tasks.ingest import caption_id
from tests.tasks.datasets import photo, put

COCO = {
    "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
    "annotations": [
        {"image_id": 1, "caption": "A dog on a beach. "},
        {"image_id": 1, "caption": "A dog runs"},
        {"image_id": 2, "caption": "A cat sleeps."},
    ],
}


def further(path: Path, held_out: tuple[str, ...] = (), **settings: Any) -> Further:
    """Read, with both tables held to their schemas."""
    packs = path.parent / "packs"
    found = read_further(
        FurtherSettings(captions=str(path), **settings), held_out, packs, lambda captions: None
    )
    check(found.captions, "captions")
    check(found.rejects, "rejects")
    assert found.captions["photo_id"].null_count() == found.captions.height
    assert set(found.captions["split"]) <= {"train"}
    return found


def texts(found: Further) -> list[str]:
    return sorted(found.captions["text"])


def rejects(found: Further) -> list[tuple[str, str, str]]:
    return sorted(found.rejects.select("kind", "name", "reason").iter_rows())


def test_captions_of_a_data_set_are_read_and_its_photographs_not_even_missed(tmp_path: Path) -> None:
    folder = put(tmp_path / "coco", **{"captions_val2017.json": json.dumps(COCO)})
    found = further(folder)
    assert texts(found) == ["A cat sleeps.", "A dog on a beach.", "A dog runs"]
    assert rejects(found) == []


def test_one_file_will_do_and_so_will_a_link_to_it(tmp_path: Path) -> None:
    put(tmp_path / "coco", **{"captions_val2017.json": json.dumps(COCO), "captions_other.json": "no JSON"})
    (tmp_path / "link.json").symlink_to(tmp_path / "coco" / "captions_val2017.json")
    assert len(texts(further(tmp_path / "coco" / "captions_val2017.json"))) == 3
    assert len(texts(further(tmp_path / "link.json"))) == 3


def test_lines_of_text_are_captions(tmp_path: Path) -> None:
    folder = put(tmp_path / "texts", **{"one.txt": "A dog .\n\n  A cat .\r\n", "deep/two.txt": "A bird"})
    assert texts(further(folder)) == ["A bird", "A cat .", "A dog ."]
    assert texts(further(folder / "one.txt")) == ["A cat .", "A dog ."]


def test_texts_beside_photographs_are_read_as_the_layout_has_it(tmp_path: Path) -> None:
    folder = put(tmp_path / "data", **{"a.jpg": photo(), "a.txt": "A dog", "b.txt": "A cat"})
    assert texts(further(folder)) == ["A cat", "A dog"]
    with pytest.raises(UnknownDataset, match=r"do not fit further\.layout=coco"):
        further(folder, layout="coco")


def test_whatever_split_they_are_of_there_all_of_them_teach(tmp_path: Path) -> None:
    records = [
        {"file_name": f"{split}.jpg", "text": f"A dog for {split}", "split": split}
        for split in ("train", "dev", "test")
    ]
    folder = put(tmp_path / "data", **{"metadata.jsonl": "\n".join(map(json.dumps, records))})
    assert texts(further(folder)) == ["A dog for dev", "A dog for test", "A dog for train"]


def test_a_caption_that_is_held_out_is_left_out_however_it_is_punctuated_and_told_of(tmp_path: Path) -> None:
    folder = put(tmp_path / "texts", **{"a.txt": "A dog .\nTwo dogs, running\nA dog\nA dog runs\n"})
    found = further(folder, held_out=("a DOG", "Two dogs running ."))
    assert texts(found) == ["A dog runs"]
    assert rejects(found) == [
        ("caption", "a.txt:1", "leak"),
        ("caption", "a.txt:2", "leak"),
        ("caption", "a.txt:3", "leak"),
    ]
    assert found.rejects["detail"][1] == "the words of a caption that is held out: 'Two dogs, running'"


def test_what_is_said_twice_counts_twice_and_is_no_caption_of_the_data_set(tmp_path: Path) -> None:
    folder = put(tmp_path / "texts", **{"a.txt": "A dog\nA dog\nA cat\n"})
    found = further(folder)
    assert Counter(found.captions["text"]) == {"A dog": 2, "A cat": 1}
    assert found.captions["caption_id"].n_unique() == 3
    assert caption_id(None, "A dog", 0) not in set(found.captions["caption_id"])
    assert found.captions["caption_id"].is_sorted()


def test_what_is_wrong_costs_itself_only(tmp_path: Path) -> None:
    lines = b"A dog\n...\n" + b"word " * 101 + b"\nA \xff dog\nA \0 dog\nA cat\n"
    found = further(put(tmp_path / "texts", **{"a.txt": lines, "table.csv": "x,y\n"}))
    assert texts(found) == ["A cat", "A dog"]
    assert rejects(found) == [
        ("caption", "a.txt:2", "empty_caption"),
        ("caption", "a.txt:3", "caption_too_long"),
        ("caption", "a.txt:4", "caption_not_utf8"),
        ("caption", "a.txt:5", "malformed"),
    ]
    assert set(found.rejects["stage"]) == {"further"}
    assert texts(further(tmp_path / "texts", max_caption_words=101))[-1].startswith("word word")


def test_of_photographs_in_parquet_no_byte_is_copied(tmp_path: Path) -> None:
    rows = [{"image": photo(seed, side=64), "caption": f"A dog, number {seed}"} for seed in range(4)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    found = further(put(tmp_path / "data", **{"train.parquet": buffer.getvalue()}))
    assert texts(found) == [f"A dog, number {seed}" for seed in range(4)]
    assert rejects(found) == []
    written = sum(path.stat().st_size for path in (tmp_path / "packs").rglob("*"))
    assert written < len(rows[0]["image"])


def test_nothing_to_read_is_said_with_the_setting_that_asked_for_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"further\.captions: expected a folder or a file .* found nothing"):
        further(tmp_path / "nowhere")
    with pytest.raises(UnknownDataset, match=r"further\.captions: '.*' holds no caption"):
        further(put(tmp_path / "blank", **{"a.txt": "\n\n"}))
    with pytest.raises(UnknownDataset, match="no layout fits"):
        further(put(tmp_path / "other", **{"a.pdf": "A dog"}))


@pytest.mark.real_data
def test_cocos_captions_are_all_there(real_data: Path) -> None:
    file = real_data / "data" / "coco-captions" / "captions_val2017.json"
    told = Counter(note["caption"].strip() for note in json.loads(file.read_text())["annotations"])
    found = further(file)
    assert Counter(found.captions["text"]) == told
    assert found.captions.height == 24_219
    assert found.rejects.filter(pl.col("kind") == "photo").is_empty()
