"""Any folder becomes the same four tables, and whatever is wrong with it costs one reject each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.schemas.errors import BadCaption, BadPhoto, UnknownDataset
from cutline.schemas.settings import IngestSettings
from cutline.schemas.tables import REASONS, check
from cutline.tasks.images.files import read_bytes, read_file
from cutline.tasks.ingest.collector import clean_caption
from cutline.tasks.ingest.files import scan
from cutline.tasks.ingest.ingest import Ingested, caption_id, ingest, listing_digest
from cutline.tasks.ingest.splits import draw_split
from cutline.tasks.report.caption_export import captioned
from tests.support.datasets import an_id, photo, put

TABLES = ("photos", "captions", "files", "rejects")


def id_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def run(root: Path, known: pl.DataFrame | None = None, advance: Any = None, **settings: Any) -> Ingested:
    """Ingest, with every table held to its schema."""
    found = ingest(
        root, IngestSettings(**settings), root.parent / "packs", known, advance or (lambda rows: None)
    )
    for table in TABLES:
        check(getattr(found, table), table)
    return found


def assert_same(one: Ingested, other: Ingested) -> None:
    for table in TABLES:
        assert getattr(one, table).equals(getattr(other, table)), table


def reasons(found: Ingested) -> list[tuple[str, str]]:
    return sorted(found.rejects.select("name", "reason").iter_rows())


def splits(found: Ingested) -> dict[str, str]:
    return dict(found.photos.select("path", "split").iter_rows())


def texts(found: Ingested, split: str | None = None) -> list[str]:
    rows = found.captions if split is None else found.captions.filter(pl.col("split") == split)
    return sorted(rows["text"])


def flickr8k(root: Path, lists: dict[str, list[str]], captions: list[tuple[str, str]]) -> Path:
    lines = "".join(f"{name}#{i}\t{text}\n" for i, (name, text) in enumerate(captions))
    put(root, **{"Flickr8k.token.txt": lines})
    return put(root, **{f"Flickr_8k.{split}Images.txt": "\n".join(names) for split, names in lists.items()})


# ---- tables ----


def test_photographs_are_named_by_their_bytes_and_sorted_by_split_then_name(root: Path) -> None:
    data = {f"img/{i}.jpg": photo(i) for i in range(6)}
    put(root, **data)
    names = [f"{i}.jpg" for i in range(5)]  # 5.jpg has no caption, though it is in a list
    flickr8k(
        root,
        {"train": [*names[:2], "5.jpg"], "dev": [names[2]], "test": names[3:]},
        [(name, f"Photograph {name}") for name in names],
    )
    found = run(root)
    assert found.layout == "flickr8k"
    assert dict(found.photos.select("path", "photo_id").iter_rows()) == {
        name: id_of(d) for name, d in data.items()
    }
    order = ["train", "dev", "test", "unlabelled"]
    keys = [(order.index(split), id_) for split, id_ in found.photos.select("split", "photo_id").iter_rows()]
    assert keys == sorted(keys)
    assert [key for key, _ in keys] == [0, 0, 1, 2, 2, 3]
    assert found.photos.row(0, named=True) | {"photo_id": "", "path": "", "size": 0} == {
        "photo_id": "", "path": "", "other_paths": [], "source_id": None, "other_source_ids": [],
        "container": None, "offset": None, "size": 0, "width": 8, "height": 6, "format": "jpeg",
        "split": "train",
    }  # fmt: skip
    assert found.photos["size"].to_list() == [len(data[path]) for path in found.photos["path"]]


def test_captions_with_photographs_come_first_then_by_split_then_by_name(root: Path) -> None:
    put(root, **{f"{name}.jpg": photo(i) for i, name in enumerate("abc")})
    lists = {"train": ["a.jpg", "d.jpg"], "dev": ["b.jpg", "e.jpg"], "test": ["c.jpg", "f.jpg"]}
    captions = [(f"{name}.jpg", f"{name} {word}") for name in "fedcba" for word in ("one", "two")]
    found = run(flickr8k(root, lists, [*captions, ("g.jpg", "g none")]))
    group = [
        (id_ is None, ["train", "dev", "test"].index(split), caption)
        for caption, id_, split in found.captions.select("caption_id", "photo_id", "split").iter_rows()
    ]
    assert group == sorted(group)
    assert texts(found, "train") == ["a one", "a two", "d one", "d two", "g none"]
    assert texts(found, "test") == ["c one", "c two", "f one", "f two"]
    assert found.captions["photo_id"].null_count() == 7
    assert reasons(found) == [(f"{name}.jpg", "missing_photo") for name in "defg"]


def test_captions_tell_which_photograph_they_lack(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "broken.jpg": photo()[:40]})
    captions = [
        (f"{name}.jpg", f"{name} {word}") for name in ("a", "broken", "gone") for word in ("one", "two")
    ]
    found = run(flickr8k(root, {}, captions)).captions
    lacks = dict(found.select("text", "missing_photo").iter_rows())
    assert lacks == {
        "a one": None, "a two": None, "broken one": "broken.jpg", "broken two": "broken.jpg",
        "gone one": "gone.jpg", "gone two": "gone.jpg",
    }  # fmt: skip


def test_equal_captions_of_a_photograph_are_kept_and_told_apart(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "a.txt": "A dog\nA dog\nA cat\n"})
    found = run(root)
    expected = [caption_id(id_of(photo()), *rest) for rest in [("A dog", 0), ("A dog", 1), ("A cat", 0)]]
    assert sorted(found.captions["caption_id"]) == sorted(expected)


def test_the_order_of_lines_changes_no_caption(root: Path) -> None:
    lists = {"train": ["a.jpg"], "dev": ["b.jpg"], "test": ["c.jpg"]}
    captions = [(f"{name}.jpg", "The same") for name in "abcd"]  # of photographs that are all missing
    straight = run(flickr8k(root, lists, captions))
    assert texts(straight, "train") == ["The same"] * 2
    assert run(flickr8k(root, lists, captions[::-1])).captions.equals(straight.captions)


def test_a_captions_name_is_the_digest_of_photograph_text_and_number() -> None:
    by_hand = hashlib.blake2b(b"\0A dog\x000", digest_size=16).hexdigest()
    assert caption_id(None, "A dog", 0) == by_hand
    assert len({caption_id(None, "A", 0), caption_id("f" * 32, "A", 0), caption_id(None, "A", 1)}) == 3


def test_renaming_a_file_changes_no_identity_and_no_split(root: Path) -> None:
    put(root, **{f"{i}.jpg": photo(i) for i in range(8)} | {f"{i}.txt": f"Photograph {i}" for i in range(8)})
    before = run(root)
    for i in range(8):
        for ending in (".jpg", ".txt"):
            (root / f"{i}{ending}").rename(root / f"{(i * 3) % 8}-new{ending}")
    after = run(root)
    assert after.photos.drop("path").equals(before.photos.drop("path"))
    assert after.captions.equals(before.captions)


def test_the_tables_do_not_depend_on_the_order_in_which_files_are_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(
        root,
        **{f"{'xyz'[i % 3]}/{i}.jpg": photo(i % 9) for i in range(12)} | {"x/0.txt": "One", "y/7.txt": "Two"},
    )
    straight, digest = run(root), listing_digest(scan(root))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[Any]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert_same(run(root), straight)
    assert listing_digest(scan(root)) == digest


def test_progress_is_told_for_every_photograph(root: Path) -> None:
    put(root, **{f"{i}.jpg": photo(i) for i in range(5)}, **{"bad.jpg": b""})
    told: list[int] = []
    found = run(root, advance=told.append)
    assert sum(told) == 6
    told.clear()
    run(root, known=found.files, advance=told.append)
    assert sum(told) == 6


def test_a_folder_with_nothing_in_it_is_no_data_set(root: Path) -> None:
    put(root, **{"captions.txt": "image,caption\n"})
    with pytest.raises(UnknownDataset, match=r"captions\.txt.*no photograph and no caption"):
        run(root)


def test_a_folder_of_bad_photographs_only_is_told_of_and_does_not_fail(root: Path) -> None:
    found = run(put(root, **{"a.jpg": b"", "b.png": b"text"}))
    assert (found.photos.height, found.captions.height) == (0, 0)
    assert reasons(found) == [("a.jpg", "empty_file"), ("b.png", "not_an_image")]


# ---- splits ----


def test_without_splits_they_come_from_the_digest_and_stay_when_photographs_are_added(root: Path) -> None:
    put(root, **{f"{i}.jpg": photo(i) for i in range(60)} | {f"{i}.txt": "A dog" for i in range(60)})
    before = run(root, dev_share=0.2, test_share=0.3)
    for path, split in splits(before).items():
        fraction = int(id_of((root / path).read_bytes()), 16) / 2**128
        assert split == ("test" if fraction < 0.3 else "dev" if fraction < 0.5 else "train")
    assert set(splits(before).values()) == {"train", "dev", "test"}
    put(root, **{f"a{i}.jpg": photo(100 + i) for i in range(20)} | {f"a{i}.txt": "A cat" for i in range(20)})
    after = run(root, dev_share=0.2, test_share=0.3)
    assert splits(before).items() <= splits(after).items()


@pytest.mark.parametrize("told", [True, False])
def test_for_a_last_model_dev_and_test_teach_too(root: Path, told: bool) -> None:
    names = [f"{i}.jpg" for i in range(30)]
    put(root, **{name: photo(i) for i, name in enumerate(names)})
    token = "".join(f"{name}#0\tA dog\n" for name in names)
    put(root, **{"Flickr8k.token.txt": token})
    if told:
        for split, some in (("train", names[:20]), ("dev", names[20:25]), ("test", names[25:])):
            put(root, **{f"Flickr_8k.{split}Images.txt": "\n".join(some)})
    assert {"dev", "test"} <= set(splits(run(root, dev_share=0.3, test_share=0.3)).values())
    last = run(root, held_out=False)
    assert set(splits(last).values()) == {"train"}
    assert set(last.captions["split"]) == {"train"}


def test_drawn_splits_have_the_asked_for_shares() -> None:
    ids = [an_id(i) for i in range(4000)]
    drawn = [draw_split(id_, 0.1, 0.2) for id_ in ids]
    assert drawn.count("dev") / 4000 == pytest.approx(0.1, abs=0.02)
    assert drawn.count("test") / 4000 == pytest.approx(0.2, abs=0.02)


def coco(*names: str) -> str:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    return json.dumps(
        {"images": images, "annotations": [{"image_id": i, "caption": "A dog"} for i in range(len(names))]}
    )


def test_one_split_for_everything_is_none(root: Path) -> None:
    names = [f"{i}.jpg" for i in range(40)]
    put(root, **{f"train2017/{name}": photo(i) for i, name in enumerate(names)})
    put(root, **{"annotations/captions_train2017.json": coco(*names)})
    found = run(root)
    assert {
        path: draw_split(id_, 0.1, 0.1) for path, id_ in found.photos.select("path", "photo_id").iter_rows()
    } == (splits(found))
    assert found.photos["source_id"].to_list() == [path[10:-4] for path in found.photos["path"]]


def test_each_file_of_a_photograph_keeps_its_own_number_of_the_data_set(root: Path) -> None:
    names = ["0.jpg", "1.jpg", "2.jpg"]
    put(root, **{f"train2017/{name}": photo(name == "1.jpg") for name in names})
    put(root, **{"annotations/captions_train2017.json": coco(*names)})
    photos = run(root).photos
    said = photos.select("photo_id", caption=pl.lit("a"), score=pl.lit(-1.0, pl.Float32)).with_columns(
        distance=pl.lit(None, pl.Float32), alternatives=pl.concat_list(pl.struct("caption", "score"))
    )
    assert captioned(photos, said).select("path", "source_id").rows() == [
        (f"train2017/{name}", name[0]) for name in names
    ]


def test_several_annotation_files_are_splits_and_nothing_is_added_to_them(root: Path) -> None:
    for split, first in (("train", 0), ("val", 20), ("test", 40)):
        names = [f"{i}.jpg" for i in range(first, first + 20)]
        put(root, **{f"{split}2017/{name}": photo(int(name[:-4])) for name in names})
        put(root, **{f"annotations/captions_{split}2017.json": coco(*names)})
    counts = run(root).photos["split"].value_counts()
    assert dict(counts.iter_rows()) == {"train": 20, "dev": 20, "test": 20}


def test_photographs_in_no_list_are_for_training_where_dev_and_test_are_listed(root: Path) -> None:
    names = [f"{i}.jpg" for i in range(40)]
    put(root, **{name: photo(i) for i, name in enumerate(names)})
    flickr8k(root, {"dev": names[:1], "test": names[1:2]}, [(name, "A dog") for name in names])
    assert splits(run(root)) == {name: ["dev", "test", "train"][min(i, 2)] for i, name in enumerate(names)}


def test_where_only_test_is_listed_it_stays_as_it_is_and_dev_is_drawn(root: Path) -> None:
    names = [f"{i}.jpg" for i in range(60)]
    put(root, **{name: photo(i) for i, name in enumerate(names)})
    flickr8k(root, {"test": names[:3]}, [(name, "A dog") for name in names])
    found = splits(run(root))
    assert [name for name in names if found[name] == "test"] == names[:3]
    assert set(found.values()) == {"train", "dev", "test"}


# ---- duplicates and leaks ----


def test_the_same_file_twice_is_one_photograph_with_the_captions_of_both(root: Path) -> None:
    put(root, **{"b.jpg": photo(), "b.txt": "One\nTwo", "a.jpg": photo(), "a.txt": "Two", "c.JPG": photo()})
    found = run(root)
    assert found.photos.select("path", "other_paths").rows() == [("a.jpg", ["b.jpg", "c.JPG"])]
    assert texts(found) == ["One", "Two", "Two"]
    assert found.captions["photo_id"].to_list() == [id_of(photo())] * 3
    assert reasons(found) == [("b.jpg", "duplicate"), ("c.JPG", "duplicate")]
    assert "'a.jpg'" in found.rejects["detail"][0]


@pytest.mark.parametrize(
    ("one", "other", "kept"), [("train", "test", "test"), ("train", "dev", "dev"), ("dev", "test", "test")]
)
def test_the_same_photograph_in_two_splits_is_a_leak_and_out_of_the_one_nearer_to_training(
    root: Path, one: str, other: str, kept: str
) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(), "c.jpg": photo(1)})
    lists = {one: ["a.jpg"], other: ["b.jpg"]}
    lists.setdefault("train", []).append("c.jpg")
    found = run(flickr8k(root, lists, [("a.jpg", "One"), ("b.jpg", "Two"), ("c.jpg", "Three")]))
    assert splits(found) == {"a.jpg": kept, "c.jpg": "train"}
    assert texts(found, kept) == ["One", "Two"]
    assert texts(found, "train") == ["Three"]
    assert reasons(found) == [("b.jpg", "leak")]


def test_a_photograph_whose_rows_name_one_split_and_another_by_turns_is_one_leak(root: Path) -> None:
    put(root, **{"a.jpg": photo()})
    lines = ["file_name,text,split"]
    lines += [f"a.jpg,A dog number {i},{('train', 'test', 'dev')[i % 3]}" for i in range(9)]
    (root / "metadata.csv").write_text("\n".join(lines))
    found = run(root)
    assert found.rejects.rows() == [
        ("ingest", "photo", "a.jpg", "leak", "named in train and in dev and in test; kept in test")
    ]


def test_a_name_in_two_lists_is_a_leak(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1)})
    lists = {"train": ["a.jpg", "b.jpg"], "test": ["a.jpg"]}
    found = run(flickr8k(root, lists, [("a.jpg", "One"), ("b.jpg", "Two")]))
    assert splits(found) == {"a.jpg": "test", "b.jpg": "train"}
    assert reasons(found) == [("a.jpg", "leak")]


def test_a_held_out_photograph_without_captions_keeps_its_copy_out_of_training(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(), "c.jpg": photo(1)})
    found = run(
        flickr8k(root, {"train": ["a.jpg", "c.jpg"], "test": ["b.jpg"]}, [("a.jpg", "One"), ("c.jpg", "Two")])
    )
    assert splits(found) == {"a.jpg": "test", "c.jpg": "train"}
    assert reasons(found) == [("b.jpg", "leak")]


# ---- bad photographs ----


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that only declares its size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


def test_one_bad_photograph_costs_one_reject_and_the_rest_is_read(root: Path, tmp_path: Path) -> None:
    big = photo(2, "PNG", 64)
    put(
        root,
        **{
            "good.jpg": photo(1), "png-named.jpg": photo(3, "PNG"), "zero.jpg": b"", "text.jpg": b"no image",
            "cut.jpg": photo(4)[:-40], "huge.png": png_of_size(60_000, 60_000), "big.png": big,
        },
    )  # fmt: skip
    put(tmp_path, **{"secret.jpg": photo(5)})
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "null.jpg").symlink_to("/dev/zero")
    os.mknod(root / "socket.jpg", stat.S_IFSOCK)
    (root / "latin\udce9.jpg").write_bytes(photo(6))
    found = run(root, max_file_bytes=len(big) - 1)
    assert sorted(splits(found)) == ["good.jpg", "png-named.jpg"]
    assert reasons(found) == [
        ("big.png", "too_many_bytes"),
        ("cut.jpg", "truncated"),
        ("folder.jpg", "not_a_file"),
        ("gone.jpg", "not_a_file"),
        ("huge.png", "too_many_pixels"),
        ("latin\\udce9.jpg", "bad_name"),
        ("null.jpg", "outside_dataset"),
        ("out.jpg", "outside_dataset"),
        ("pipe.jpg", "not_a_file"),
        ("socket.jpg", "not_a_file"),
        ("text.jpg", "not_an_image"),
        ("zero.jpg", "empty_file"),
    ]
    assert set(found.rejects["kind"]) == {"photo"}
    assert set(found.rejects["stage"]) == {"ingest"}


def test_a_file_that_is_gone_or_changed_between_listing_and_reading_costs_one_reject(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, **{f"{name}.jpg": photo(i) for i, name in enumerate("abc")})

    def read_later(dataset: Path, path: str, *where: Any) -> bytes:
        if path == "a.jpg":
            (root / path).unlink()
        if path == "b.jpg":
            (root / path).write_bytes(photo(1) + b"more")
        return read_bytes(dataset, path, *where)

    monkeypatch.setattr("cutline.tasks.ingest.inspection.read_bytes", read_later)
    found = run(root)
    assert sorted(splits(found)) == ["c.jpg"]
    assert reasons(found) == [("a.jpg", "vanished"), ("b.jpg", "changed")]


@pytest.fixture
def no_rights() -> Iterator[None]:
    """Root may read everything, so the rights of root are laid down for the test."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_file_or_folder_that_may_not_be_read_costs_one_reject(no_rights: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = put(Path(folder), **{"a.jpg": photo(), "b.jpg": photo(1), "closed/c.jpg": photo(2)})
        (root / "a.jpg").chmod(0)
        (root / "closed").chmod(0)
        found = run(root)
        (root / "closed").chmod(0o700)
    assert list(splits(found)) == ["b.jpg"]
    assert reasons(found) == [("a.jpg", "unreadable"), ("closed", "unreadable")]


