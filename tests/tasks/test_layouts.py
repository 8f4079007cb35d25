"""Each layout is known by its files and read as its makers write it; what is odd costs only itself."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from schemas.errors import UnknownDataset
from tasks.layouts import Entry, Photo, Problem, detect, read_layout, scan, split_in, split_of_file

MAX_BYTES = 2**20


def photo(seed: int = 0, form: str = "JPEG") -> bytes:
    """The bytes of a small photograph; another for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def put(root: Path, **files: Any) -> Path:
    """Write files of bytes or text under `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


@dataclass
class Read:
    """What a layout told: captions, splits and source ids by photograph, the rest in lists."""

    layout: str = ""
    also_fit: tuple[str, ...] = ()
    captions: dict[str | None, list[str]] = field(default_factory=dict)
    splits: dict[str | None, set[str | None]] = field(default_factory=dict)
    source_ids: dict[str, str] = field(default_factory=dict)
    photos: dict[str, Photo] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return sorted((problem.name, problem.reason) for problem in self.problems)


def read(root: Path, layout: str = "auto", only: Sequence[str] = ()) -> Read:
    files = scan(root, only)
    detected = detect(files, layout)
    found = Read(detected.layout, detected.also_fit)
    for item in read_layout(files, detected, root.parent / "packs", MAX_BYTES):
        if isinstance(item, Photo):
            found.photos[item.path] = item
        elif isinstance(item, Problem):
            found.problems.append(item)
        elif isinstance(item, Entry):
            found.captions.setdefault(item.photo, []).extend(text for _, text in item.captions)
            found.splits.setdefault(item.photo, set()).add(item.split)
            if item.photo and item.source_id:
                found.source_ids[item.photo] = item.source_id
    return found


def bytes_of(root: Path, told: Photo) -> bytes:
    """A photograph's bytes as its address says: the file, or a part of the container."""
    if told.container is None:
        return (root / told.path).read_bytes()
    data = (root / told.container).read_bytes()
    return data[told.offset or 0 :][: told.size]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty data set."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    return folder


# ---- which one ----


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
    assert (found.layout, found.also_fit) == ("coco", ("kaggle", "webdataset"))
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


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("val2017", "dev"),
        ("images/train2014", "train"),
        ("validation/test.jpg", "dev"),
        ("my_test_images", "test"),
        ("contest/trainer", None),
    ],
)
def test_split_words_in_a_path(path: str, split: str | None) -> None:
    assert split_in(path) == split


def test_a_files_own_name_tells_its_split_before_its_folder_does() -> None:
    assert split_of_file("test/train-00000-of-00002.parquet") == "train"
    assert split_of_file("test/00000.parquet") == "test"


# ---- the files ----


def test_hidden_files_and_mac_folders_are_passed_over(root: Path) -> None:
    put(
        root,
        **{"a.jpg": photo(), "._a.jpg": b"x", ".git/b.jpg": b"x", "__MACOSX/a.jpg": b"x", "c/.d/e.jpg": b"x"},
    )
    found = read(root)
    assert (list(found.photos), found.problems) == (["a.jpg"], [])


def test_links_and_odd_files_cost_one_reject_each_and_never_block(root: Path, tmp_path: Path) -> None:
    put(tmp_path, **{"secret.jpg": photo(9)})
    put(root, **{"a.jpg": photo(), "folder.jpg/inside.png": photo(1, "PNG")})
    (root / "inside.jpg").symlink_to("a.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "up").symlink_to(tmp_path, target_is_directory=True)
    (root / "again").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "captions.txt")
    (root / "latin\udce9.jpg").write_bytes(photo(2))
    found = read(root)
    assert sorted(found.photos) == ["a.jpg", "folder.jpg/inside.png", "inside.jpg"]
    assert found.reasons == [
        ("captions.txt", "unreadable"),
        ("folder.jpg", "unreadable"),
        ("gone.jpg", "vanished"),
        ("latin\\udce9.jpg", "bad_name"),
        ("loop.jpg", "unreadable"),
        ("out.jpg", "outside_dataset"),
        ("pipe.jpg", "unreadable"),
        ("up", "outside_dataset"),
    ]


