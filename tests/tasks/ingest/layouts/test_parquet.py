"""Parquet of any maker is read; what is damaged leaves the other rows whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.datasets import MAX_BYTES, bytes_of, photo, put, read


def test_parquet_of_hugging_face_has_bytes_in_a_struct_and_lists_of_captions(root: Path) -> None:
    images = [
        {"bytes": photo(1), "path": "1.jpg"},
        {"bytes": photo(2), "path": None},
        {"bytes": None, "path": "3.jpg"},
        None,
    ]
    table = pa.table({"image": images, "caption": [["One", "Two"], ["Three"], ["Four"], ["Five"]]})
    (root / "data").mkdir()
    pq.write_table(table, root / "data/train-00000-of-00001.parquet", row_group_size=2)
    pq.write_table(
        pa.table({"image": [photo(4)], "text": ["Six"]}), root / "data/test-00000-of-00001.parquet"
    )
    put(root, **{"data/3.jpg": photo(3)})
    found = read(root)
    train, test = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    assert found.captions == {
        f"{train}/1.jpg": ["One", "Two"],
        f"{train}/row-1": ["Three"],
        "data/3.jpg": ["Four"],
        f"{test}/row-0": ["Six"],
        None: ["Five"],
    }
    assert found.splits[f"{train}/1.jpg"] == {"train"}
    assert found.splits[f"{test}/row-0"] == {"test"}
    assert found.reasons == [(f"{train}/row-3", "malformed")]
    assert {path: bytes_of(root, told) for path, told in found.photos.items()} == {
        "data/3.jpg": photo(3),
        f"{train}/1.jpg": photo(1),
        f"{train}/row-1": photo(2),
        f"{test}/row-0": photo(4),
    }


def test_parquet_of_img2dataset_with_bytes_or_beside_a_folder_of_files(root: Path) -> None:
    keys = pa.table(
        {"key": ["000", "001"], "caption": ["One", "Two"], "status": ["success", "failed_to_download"]}
    )
    pq.write_table(keys, root / "00000.parquet")
    put(root, **{"00000/000.jpg": photo(), "00001/000.jpg": photo(1)})
    columns = {
        "key": ["010", "011"],
        "caption": ["Three", None],
        "jpg": [photo(2), photo(3)],
        "url": ["http://x"] * 2,
    }
    pq.write_table(pa.table(columns), root / "00002.parquet")
    found = read(root)
    assert found.captions == {
        "00000/000.jpg": ["One"], None: ["Two"], "00002.parquet/010": ["Three"], "00002.parquet/011": [],
    }  # fmt: skip
    assert found.missing == {"001": ["Two"]}
    assert found.reasons == [("001", "missing_photo")]
    assert bytes_of(root, found.photos["00002.parquet/011"]) == photo(3)


def test_parquet_with_paths_numbered_captions_and_a_split_column(root: Path) -> None:
    columns = {
        "image_path": ["img/a.jpg", "../out.jpg", "img/b.jpg"],
        "caption_0": ["One", "Two", "Three"],
        "caption_1": ["Four", "Five", None],
        "split": ["validation", "train", "test"],
    }
    pq.write_table(pa.table(columns), root / "table.parquet")
    put(root, **{"img/a.jpg": photo(), "img/b.jpg": photo(1)})
    found = read(root)
    assert found.captions == {"img/a.jpg": ["One", "Four"], None: ["Two", "Five"], "img/b.jpg": ["Three"]}
    assert found.splits == {"img/a.jpg": {"dev"}, None: {"train"}, "img/b.jpg": {"test"}}
    assert found.reasons == [("../out.jpg", "outside_dataset")]


def test_a_photograph_in_several_rows_is_one_and_another_of_its_name_is_not(root: Path) -> None:
    images = [
        {"bytes": photo(seed), "path": name}
        for seed, name in [(1, "a"), (1, "a"), (2, "a"), (3, None), (3, None)]
    ]
    pq.write_table(pa.table({"image": images, "text": list("vwxyz")}), root / "t.parquet")
    found = read(root)
    assert found.captions == {
        "t.parquet/a": ["v", "w"],
        "t.parquet/a#row-2": ["x"],
        "t.parquet/row-3": ["y", "z"],
    }
    assert bytes_of(root, found.photos["t.parquet/a#row-2"]) == photo(2)
    assert found.problems == []


def test_texts_that_are_not_utf8_and_bytes_over_the_limit_cost_their_rows_only(root: Path) -> None:
    text = pa.array([b"caf\xe9", b"Two", b"Three"]).view(pa.string())
    pq.write_table(
        pa.table({"image": [photo(1), b"x" * (MAX_BYTES + 1), photo(2)], "text": text}), root / "t.parquet"
    )
    found = read(root)
    assert found.captions == {"t.parquet/row-0": ["caf\udce9"], None: ["Two"], "t.parquet/row-2": ["Three"]}
    assert found.reasons == [("t.parquet/row-1", "too_many_bytes")]


def test_a_damaged_parquet_file_or_row_group_leaves_the_others_whole(root: Path) -> None:
    put(root, **{"a.parquet": b"PAR1 nonsense PAR1"})
    columns = {"image": [photo(seed) for seed in range(4)], "text": ["One", "Two", "Three", "Four"]}
    pq.write_table(
        pa.table(columns), root / "b.parquet", row_group_size=2, compression="zstd", use_dictionary=False
    )
    start = pq.read_metadata(root / "b.parquet").row_group(0).column(0).data_page_offset
    data = bytearray((root / "b.parquet").read_bytes())
    data[start : start + 60] = b"\xff" * 60
    (root / "b.parquet").write_bytes(data)
    found = read(root)
    assert found.captions == {None: ["One", "Two"], "b.parquet/row-2": ["Three"], "b.parquet/row-3": ["Four"]}
    assert found.reasons == [
        (name, "malformed") for name in ("a.parquet", "b.parquet/row-0", "b.parquet/row-1")
    ]


def test_captions_as_bytes_are_read_and_columns_of_one_name_are_told(root: Path) -> None:
    put(root, **{"a.jpg": photo()})
    columns = {"path": ["a.jpg"], "caption": [b"One"], "split": ["holdout"]}
    pq.write_table(pa.table({**columns, "split": ["test"]}), root / "a.parquet")
    assert read(root).captions == {"a.jpg": ["One"]}
    pq.write_table(pa.table(columns), root / "a.parquet")
    found = read(root)
    assert not any(found.captions.values())
    assert found.reasons == [("a.parquet/row-0", "malformed")]
    twice = pa.Table.from_arrays([["a.jpg"], ["One"], ["Two"]], ["path", "caption", "caption"])
    pq.write_table(twice, root / "a.parquet")
    assert ("a.parquet", "malformed") in read(root, "parquet", only=["a.parquet"]).reasons