def test_a_caption_of_a_bad_photograph_is_kept_without_it(root: Path) -> None:
    put(root, **{"a.jpg": b"", "b.jpg": photo()})
    found = run(flickr8k(root, {"test": ["a.jpg"], "train": ["b.jpg"]}, [("a.jpg", "One"), ("b.jpg", "Two")]))
    assert found.captions.select("photo_id", "text", "split").rows() == [
        (id_of(photo()), "Two", "train"),
        (None, "One", "test"),
    ]
    assert reasons(found) == [("a.jpg", "empty_file")]


# ---- bad captions ----


def test_one_bad_caption_costs_one_reject_and_the_rest_is_read(root: Path) -> None:
    lines = [
        b"A dog . ", b"caf\xe9", b"   ", b"!? ...", b"word " * 10_000, b"x" * 6000, b"nul \0 byte",
        "Ein H\u00fcndchen\u2028l\u00e4uft\u0085".encode(),
    ]  # fmt: skip
    rows = b"".join(b"a.jpg#%d\t%s\r\n" % row for row in enumerate(lines))
    found = run(put(root, **{"a.jpg": photo(), "Flickr8k.token.txt": b"\xef\xbb\xbf" + rows}))
    assert texts(found) == ["A dog .", "Ein H\u00fcndchen\u2028l\u00e4uft"]
    assert reasons(found) == [
        ("Flickr8k.token.txt:2", "caption_not_utf8"),
        ("Flickr8k.token.txt:3", "empty_caption"),
        ("Flickr8k.token.txt:4", "empty_caption"),
        ("Flickr8k.token.txt:5", "caption_too_long"),
        ("Flickr8k.token.txt:6", "caption_too_long"),
        ("Flickr8k.token.txt:7", "malformed"),
    ]
    assert "10,000 words is over max_caption_words=100" in "".join(found.rejects["detail"])