def test_a_photograph_that_cannot_be_read_is_not_reported_missing_as_well(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    put(root, **{"captions.txt": "image,caption\npipe.jpg,A pipe\n"})
    found = read(root)
    assert found.reasons == [("pipe.jpg", "unreadable")]
    assert found.captions == {None: ["A pipe"]}


def test_names_are_found_in_any_folder_in_any_case_and_composed_or_not(root: Path) -> None:
    put(root, **{"x/A.JPG": photo(), "y/cafe\u0301.jpg": photo(1), "z/d.png": photo(2, "PNG")})
    put(root, **{"captions.txt": "image,caption\na.jpg,One\ncaf\u00e9.jpg,Two\nsome\\where\\d.png,Three\n"})
    assert read(root).captions == {"x/A.JPG": ["One"], "y/cafe\u0301.jpg": ["Two"], "z/d.png": ["Three"]}


def test_a_photograph_without_an_ending_is_one_where_the_data_set_names_it(root: Path) -> None:
    put(root, **{"images/0001": photo(), "captions.csv": "image,caption\n0001,One\n"})
    found = read(root)
    assert (list(found.photos), found.captions) == (["images/0001"], {"images/0001": ["One"]})


def test_among_files_of_one_name_the_folder_decides_and_none_is_guessed(root: Path) -> None:
    put(
        root,
        **{f"{i}/image.jpg": photo(i) for i in range(3)} | {"thumbs/a.jpg": photo(7), "full/a.jpg": photo(8)},
    )
    names = ["images/1/image.jpg", "9/image.jpg", "a.jpg"]
    put(root, **{"captions.txt": "image,caption\n" + "".join(f"{name},{name[0]}\n" for name in names)})
    found = read(root)
    assert found.captions == {"1/image.jpg": ["i"], None: ["9"], "full/a.jpg": ["a"]}
    assert found.reasons == [("9/image.jpg", "missing_photo")]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hosts", "images/../../secret.jpg", "C:\\secret.jpg"])
def test_a_name_that_leaves_the_data_set_is_refused_and_its_caption_kept(root: Path, name: str) -> None:
    put(root.parent, **{"secret.jpg": photo()})
    put(root, **{"a.jpg": photo(1), "captions.txt": f"image,caption\n{name},One\n{name},Two\na.jpg,Three\n"})
    found = read(root)
    assert found.reasons == [(name, "outside_dataset")]
    assert found.captions == {None: ["One", "Two"], "a.jpg": ["Three"]}


def test_a_file_that_has_become_a_pipe_since_is_not_waited_for(root: Path) -> None:
    files = scan(put(root, **{"a.txt": "One"}))
    (root / "a.txt").unlink()
    os.mkfifo(root / "a.txt")
    with pytest.raises(OSError, match="not a regular file"):
        files.read_text("a.txt")


# ---- flickr8k ----


def test_flickr8k_with_its_lists(root: Path) -> None:
    put(
        root,
        **{
            "Flicker8k_Dataset/a.jpg": photo(),
            "Flicker8k_Dataset/b.jpg": photo(1),
            "text/Flickr8k.token.txt": "a.jpg#0\tA dog\u2028runs .\r\na.jpg#1\tTwo\r\n"
            "b.jpg#0\tThree\r\ngone.jpg#0\tFour\r\n",
            "text/Flickr_8k.trainImages.txt": "a.jpg\n",
            "text/Flickr_8k.devImages.txt": "gone.jpg\nlost.jpg\n",
            "text/Flickr_8k.testImages.txt": "b.jpg\n",
        },
    )
    found = read(root)
    a, b = "Flicker8k_Dataset/a.jpg", "Flicker8k_Dataset/b.jpg"
    assert found.captions == {a: ["A dog\u2028runs .", "Two"], b: ["Three"], None: ["Four"]}
    assert found.splits == {a: {"train"}, b: {"test"}, None: {"dev"}}
    assert found.reasons == [("gone.jpg", "missing_photo"), ("lost.jpg", "missing_photo")]


def test_flickr8k_without_lists_and_with_malformed_lines(root: Path) -> None:
    lines = (
        b"\xef\xbb\xbfa.jpg#0\tOne\nno tab here\na.jpg\tno number\n\na.jpg#1\tcaf\xe9\n"
        + b"a.jpg#1\t"
        + b"x" * 2**21
        + b"\na.jpg#2\tLast"
    )
    put(root, **{"a.jpg": photo(), "Flickr8k.token.txt": lines})
    found = read(root)
    assert found.captions == {"a.jpg": ["One", "caf\udce9", "Last"]}
    assert found.splits == {"a.jpg": {None}}
    assert found.reasons == [(f"Flickr8k.token.txt:{line}", "malformed") for line in (2, 3, 6)]


# ---- kaggle ----


def test_kaggle_captions_with_commas_and_quotes_in_either_form(root: Path) -> None:
    lines = [
        "image,caption",
        "a.jpg,A dog, a cat and a bird .",  # commas, not quoted
        '"a.jpg","A dog, a cat and ""Rex"" ."',  # as CSV has it
        'a.jpg,"""A boy"" , he said ."',
        'a.jpg,"Stop" is written on the sign',  # a quote, not CSV's
        'a.jpg,A sign that says "Stop"',
        'a.jpg,"Stop',  # never closed: costs nothing but itself
        "a.jpg,Next",
        'a.jpg,"over two',
        'lines"',
        "no comma",
        "a.jpg,",
    ]
    put(root, **{"Images/a.jpg": photo(), "captions.txt": "\ufeff" + "\r\n".join(lines)})
    found = read(root)
    assert found.captions["Images/a.jpg"] == [
        "A dog, a cat and a bird .",
        'A dog, a cat and "Rex" .',
        '"A boy" , he said .',
        '"Stop" is written on the sign',
        'A sign that says "Stop"',
        '"Stop',
        "Next",
        "over two\nlines",
        "",
    ]
    assert found.reasons == [("captions.txt:11", "malformed")]


def test_flickr30k_of_kaggle_has_a_number_between_two_bars(root: Path) -> None:
    lines = "image_name| comment_number| comment\na.jpg| 0| Two men | one woman .\n"
    lines += "a.jpg| 4   A dog runs .\na.jpg| x\n"
    put(root, **{"a.jpg": photo(), "results.csv": lines})
    found = read(root)
    assert found.captions == {"a.jpg": ["Two men | one woman .", "A dog runs ."]}
    assert found.reasons == [("results.csv:4", "malformed")]


SENTENCES = st.lists(
    st.text(
        st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), min_size=1, max_size=40
    ).filter(str.strip),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SENTENCES)
