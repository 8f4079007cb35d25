"""Layouts with captions in text files are read as their makers write them; what is odd costs only itself."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.datasets import photo, put, read

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
    assert found.missing == {"gone.jpg": ["Four"]}
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


def test_a_column_of_splits_between_name_and_caption_is_believed_and_a_wrong_word_is_a_reject(
    root: Path,
) -> None:
    put(root, **{f"{name}.jpg": photo(number) for number, name in enumerate("abc")})
    lines = ["image,split,caption", "a.jpg,test,A dog, that runs", 'b.jpg,"val","A ""cat"""', "c.jpg,later,A"]
    put(root, **{"captions.txt": "\n".join(lines)})
    found = read(root)
    assert found.captions == {"a.jpg": ["A dog, that runs"], "b.jpg": ['A "cat"']}
    assert found.splits == {"a.jpg": {"test"}, "b.jpg": {"dev"}}
    assert found.reasons == [("captions.txt:4", "malformed")]


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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    assert found.missing == {"test/gone.jpg": ["Six"]}
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
        "a.JPG": ["One", "Two\x0bstill two"],
        "sub/b.png": [],
        "e.webp": [""],
        None: ["Three"],
    }
    assert found.missing == {"gone": ["Three"]}
    assert found.reasons == [
        ("README.txt", "not_read"),
        ("gone", "missing_photo"),
        ("sub/notes.txt", "not_read"),
    ]


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


def test_lines_may_end_as_on_an_old_mac(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1), "Flickr8k.token.txt": "a.jpg#0\tOne\rb.jpg#0\tTwo\r"})
    assert read(root).captions == {"a.jpg": ["One"], "b.jpg": ["Two"]}
    put(root, **{"Flickr8k.token.txt": b"image,caption\ra.jpg,Three\r", "sub/c.jpg": photo(2)})
    (root / "Flickr8k.token.txt").rename(root / "captions.txt")
    assert read(root).captions == {"a.jpg": ["Three"]}
    (root / "captions.txt").unlink()
    put(root, **{"sub/c.txt": "Four\rFive"})
    assert read(root).captions["sub/c.jpg"] == ["Four", "Five"]


def test_a_split_that_is_none_costs_its_row_and_is_never_taken_for_training(root: Path) -> None:
    put(root, **{f"{name}.jpg": photo(number) for number, name in enumerate("abc")})
    rows = ["file_name,split,caption", "a.jpg, test,One", "b.jpg,holdout,Two", "c.jpg,,Three"]
    put(root, **{"metadata.csv": "\n".join(rows)})
    found = read(root)
    assert found.captions == {"a.jpg": ["One"], "c.jpg": ["Three"]}
    assert found.splits == {"a.jpg": {"test"}, "c.jpg": {None}}
    assert found.reasons == [("metadata.csv:3", "malformed")]
    assert "found 'holdout'" in found.problems[0].detail


def test_two_columns_of_one_name_are_both_read(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "metadata.csv": "file_name,caption,caption\na.jpg,One,Two"})
    assert read(root).captions == {"a.jpg": ["One", "Two"]}


def test_an_image_id_of_true_is_not_that_of_image_1(root: Path) -> None:
    images, one = [{"id": 1, "file_name": "a.jpg"}], {"image_id": True, "caption": "One"}
    put(root, **{"a.jpg": photo(), "captions_x.json": json.dumps({"images": images, "annotations": [one]})})
    assert read(root).reasons == [("captions_x.json: annotations[0]", "malformed")]