def test_lone_surrogates_in_json_are_not_utf8(root: Path) -> None:
    rows = (
        r'{"file_name": "a.jpg", "text": "bad \ud800 half"}'
        "\n"
        r'{"file_name": "\udce9.jpg", "text": "One"}'
    )
    found = run(put(root, **{"a.jpg": photo(), "metadata.jsonl": rows}))
    assert reasons(found) == [("\\udce9.jpg", "bad_name"), ("metadata.jsonl:1", "caption_not_utf8")]
    assert texts(found) == ["One"]
    assert splits(found) == {"a.jpg": "unlabelled"}


def test_a_caption_is_stripped_and_composed_and_else_unchanged() -> None:
    assert (
        clean_caption("\u2003 Cafe\u0301  \u201cZur  Post\u201d \U0001f436\n", 10)
        == "Caf\u00e9  \u201cZur  Post\u201d \U0001f436"
    )
    assert clean_caption("word " * 100, 100).count("word") == 100
    with pytest.raises(BadCaption, match="caption_too_long: 101 words"):
        clean_caption("word " * 101, 100)


@given(st.text())
def test_any_text_is_kept_whole_or_refused_with_a_reason(text: str) -> None:
    reason = None
    try:
        kept = clean_caption(text, 100)
    except BadCaption as bad:
        reason, kept = bad.reason, bad.detail
    else:
        assert kept == unicodedata.normalize("NFC", text.strip())
    assert reason is None or reason in REASONS
    assert kept.encode()  # lone surrogates are escaped in what is told of them