def test_whatever_a_csv_writer_quotes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("kaggle")
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["image", "caption"], *(["a.jpg", text] for text in texts)])
    put(root, **{"a.jpg": photo(), "captions.txt": buffer.getvalue()})
    found = read(root)
    strip = [" ".join(text.split()) for text in found.captions["a.jpg"]]
    assert strip == [" ".join(text.split()) for text in texts]
    assert found.problems == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SENTENCES)
def test_whatever_stands_unquoted_on_a_line_is_read_as_it_stands(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("kaggle")
    texts = [text.replace("\n", " ").strip() for text in texts]
    texts = [text for text in texts if not text.startswith('"') and text] or ["A dog"]
    put(
        root,
        **{
            "a.jpg": photo(),
            "captions.txt": "image,caption\n" + "".join(f"a.jpg,{text}\n" for text in texts),
        },
    )
    found = read(root)
    assert (found.captions["a.jpg"], found.problems) == (texts, [])


# ---- karpathy ----


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


# ---- coco ----


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


# ---- imagefolder ----


def test_imagefolder_with_a_metadata_file_a_split(root: Path) -> None:
    put(root, **{"train/x/a.jpg": photo(), "validation/b.png": photo(1, "PNG"), "test/c.jpg": photo(2)})
    put(
        root,
        **{"train/metadata.jsonl": '{"file_name": "x/a.jpg", "text": "One"}\n{"text": "?"}\nnonsense\n[]\n'},
    )
    put(root, **{"validation/metadata.jsonl": '{"file_name": "b.png", "captions": ["Two", "Three"]}\n'})
    put(
        root,
        **{"test/metadata.csv": 'file_name,caption\nc.jpg,"Four, ""five"""\ngone.jpg,Six\nc.jpg,too,many\n'},
    )
    found = read(root)
    assert found.captions == {
        "train/x/a.jpg": ["One"],
        "validation/b.png": ["Two", "Three"],
        "test/c.jpg": ['Four, "five"'],
        None: ["Six"],
    }
    assert found.splits == {
        "train/x/a.jpg": {"train"},
        "validation/b.png": {"dev"},
        "test/c.jpg": {"test"},
        None: {"test"},
    }
    assert found.reasons == [
        ("gone.jpg", "missing_photo"),
        ("test/metadata.csv:4", "malformed"),
        *((f"train/metadata.jsonl:{line}", "malformed") for line in (2, 3, 4)),
    ]


def test_metadata_at_the_root_names_folders_or_has_a_split_column(root: Path) -> None:
    put(root, **{"train/a.jpg": photo(), "test/b.jpg": photo(1), "c.jpg": photo(2)})
    rows = 'file_name,split,text\ntrain/a.jpg,,"[""One"", ""Two""]"\n'
    rows += "test/b.jpg,,[sic] Three\nc.jpg,validation,Four\n"
    put(root, **{"metadata.csv": rows})
    found = read(root)
    assert found.captions == {"train/a.jpg": ["One", "Two"], "test/b.jpg": ["[sic] Three"], "c.jpg": ["Four"]}
    assert found.splits == {"train/a.jpg": {"train"}, "test/b.jpg": {"test"}, "c.jpg": {"dev"}}


def test_a_quote_that_is_never_closed_does_not_swallow_the_next_rows(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1)})
    put(
        root,
        **{"metadata.csv": 'file_name,text\na.jpg,"broken\nb.jpg,"fine, really"\nb.jpg,"over\ntwo lines"\n'},
    )
    found = read(root)
    assert found.captions == {"a.jpg": ["broken"], "b.jpg": ["fine, really", "over\ntwo lines"]}


