"""A caption comes to the photograph that it names or to none: data sets as files, tables by value."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cutline.schemas.errors import BadPhoto, UnknownDataset
from cutline.schemas.settings import IngestSettings
from cutline.schemas.tables import dtypes_of
from cutline.tasks.images.files import read_bytes
from cutline.tasks.ingest.ingest import Ingested, ingest
from cutline.tasks.report.caption_export import write_captions
from tests.support.datasets import photo, put
from tests.tasks.ingest.layouts.test_webdataset import tar_of


def take_in(root: Path) -> Ingested:
    """The tables of a data set."""
    return ingest(
        root, IngestSettings(dev_share=0, test_share=0), root.parent / "packs", None, lambda _: None
    )


def pairs_of(tables: Ingested) -> dict[str | None, list[str]]:
    """The captions by the path of their photograph, None: of those without one."""
    paths = tables.photos.select("photo_id", "path")
    rows = tables.captions.join(paths, on="photo_id", how="left").sort("text").select("path", "text")
    found: dict[str | None, list[str]] = {}
    for path, text in rows.iter_rows():
        found.setdefault(path, []).append(text)
    return found


def reasons_of(tables: Ingested) -> list[tuple[str, str]]:
    return sorted(tables.rejects.select("name", "reason").rows())


Rows = list[tuple[str, str]]  # name of a photograph, caption


def flickr8k(root: Path, rows: Rows) -> None:
    put(root, **{"Flickr8k.token.txt": "".join(f"{name}#0\t{text}\n" for name, text in rows)})


def kaggle(root: Path, rows: Rows) -> None:
    put(root, **{"captions.txt": "image,caption\n" + "".join(f"{name},{text}\n" for name, text in rows)})


def karpathy(root: Path, rows: Rows) -> None:
    images = []
    for name, text in rows:
        folder, _, last = name.rpartition("/")
        images.append({"filepath": folder, "filename": last, "split": "train", "sentences": [{"raw": text}]})
    put(root, **{"dataset_x.json": json.dumps({"images": images})})


def coco(root: Path, rows: Rows) -> None:
    images = [{"id": number, "file_name": name} for number, (name, _) in enumerate(rows)]
    annotations = [{"image_id": number, "caption": text} for number, (_, text) in enumerate(rows)]
    put(root, **{"captions_x.json": json.dumps({"images": images, "annotations": annotations})})


def imagefolder_csv(root: Path, rows: Rows) -> None:
    put(root, **{"metadata.csv": "file_name,text\n" + "".join(f"{name},{text}\n" for name, text in rows)})


def imagefolder_jsonl(root: Path, rows: Rows) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    put(root, **{"metadata.jsonl": "\n".join(lines)})


def parquet(root: Path, rows: Rows) -> None:
    table = pa.table({"file_name": [name for name, _ in rows], "text": [text for _, text in rows]})
    pq.write_table(table, root / "table.parquet")


Writer = Callable[[Path, Rows], None]
BY_NAME: list[Writer] = [flickr8k, kaggle, karpathy, coco, imagefolder_csv, imagefolder_jsonl, parquet]


# Which files are there, what the annotations name, and which file each name means (None: no file).
PAIRINGS: dict[str, tuple[list[str], dict[str, str | None]]] = {
    "a partial copy with numbers that begin anew in each folder": (
        ["cats/001.jpg", "cats/002.jpg", "dogs/002.jpg"],
        {
            "cats/001.jpg": "cats/001.jpg",
            "cats/002.jpg": "cats/002.jpg",
            "dogs/001.jpg": None,
            "dogs/002.jpg": "dogs/002.jpg",
        },
    ),
    "only the last of three folders is there": (
        ["train/cats/001.jpg"],
        {"test/cats/001.jpg": None, "train/cats/001.jpg": "train/cats/001.jpg", "train/dogs/001.jpg": None},
    ),
    "nobody names the file of the other folder": (["cats/001.jpg"], {"dogs/001.jpg": None}),
    "the folder below the named ones": (["data/cats/1.jpg"], {"cats/1.jpg": "data/cats/1.jpg"}),
    "the named folders begin above the data set": (["1.jpg"], {"images/1.jpg": "1.jpg"}),
    "files copied out of their folders, two of one name": (
        ["001.jpg", "002.jpg"],
        {"cats/001.jpg": None, "dogs/001.jpg": None, "cats/002.jpg": "002.jpg"},
    ),
    "the file is another name's, which comes later": (
        ["001.jpg"],
        {"dogs/001.jpg": None, "001.jpg": "001.jpg"},
    ),
    "the file is another name's, which comes before": (
        ["cats/001.jpg"],
        {"cats/001.jpg": "cats/001.jpg", "001.jpg": None},
    ),
    "the closer of two names": (
        ["a/b/1.jpg"],
        {"1.jpg": None, "b/1.jpg": "a/b/1.jpg"},
    ),
    "other case, decomposed": (
        ["Caf\u0065\u0301/A.JPG", "b/a.jpg"],
        {"caf\u00e9/a.jpg": "Caf\u0065\u0301/A.JPG", "c/a.jpg": None},
    ),
    "paths of another machine": (
        ["cats/001.jpg", "002.jpg"],
        {
            "/content/x/cats/001.jpg": "cats/001.jpg",
            "/content/x/dogs/001.jpg": None,
            "/content/x/002.jpg": "002.jpg",
        },
    ),
    "paths of another machine with Windows": (
        ["cats/001.jpg", "002.jpg"],
        {
            "C:\\data\\cats\\001.jpg": "cats/001.jpg",
            "C:\\data\\dogs\\001.jpg": None,
            "D:\\002.jpg": "002.jpg",
            "dogs\\002.jpg": None,
        },
    ),
}


@pytest.mark.parametrize("write", BY_NAME, ids=lambda write: write.__name__)
@pytest.mark.parametrize("what", PAIRINGS)
def test_a_caption_is_of_the_photograph_that_its_name_means_or_of_none(
    what: str, write: Writer, root: Path
) -> None:
    files, means = PAIRINGS[what]
    put(root, **{path: photo(number) for number, path in enumerate(files)})
    write(root, [(name, f"caption of {name}") for name in means])
    tables = take_in(root)
    expected: dict[str | None, list[str]] = {}
    for name, path in means.items():
        expected.setdefault(path, []).append(f"caption of {name}")
    assert pairs_of(tables) == {path: sorted(texts) for path, texts in expected.items()}
    missing = {name for name, path in means.items() if path is None}
    told = {name for name, reason in reasons_of(tables) if reason in ("missing_photo", "outside_dataset")}
    assert {name.rpartition("/")[2] for name in told} == {name.rpartition("/")[2] for name in missing}


def test_a_name_in_the_metadata_of_a_folder_means_a_photograph_in_that_folder(root: Path) -> None:
    put(root, **{"train/1.jpg": photo(1), "test/0.jpg": photo(0), "train/sub/2.jpg": photo(2)})
    lines = {"train": ["0.jpg", "1.jpg", "2.jpg"], "test": ["0.jpg"]}
    for split, names in lines.items():
        rows = [json.dumps({"file_name": name, "text": f"{split} {name}"}) for name in names]
        put(root, **{f"{split}/metadata.jsonl": "\n".join(rows)})
    tables = take_in(root)
    assert pairs_of(tables) == {
        None: ["train 0.jpg"],
        "train/1.jpg": ["train 1.jpg"],
        "train/sub/2.jpg": ["train 2.jpg"],
        "test/0.jpg": ["test 0.jpg"],
    }
    assert reasons_of(tables) == [("0.jpg", "missing_photo")]


def test_a_folder_without_its_photographs_takes_none_of_the_next(root: Path) -> None:
    put(root, **{"cats/001.jpg": photo(), "dogs/metadata.csv": "file_name,text\n001.jpg,a dog\n"})
    pq.write_table(pa.table({"file_name": ["001.jpg"], "text": ["a dog"]}), root / "dogs/table.parquet")
    for layout in ("imagefolder", "parquet"):
        settings = IngestSettings(layout=layout)
        tables = ingest(root, settings, root.parent / "packs", None, lambda _: None)
        assert pairs_of(tables) == {None: ["a dog"]}


def test_a_file_that_cannot_be_used_is_not_replaced_by_one_of_its_name(root: Path) -> None:
    put(root, **{"cats/001.jpg": photo(), "dogs/001.jpg/inside.txt": ""})
    kaggle(root, [("cats/001.jpg", "a cat"), ("dogs/001.jpg", "a dog"), ("birds/001.jpg", "a bird")])
    tables = take_in(root)
    assert pairs_of(tables) == {"cats/001.jpg": ["a cat"], None: ["a bird", "a dog"]}
    assert [row for row in reasons_of(tables) if row[1] != "not_read"] == [
        ("birds/001.jpg", "missing_photo"),
        ("dogs/001.jpg", "not_a_file"),
    ]


def test_a_list_of_a_split_may_name_photographs_with_their_folder(root: Path) -> None:
    put(root, **{"img/a.jpg": photo(), "img/b.jpg": photo(1)})
    flickr8k(root, [("a.jpg", "One"), ("b.jpg", "Two")])
    put(root, **{"Flickr_8k.trainImages.txt": "img/a.jpg\n", "Flickr_8k.testImages.txt": "img/b.jpg\n"})
    tables = take_in(root)
    assert pairs_of(tables) == {"img/a.jpg": ["One"], "img/b.jpg": ["Two"]}
    splits = tables.photos.sort("path").select("path", "split").rows()
    assert splits == [("img/a.jpg", "train"), ("img/b.jpg", "test")]


def test_names_are_found_in_the_time_of_their_number(root: Path) -> None:
    """Files of one name in many folders, named by paths of another machine: no name looks at all files."""
    from time import process_time

    from cutline.tasks.ingest.files import Files
    from cutline.tasks.ingest.finder import Finder

    def seconds(count: int) -> float:
        from array import array

        paths = sorted(f"{number:06}/image.jpg" for number in range(count))
        numbers = array("q", [0]) * count
        finder = Finder(Files(root, paths, numbers, numbers, numbers, []))
        started = process_time()
        for path in paths:
            assert finder.find(f"/content/data/{path}")[0] == path
        return process_time() - started

    seconds(1_000)
    assert seconds(40_000) < 40 * max(seconds(4_000), 0.02)


# ---- what Cutline wrote itself ----

OWN_ROW = {
    "path": "a.jpg",
    "photo_id": "0" * 32,
    "source_id": None,
    "split": "train",
    "caption": "a model's words",
    "score": -1.5,
    "distance": 0.5,
    "alternatives": [{"caption": "a model's words", "score": -1.5}, {"caption": "others", "score": -2.0}],
}


def write_own(path: Path) -> None:
    frame = pl.DataFrame([OWN_ROW], schema_overrides=dtypes_of("captioned")).select(*dtypes_of("captioned"))
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name("written" + ("".join(path.suffixes[-1:])))
    write_captions(frame, written)
    written.rename(path)


@pytest.mark.parametrize(
    "name",
    [
        "captions.parquet",
        "any/name.parquet",
        "metadata.jsonl",
        "metadata.csv",
        "captions.csv",
        "captions.jsonl",
        "captions_val2017.json",
        "results.csv",
        "sub/metadata.jsonl",
    ],
)
def test_captions_that_cutline_wrote_are_never_read_as_peoples(name: str, root: Path) -> None:
    put(root, **{"a.jpg": photo(), "a.txt": "a person's words"})
    write_own(root / name)
    tables = take_in(root)
    assert tables.layout == "folder"
    assert pairs_of(tables) == {"a.jpg": ["a person's words"]}
    assert reasons_of(tables) == [(name, "not_read")]
    assert "Cutline wrote it" in tables.rejects["detail"][0]


def test_a_manifest_that_cutline_wrote_names_photographs_and_captions_none(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1)})
    write_own(root / "captions.parquet")
    tables = ingest(root, IngestSettings(), root.parent / "packs", None, lambda _: None, ["captions.parquet"])
    assert tables.photos["path"].to_list() == ["a.jpg"]
    assert pairs_of(tables) == {}


# ---- captions under other names, tables of other columns ----

CONVERSATION = [
    {"from": "human", "value": "<image>\nDescribe."},
    {"from": "gpt", "value": "One"},
    {"from": "human", "value": "Is it red?"},
    {"from": "gpt", "value": "Yes"},
]
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe."}]},
    {"role": "assistant", "content": [{"type": "text", "text": "One"}]},
]


@pytest.mark.parametrize("form", ["jsonl", "ndjson", "csv", "tsv", "parquet", "parquet with bytes", "tar"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((name, "One") for name in ("prompt", "alt_text", "text", "caption", "TEXT", "Caption", "comment")),
        *((name, "One") for name in ("blip caption", "blip_caption", "caption_2", "description", "alt")),
        *((name, ["One"]) for name in ("captions", "alt_text", "prompt")),
        ("conversations", CONVERSATION),
        ("messages", MESSAGES),
    ],
)
def test_captions_are_read_under_every_known_name(column: str, value: Any, form: str, root: Path) -> None:
    put(root, **{"a.jpg": photo()})
    row = {"file_name": "a.jpg", column: value}
    if form in ("jsonl", "ndjson"):
        put(root, **{f"metadata.{form}": json.dumps(row)})
    elif form in ("csv", "tsv"):
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter="," if form == "csv" else "\t")
        writer.writerows([row, [v if isinstance(v, str) else json.dumps(v) for v in row.values()]])
        put(root, **{f"metadata.{form}": buffer.getvalue()})
    elif form == "parquet":
        if column == "messages":
            pytest.skip("a column of Parquet has one type; the parts of a message have several")
        pq.write_table(pa.Table.from_pylist([row]), root / "table.parquet")
    elif form == "parquet with bytes":
        if column == "messages":
            pytest.skip("a column of Parquet has one type; the parts of a message have several")
        (root / "a.jpg").unlink()
        pq.write_table(pa.Table.from_pylist([{"image": photo(), column: value}]), root / "table.parquet")
    else:
        (root / "a.jpg").unlink()
        put(root, **{"a.tar": tar_of(("a.jpg", photo()), ("a.json", json.dumps({column: value})))})
    tables = take_in(root)
    assert [texts for _, texts in pairs_of(tables).items()] == [["One"]]
    assert reasons_of(tables) == []


def test_numbers_are_captions_in_parquet(root: Path) -> None:
    columns = {"image": [photo(n) for n in range(3)], "caption": pa.array([5, None, 7], pa.int64())}
    pq.write_table(pa.table(columns), root / "x.parquet")
    assert pairs_of(take_in(root)) == {"x.parquet/row-0": ["5"], "x.parquet/row-2": ["7"]}


def test_columns_that_are_not_read_are_told_once_each(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1), "c.jpg": photo(2)})
    rows = [
        {"file_name": f"{name}.jpg", "caption": name, "prompt": "p", "genre": "x", "url": "http://x"}
        for name in "ab"
    ]
    put(root, **{"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    put(root, **{"x/metadata.csv": "file_name,caption,genre\n../c.jpg,c,x\n"})
    tables = take_in(root)
    assert pairs_of(tables) == {"a.jpg": ["a"], "b.jpg": ["b"], "c.jpg": ["c"]}
    assert reasons_of(tables) == [
        ("metadata.jsonl: genre", "not_read"),
        ("metadata.jsonl: prompt", "not_read"),
    ]
    assert "in 2 files; the column is not read; captions are read from" in tables.rejects["detail"][0]
    pq.write_table(pa.table({"image": [photo(5)], "text": ["One"], "tags": [["x"]]}), root / "t.parquet")
    tables = ingest(root, IngestSettings(layout="parquet"), root.parent / "packs", None, lambda _: None)
    assert ("t.parquet: tags", "not_read") in reasons_of(tables)


def test_texts_beside_photographs_are_read_by_every_known_ending(root: Path) -> None:
    texts = {"a.txt": "One", "b.caption": "Two", "c.cap": "Three", "d.text": "Four", "e.captions": "Five"}
    put(root, **{f"{name[0]}.jpg": photo(number) for number, name in enumerate(texts)}, **texts)
    put(
        root,
        **{"f.jpg": photo(9), "f.lab": "Six", "g.lab": "Seven", "raw.cr2": b"\0\1\2", "x.zip": b"PK\3\4"},
    )
    tables = take_in(root)
    assert pairs_of(tables) == {f"{name[0]}.jpg": [text] for name, text in texts.items()}
    assert reasons_of(tables) == [("*.lab", "not_read"), ("x.zip", "not_read")]
    assert "unpack it" in tables.rejects.filter(pl.col("name") == "x.zip")["detail"].item()


def test_texts_in_tars_are_read_by_every_known_ending_and_others_are_told(root: Path) -> None:
    members = [("a.jpg", photo()), ("a.caption", "One"), ("b.jpg", photo(1)), ("b.jpg.txt", "Two")]
    members += [("c.jpg", photo(2)), ("c.md", "Three"), ("d.jpg", photo(3)), ("D.txt", "Four")]
    members += [("caf\u00e9.jpg", photo(4)), ("cafe\u0301.txt", "Five"), ("d.md", "Six")]
    members += [("e.jpg", photo(5)), ("e.png", photo(6, "PNG")), ("e.png.txt", "Seven")]
    put(root, **{"x.tar": tar_of(*members)})
    tables = take_in(root)
    assert pairs_of(tables) == {
        "x.tar/a.jpg": ["One"],
        "x.tar/b.jpg": ["Two"],
        "x.tar/d.jpg": ["Four"],
        "x.tar/caf\u00e9.jpg": ["Five"],
        "x.tar/e.png": ["Seven"],
    }
    assert reasons_of(tables) == [("x.tar: *.md", "not_read")]


def test_folders_in_a_tar_tell_the_split_where_its_name_does_not(root: Path) -> None:
    members = [(f"{split}/{n}.{end}", data) for n, split in enumerate(("train", "val", "test"))
               for end, data in (("jpg", photo(n)), ("txt", split))]  # fmt: skip
    put(root, **{"data.tar": tar_of(*members)})
    tables = take_in(root)
    assert sorted(tables.captions.select("text", "split").rows()) == [
        ("test", "test"),
        ("train", "train"),
        ("val", "dev"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", ',image,caption\n0,a.jpg,a dog\n1,b.jpg,"a cat, big"\n'),
        ("captions.csv", 'caption,image\na dog,a.jpg\n"a cat, big",b.jpg\n'),
        ("captions.csv", "image;caption\na.jpg;a dog\nb.jpg;a cat, big\n"),
        ("captions.csv", "image|caption\na.jpg|a dog\nb.jpg|a cat, big\n"),
        ("captions.csv", 'image,caption,split\na.jpg,a dog,train\nb.jpg,"a cat, big",train\n'),
        ("captions.csv", 'file,description\na.jpg,a dog\nb.jpg,"a cat, big"\n'),
        ("captions.csv", 'File_Name,width,Caption\na.jpg,8,a dog\nb.jpg,8,"a cat, big"\n'),
        ("captions.txt", 'image_id,caption\na.jpg,a dog\nb.jpg,"a cat, big"\n'),
        ("captions.txt", "image\tcaption\na.jpg\ta dog\nb.jpg\ta cat, big\n"),
        ("captions.txt", "a.jpg\ta dog\nb.jpg\ta cat, big\n"),
        ("captions.tsv", "image\tcaption\na.jpg\ta dog\nb.jpg\ta cat, big\n"),
        ("captions.txt", "image,caption\na.jpg,a dog\nb.jpg,a cat, big\n".encode("utf-16")),
        ("captions.txt", b"\xfe\xff" + "image,caption\na.jpg,a dog\nb.jpg,a cat, big\n".encode("utf-16-be")),
        ("train_captions.csv", "caption;image\na dog;a.jpg\na cat, big;b.jpg\n"),
        (
            "captions.ndjson",
            '{"image": "a.jpg", "caption": "a dog"}\n{"image": "b.jpg", "text": "a cat, big"}',
        ),
        ("metadata.csv", "file_name;text\na.jpg;a dog\nb.jpg;a cat, big\n"),
    ],
)
def test_a_table_of_captions_is_read_by_its_columns(name: str, content: str | bytes, root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1), name: content})
    tables = take_in(root)
    assert pairs_of(tables) == {"a.jpg": ["a dog"], "b.jpg": ["a cat, big"]}
    assert reasons_of(tables) == []


def test_two_columns_of_captions_are_both_read(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "captions.csv": "image,caption_1,caption_2\na.jpg,One,Two\n"})
    assert pairs_of(take_in(root)) == {"a.jpg": ["One", "Two"]}


def test_a_table_without_such_columns_is_told_with_what_was_expected_and_found(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "captions.csv": "foo,bar\na.jpg,One\n"})
    tables = take_in(root)
    assert reasons_of(tables) == [("captions.csv", "not_read")]
    detail = tables.rejects["detail"].item()
    assert "expected a first line that names" in detail
    assert "found 'foo,bar'" in detail


def test_a_value_that_is_missing_is_no_caption(root: Path) -> None:
    names = "abcde"
    put(root, **{f"{name}.jpg": photo(number) for number, name in enumerate(names)})
    values = ["nan", "NaN", "<NA>", "null", "nan bread"]
    lines = [f"{name}.jpg,{value}" for name, value in zip(names, values, strict=True)]
    put(root, **{"captions.csv": "image,caption\n" + "\n".join(lines)})
    tables = take_in(root)
    assert pairs_of(tables) == {"e.jpg": ["nan bread"]}
    assert [reason for _, reason in reasons_of(tables)] == ["empty_caption"] * 4


# ---- ids, and texts beside photographs ----


@pytest.mark.parametrize(
    ("in_images", "in_annotations"), [(1, "1"), ("1", 1), (1.0, 1), ("1", "1.0"), (1, 1.0), (" 1", 1)]
)
def test_an_id_of_coco_is_the_same_as_text_and_as_number(
    in_images: Any, in_annotations: Any, root: Path
) -> None:
    images = [{"id": in_images, "file_name": "a.jpg"}, {"id": "001", "file_name": "b.jpg"}]
    annotations = [{"image_id": in_annotations, "caption": "One"}, {"image_id": "001", "caption": "Two"}]
    data = json.dumps({"images": images, "annotations": annotations})
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1), "captions_x.json": data})
    tables = take_in(root)
    assert pairs_of(tables) == {"a.jpg": ["One"], "b.jpg": ["Two"]}
    assert reasons_of(tables) == []


@pytest.mark.parametrize(
    ("files", "texts", "notices"),
    [
        ({"cafe\u0301.jpg": "One"}, {"caf\u00e9.txt": "One"}, []),
        ({"caf\u00e9.jpg": "One"}, {"cafe\u0301.txt": "One"}, []),
        ({"IMG_1.JPG": "One"}, {"img_1.txt": "One"}, []),
        ({"a.jpg": "One", "A.jpg": "Two"}, {"a.txt": "One", "A.TXT": "Two"}, []),
        ({"a.jpg": "One", "b.jpg": "Two"}, {"a.jpg.txt": "One", "b.txt": "Two"}, []),
        ({"a.jpg": "One", "a.png": "Two"}, {"a.jpg.txt": "One", "a.png.txt": "Two"}, []),
        ({"a.jpg": "One", "a.png": None}, {"a.txt": "One"}, [("a.png", "ambiguous_name")]),
    ],
)
def test_a_text_belongs_to_the_photograph_of_its_name(
    files: dict[str, str | None], texts: dict[str, str], notices: list[tuple[str, str]], root: Path
) -> None:
    forms = {name: "PNG" if name.endswith("png") else "JPEG" for name in files}
    put(root, **{name: photo(number, forms[name]) for number, name in enumerate(files)}, **texts)
    tables = take_in(root)
    assert pairs_of(tables) == {name: [text] for name, text in files.items() if text}
    assert reasons_of(tables) == notices


# ---- where nothing fits ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x.tar.gz", "unpack it"), ("x.tgz", "unpack it"), ("x.zip", "unpack it")],
)
def test_where_only_archives_are_found_the_message_says_to_unpack_them(
    name: str, expected: str, root: Path
) -> None:
    put(root, **{name: b"\x1f\x8b\0\0"})
    with pytest.raises(UnknownDataset, match=expected):
        take_in(root)


def test_where_parquet_has_other_columns_the_message_names_those_wanted_and_found(root: Path) -> None:
    pq.write_table(pa.table({"images": [[photo()]], "tag": ["x"]}), root / "x.parquet")
    with pytest.raises(
        UnknownDataset,
        match=r"expected bytes of photographs in a column image.*found the columns images list",
    ):
        take_in(root)


def test_columns_of_parquet_may_be_in_capitals(root: Path) -> None:
    pq.write_table(pa.table({"IMAGE": [photo()], "TEXT": ["One"], "Split": ["test"]}), root / "x.parquet")
    tables = take_in(root)
    assert pairs_of(tables) == {"x.parquet/row-0": ["One"]}


# ---- folders of links ----


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(os.path.relpath(target, place.parent))


def in_hub(base: Path) -> tuple[Path, Path]:
    return base / "hub/datasets--x--y/snapshots/abc", base / "hub/datasets--x--y/blobs"


def in_hub_below(base: Path) -> tuple[Path, Path]:
    return base / "hub/datasets--x--y/snapshots/abc/train", base / "hub/datasets--x--y/blobs"


def in_dvc(base: Path) -> tuple[Path, Path]:
    return base / "project/data/photos", base / "project/.dvc/cache/files/md5/0a"


def in_annex(base: Path) -> tuple[Path, Path]:
    return base / "project", base / "project/.git/annex/objects/f8/x"


@pytest.mark.parametrize("places", [in_hub, in_hub_below, in_dvc, in_annex])
@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_links_into_the_store_of_a_data_set_are_read(
    places: Callable[[Path], tuple[Path, Path]], form: str, tmp_path: Path
) -> None:
    dataset, store = places(tmp_path)
    put(store, b1=photo(), b2='{"file_name": "a.jpg", "text": "One"}')
    pq.write_table(pa.table({"image": [photo()], "text": ["One"]}), store / "b3")
    if form == "parquet":
        link(dataset / "data/train-00000-of-00001.parquet", store / "b3")
    else:
        link(dataset / "a.jpg", store / "b1")
        link(dataset / "metadata.jsonl", store / "b2")
    tables = take_in(dataset)
    assert tables.layout == form
    assert list(pairs_of(tables).values()) == [["One"]]
    assert reasons_of(tables) == []
    if form == "imagefolder":
        assert read_bytes(dataset, "a.jpg", None, None, len(photo())) == photo()


def test_a_link_that_leads_elsewhere_is_not_read_and_named_as_the_reason(tmp_path: Path) -> None:
    put(tmp_path / "secret", **{"a.jpg": photo(), "t.parquet": b"x"})
    link(tmp_path / "dataset/t.parquet", tmp_path / "secret/t.parquet")
    with pytest.raises(
        UnknownDataset, match=r"(?s)found 0 files.*'t\.parquet': the link leads out .*secret/t\.parquet"
    ):
        take_in(tmp_path / "dataset")
    link(tmp_path / "dataset/a.jpg", tmp_path / "secret/a.jpg")
    (tmp_path / "dataset/t.parquet").unlink()
    assert reasons_of(take_in(tmp_path / "dataset")) == [("a.jpg", "outside_dataset")]
    with pytest.raises(BadPhoto, match="outside_dataset"):
        read_bytes(tmp_path / "dataset", "a.jpg", None, None, len(photo()))


def test_columns_without_number_are_not_told_without_end(root: Path) -> None:
    columns = [f"column{number}" for number in range(3000)]
    rows = [["file_name", *columns], ["a.jpg", *["x"] * 3000]]
    put(root, **{"a.jpg": photo(), "metadata.csv": "\n".join(map(",".join, rows))})
    found = reasons_of(take_in(root))
    assert len(found) == 101
    assert ("metadata.csv: …", "not_read") in found