# ---- what is known is not read again ----


def replace_keeping_stat(path: Path, data: bytes) -> None:
    """Other bytes in the same file, with the same size and time: only reading it would tell."""
    before = path.stat()
    assert len(data) == before.st_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_unchanged_file_is_not_read_again_and_a_touched_one_is(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1), "c.jpg": b"no image"})
    first = run(root)
    replace_keeping_stat(root / "a.jpg", b"x" * len(photo()))
    replace_keeping_stat(root / "c.jpg", b"NO IMAGE")
    assert_same(run(root, known=first.files), first)
    os.utime(root / "a.jpg")
    assert reasons(run(root, known=first.files)) == [("a.jpg", "not_an_image"), ("c.jpg", "not_an_image")]


def test_only_new_files_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, **{f"{i}.jpg": photo(i) for i in range(4)})
    with tarfile.open(root / "0.tar", "w") as tar:
        tar.add(root / "0.jpg", "t.jpg")
    pq.write_table(pa.table({"image": [photo(9)], "text": ["One"]}), root / "p.parquet")
    opened: list[str] = []

    def read_counted(dataset: Path, path: str, *where: Any) -> bytes:
        opened.append(path)
        return read_bytes(dataset, path, *where)

    monkeypatch.setattr("cutline.tasks.ingest.inspection.read_bytes", read_counted)
    for layout, inside in (("webdataset", "0.tar/t.jpg"), ("parquet", "p.parquet/row-0")):
        opened.clear()
        known = run(root, layout=layout).files
        assert sorted(opened) == sorted([*(f"{i}.jpg" for i in range(4)), inside])
        opened.clear()
        put(root, **{f"{layout}.jpg": photo(20)})
        found = run(root, known=known, layout=layout)
        assert opened == [f"{layout}.jpg"]
        (root / f"{layout}.jpg").unlink()
        assert found.files.filter(pl.col("path") == inside)["container"].to_list() == [
            inside.partition("/")[0]
        ]