# ---- webdataset ----


def tar_of(*members: tuple[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_webdataset_shards_are_read_in_place(root: Path) -> None:
    first = tar_of(
        ("a/1.jpg", photo(1)), ("a/1.txt", "One"), ("a/1.json", '{"caption": "One", "width": 8}'),
        ("2.PNG", photo(2, "PNG")), ("2.json", '{"captions": ["Two", "Three"], "key": "2"}'),
        ("4.jpg", photo(5)), ("4.json", '{"text": "Seven"}'), ("4.txt", "Seven\nEight"),
        ("3.webp", photo(3, "WEBP")), ("3.cls", "7"), ("._3.webp", b"x"), ("__MACOSX/3.webp", b"x"),
    )  # fmt: skip
    put(root, **{"flickr-train-0000.tar": first})
    put(
        root,
        **{
            "flickr-val-0000.tar": tar_of(("1.jpg", photo(4)), ("1.txt", "Four\nFive\n"), ("lone.txt", "Six"))
        },
    )
    found = read(root)
    train, val = "flickr-train-0000.tar", "flickr-val-0000.tar"
    assert found.captions == {
        f"{train}/a/1.jpg": ["One"],
        f"{train}/2.PNG": ["Two", "Three"],
        f"{train}/3.webp": [],
        f"{train}/4.jpg": ["Seven", "Eight"],
        f"{val}/1.jpg": ["Four", "Five"],
        None: ["Six"],
    }
    assert found.splits[f"{train}/2.PNG"] == {"train"}
    assert found.splits[f"{val}/1.jpg"] == {"dev"}
    assert found.reasons == [(f"{val}/lone", "missing_photo")]
    contents = {path: bytes_of(root, told) for path, told in found.photos.items()}
    assert contents[f"{train}/2.PNG"] == photo(2, "PNG")
    assert contents[f"{val}/1.jpg"] == photo(4)


def test_a_key_ends_at_the_first_dot_of_the_name_not_of_the_folder(root: Path) -> None:
    members = [("v1.0/x.left.jpg", photo(1)), ("v1.0/x.right.jpg", photo(2)), ("v1.0/x.left.txt", "Left")]
    members += [("v1.0/y.jpg", photo(3)), ("v1.0/y.mask.png", photo(4, "PNG")), ("v1.0/y.txt", "Whole")]
    put(root, **{"0.tar": tar_of(*members)})
    assert read(root).captions == {
        "0.tar/v1.0/x.left.jpg": ["Left"],
        "0.tar/v1.0/x.right.jpg": [],
        "0.tar/v1.0/y.jpg": ["Whole"],
        "0.tar/v1.0/y.mask.png": [],
    }


def test_photographs_and_texts_of_a_tar_need_not_stand_together(root: Path) -> None:
    put(
        root,
        **{"0.tar": tar_of(("1.txt", "One"), ("2.txt", "Two"), ("1.jpg", photo(1)), ("2.jpg", photo(2)))},
    )
    assert read(root).captions == {"0.tar/1.jpg": ["One"], "0.tar/2.jpg": ["Two"]}


def test_hostile_members_of_a_tar_cost_one_reject_each(root: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape") as tar:
        for kind, name in [
            (tarfile.SYMTYPE, "link.jpg"),
            (tarfile.LNKTYPE, "hard.jpg"),
            (tarfile.CHRTYPE, "device.jpg"),
            (tarfile.FIFOTYPE, "pipe.jpg"),
            (tarfile.DIRTYPE, "folder.jpg"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        names = [
            "/etc/abs.jpg",
            "../up.jpg",
            "x/../../up2.jpg",
            "latin\udce9.jpg",
            "ok.jpg",
            "ok.jpg",
            "big.jpg",
        ]
        for seed, name in enumerate(names):
            data = b"x" * (MAX_BYTES + 1) if name == "big.jpg" else photo(seed)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("device.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"One"))
    put(root, **{"0.tar": buffer.getvalue()})
    found = read(root)
    assert list(found.photos) == ["0.tar/ok.jpg"]
    assert found.captions == {"0.tar/ok.jpg": [], None: ["One"]}  # its photograph is not missed as well
    assert found.reasons == sorted(
        [(f"0.tar/{kind}.jpg", "unreadable") for kind in ("link", "hard", "device", "pipe", "folder")]
        + [("0.tar//etc/abs.jpg", "outside_dataset"), ("0.tar/../up.jpg", "outside_dataset")]
        + [("0.tar/../up2.jpg", "outside_dataset"), ("0.tar/latin\\udce9.jpg", "bad_name")]
        + [("0.tar/ok.jpg", "malformed"), ("0.tar/big.jpg", "too_many_bytes")]
    )


def cut_in_data(tar: bytes) -> bytes:
    return tar[: 512 + 512 * 2 + 512 + 100]  # in the data of the second member


def damage_header(tar: bytes) -> bytes:
    second = 512 * (1 + -(-len(photo(1)) // 512))
    return tar[:second] + b"\xff" * 512 + tar[second + 512 :]


@pytest.mark.parametrize(
    ("damage", "kept", "reasons"),
    [
        (cut_in_data, ["0.tar/1.jpg"], [("0.tar", "malformed"), ("0.tar/2.jpg", "truncated")]),
        (damage_header, ["0.tar/1.jpg"], [("0.tar", "malformed")]),
        (lambda tar: b"\x1f\x8b\x08" + tar, [], [("0.tar", "malformed")]),
        (lambda tar: b"", [], [("0.tar", "malformed")]),
        (lambda tar: tar[:300], [], [("0.tar", "malformed")]),
    ],
)
def test_of_a_damaged_tar_what_comes_before_is_kept(
    root: Path, damage: Callable[[bytes], bytes], kept: list[str], reasons: list[tuple[str, str]]
) -> None:
    assert 512 < len(photo(1)) <= 1024  # or the places above are others
    tar = tar_of(("1.jpg", photo(1)), ("2.jpg", photo(2)), ("3.jpg", photo(3)))
    put(root, **{"0.tar": damage(tar), "1.tar": tar_of(("4.jpg", photo(4)))})
    found = read(root)
    assert sorted(found.photos) == [*kept, "1.tar/4.jpg"]
    assert found.reasons == reasons


def test_a_tar_whose_members_lead_back_ends(root: Path) -> None:
    tar = bytearray(tar_of(("1.jpg", photo(1)), ("2.jpg", photo(2))))
    at = 512 * (1 + -(-len(photo(1)) // 512))  # the second header
    header = tarfile.TarInfo.frombuf(bytes(tar[at : at + 512]), "utf-8", "strict")
    header.size = -512  # back to itself
    tar[at : at + 512] = header.tobuf(tarfile.GNU_FORMAT)
    found = read(put(root, **{"0.tar": bytes(tar)}))
    assert list(found.photos) == ["0.tar/1.jpg"]
    assert ("0.tar", "malformed") in found.reasons


# ---- parquet ----


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


def test_a_pack_is_made_once_and_again_when_it_is_damaged(root: Path) -> None:
    pq.write_table(
        pa.table({"image": [photo(1), photo(2), photo(1)], "text": ["x", "y", "z"]}), root / "t.parquet"
    )
    address = read(root).photos["t.parquet/row-1"]
    pack = Path(address.container or "")
    assert pack.stat().st_size == len(photo(1)) + len(photo(2))
    made = pack.stat().st_mtime_ns, pack.stat().st_ino
    assert read(root).photos["t.parquet/row-1"] == address
    assert (pack.stat().st_mtime_ns, pack.stat().st_ino) == made
    pack.write_bytes(b"cut")
    assert bytes_of(root, read(root).photos["t.parquet/row-1"]) == photo(2)
    pack.with_suffix(".npy").write_bytes(b"")
    assert bytes_of(root, read(root).photos["t.parquet/row-1"]) == photo(2)
    assert sorted(path.suffix for path in pack.parent.iterdir()) == [".npy", ".pack"]


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


# ---- folder ----


def test_a_bare_folder_with_and_without_captions_beside(root: Path) -> None:
    put(
        root,
        **{"a.JPG": photo(), "a.txt": "\ufeffOne\r\n\r\nTwo\x0bstill two\n", "sub/b.png": photo(1, "PNG")},
    )
    put(
        root,
        **{
            "gone.txt": "Three",
            "README.txt": "not a caption",
            "sub/notes.txt": "no pair here",
            "e.webp": b"",
            "e.txt": "",
        },
    )
    found = read(root)
    assert found.captions == {
        "a.JPG": ["One\r", "Two\x0bstill two"],
        "sub/b.png": [],
        "e.webp": [""],
        None: ["Three"],
    }
    assert found.reasons == [("gone", "missing_photo")]


def test_a_text_beside_two_photographs_is_the_firsts(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "a.png": photo(1, "PNG"), "a.txt": "One"})
    assert read(root).captions == {"a.jpg": ["One"], "a.png": []}


def test_folders_named_as_splits_tell_them(root: Path) -> None:
    put(root, **{"train/a.jpg": photo(), "train/a.txt": "One", "test/b.jpg": photo(1)})
    assert read(root).splits == {"train/a.jpg": {"train"}, "test/b.jpg": {"test"}}


def test_a_text_as_large_as_no_caption_is_refused_unread(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "a.txt": b"x" * (17 * 2**20)})
    found = read(root)
    assert found.reasons == [("a.txt", "unreadable")]
    assert found.captions == {"a.jpg": []}


# ---- some files of a folder ----


def test_only_the_files_and_folders_that_are_meant_are_read_and_none_twice(root: Path) -> None:
    put(
        root,
        **{
            name: photo() for name in ("a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg", "z/e.jpg", "x.txt", ".f.jpg")
        },
    )
    (root / "gone.jpg").symlink_to("nowhere")
    found = read(root, only=["a.jpg", "x", "x/y", "x/c.jpg", "x.txt", ".f.jpg"])
    assert list(found.photos) == [".f.jpg", "a.jpg", "x.txt", "x/c.jpg", "x/y/d.jpg"]
    assert found.problems == []
    assert list(read(root, only=["."]).photos) == ["a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg", "z/e.jpg"]


def test_of_a_manifest_only_the_photographs_that_it_names_are_read(root: Path) -> None:
    put(root, **{name: photo() for name in ("a.jpg", "b.jpg", "x/c.jpg", "z/e.jpg", "captions.txt")})
    (root / "gone.jpg").symlink_to("nowhere")
    (root / "other.jpg").symlink_to("nowhere")
    names = ["x/c.jpg", "gone.jpg", "missing.jpg", str(root / "a.jpg"), "../out.jpg"]
    pq.write_table(pa.table({"path": names}), root / "some.parquet")
    found = read(root, only=["some.parquet", "z"])
    assert (found.layout, sorted(found.photos)) == ("parquet", ["a.jpg", "x/c.jpg", "z/e.jpg"])
    assert found.reasons == [
        ("../out.jpg", "outside_dataset"),
        ("gone.jpg", "vanished"),
        ("missing.jpg", "missing_photo"),
    ]
    assert read(root).layout == "folder"  # a table of names alone makes no data set