def test_what_may_have_passed_is_tried_again_and_settings_are_heeded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1)})

    def unread(dataset: Path, path: str, *where: Any) -> bytes:
        if path == "a.jpg":
            raise BadPhoto("unreadable", "for the moment")
        return read_bytes(dataset, path, *where)

    with monkeypatch.context() as patched:
        patched.setattr("cutline.tasks.ingest.inspection.read_bytes", unread)
        first = run(root)
    assert reasons(first) == [("a.jpg", "unreadable")]
    second = run(root, known=first.files)
    assert sorted(splits(second)) == ["a.jpg", "b.jpg"]
    for setting, reason in (
        ({"max_pixels": 47}, "too_many_pixels"),
        ({"max_file_bytes": 99}, "too_many_bytes"),
    ):
        stricter = run(root, known=second.files, **setting)
        assert reasons(stricter) == [("a.jpg", reason), ("b.jpg", reason)]
        assert_same(run(root, known=stricter.files), second)


def test_a_photograph_in_a_container_is_read_at_its_address(root: Path) -> None:
    with tarfile.open(root / "0.tar", "w") as tar:
        for name, data in (
            ("x.jpg", photo(1)),
            ("x.txt", b"One"),
            ("y.png", photo(2, "PNG")),
            ("y.txt", b"Two"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = run(root)
    for path, container, offset, size, id_ in found.photos.select(
        "path", "container", "offset", "size", "photo_id"
    ).iter_rows():
        assert id_of(read_bytes(root, path, container, offset, size)) == id_
    assert sorted(splits(found)) == ["0.tar/x.jpg", "0.tar/y.png"]
    assert [path.name for path in root.iterdir()] == ["0.tar"]  # nothing was unpacked


def test_a_data_set_behind_a_link_is_read_where_the_link_leads_now(root: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        put(tmp_path, **{f"{name}/a.jpg": photo(seed)})
    root.rmdir()
    for name, seed in (("one", 1), ("two", 2)):
        root.symlink_to(tmp_path / name)
        assert read_bytes(root, "a.jpg", None, None, len(photo(seed))) == photo(seed)
        root.unlink()
    with pytest.raises(BadPhoto, match="vanished"):
        read_bytes(root, "a.jpg", None, None, 1)


def test_a_file_of_unknown_size_is_read_whole_up_to_a_limit(root: Path) -> None:
    put(root, **{"a.jpg": b"0123456789"})
    assert read_file(root, "a.jpg", 10) == b"0123456789"
    with pytest.raises(BadPhoto, match="too_many_bytes"):
        read_file(root, "a.jpg", 9)


# ---- the listing ----


def test_the_listings_digest_sees_every_change_and_no_hidden_file(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "x/b.txt": "One"})
    seen = [listing_digest(scan(root))]
    put(root, **{".DS_Store": b"x"})
    assert listing_digest(scan(root)) == seen[0]

    def changed() -> bool:
        seen.append(listing_digest(scan(root)))
        return len(set(seen)) == len(seen)

    put(root, **{"c.jpg": photo(1)})
    assert changed()
    (root / "c.jpg").rename(root / "d.jpg")
    assert changed()
    os.utime(root / "d.jpg", ns=(1, 1))
    assert changed()
    data = (root / "d.jpg").read_bytes()
    (root / "new.jpg").write_bytes(data)
    os.utime(root / "new.jpg", ns=(1, 1))
    (root / "new.jpg").replace(root / "d.jpg")  # the same size and time, another inode
    assert changed()
    (root / "gone.jpg").symlink_to("nowhere")
    assert changed()
    with pytest.raises(UnknownDataset):
        scan(root / "nothing")


def test_looking_for_changes_loads_nothing_heavy() -> None:
    heavy = {"cv2", "pandera", "nltk", "pyarrow", "tensorflow", "prefect"}
    code = f"import sys, cutline.tasks.ingest.ingest; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ---- real data ----


@pytest.mark.real_data
def test_flickr8k_as_it_is_published(real_data: Path, tmp_path: Path) -> None:
    found = ingest(real_data / "data/flickr8k", IngestSettings(), tmp_path, None, lambda rows: None)
    counts = dict(found.photos["split"].value_counts().iter_rows())
    assert (found.layout, counts) == ("flickr8k", {"train": 600, "dev": 100, "test": 100})
    assert found.captions.height == 35_085
    paired = found.captions.drop_nulls("photo_id")
    assert paired.group_by("photo_id").len()["len"].to_list() == [5] * 800
    alone = found.captions.filter(pl.col("photo_id").is_null())
    # One of a photograph's five lines calls it 2258277193_586949ec62.jpg.1.
    assert sorted(alone.group_by("missing_photo").len()["len"]) == [1, 4] + [5] * (7018 - 800 - 2)
    assert dict(found.rejects["reason"].value_counts().iter_rows()) == {"missing_photo": 7018 - 800}


@pytest.mark.real_data
def test_coco_with_and_without_its_photographs(real_data: Path, tmp_path: Path) -> None:
    mini = ingest(real_data / "data/coco-mini", IngestSettings(), tmp_path, None, lambda rows: None)
    assert (mini.layout, mini.photos.height, mini.captions.height, mini.rejects.height) == (
        "coco",
        80,
        400,
        0,
    )
    assert set(mini.photos["split"]) == {"train", "dev", "test"}
    captions = ingest(real_data / "data/coco-captions", IngestSettings(), tmp_path, None, lambda rows: None)
    assert (captions.photos.height, captions.captions.height) == (0, 24_219)
    assert captions.captions["photo_id"].null_count() == 24_219
    assert set(captions.captions["split"]) == {"train"}
    assert captions.rejects.height == 4_841
