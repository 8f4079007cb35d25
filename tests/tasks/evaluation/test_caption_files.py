"""Captions are scored as ingest reads them, whatever file they stand in, and a bad file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from cutline.schemas.errors import UsageError
from cutline.tasks.evaluation.caption_files import Pair, read_captions, read_pair
from cutline.tasks.evaluation.caption_metrics import score
from tests.support.datasets import photo, put, read

CAPTION = 'A dog, "Rex", runs'


def write(path: Path, content: object) -> Path:
    if isinstance(content, pl.DataFrame):
        content.write_csv(path) if path.suffix == ".csv" else content.write_parquet(path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


PREDICTIONS = {
    "ours.parquet": pl.DataFrame({"path": ["shots/12.jpg"], "caption": [CAPTION], "score": [-0.5]}),
    "ours.csv": pl.DataFrame({"path": ["shots/12.jpg"], "caption": [CAPTION]}),
    "ours.jsonl": json.dumps({"photo_id": "ab", "path": "a\\12.jpg", "caption": CAPTION}) + "\n\n",
    "coco.json": [{"image_id": 12, "caption": CAPTION}],
}
TABLE = pl.DataFrame({"file_name": ["12.jpg", "12.jpg", "34.jpg"], "text": [CAPTION, "Two", "Three"]})
REFERENCES = {
    "captions_val.json": {
        "images": [{"id": 12, "file_name": "12.jpg"}, {"id": 34, "file_name": "34.jpg"}],
        "annotations": [
            {"id": n, "image_id": image, "caption": text}
            for n, (image, text) in enumerate([(12, CAPTION), (12, "Two"), (34, "Three")])
        ],
    },
    "dataset_x.json": {
        "images": [
            {"filename": "12.jpg", "cocoid": 12, "sentences": [{"raw": CAPTION}, {"raw": "Two"}]},
            {"filename": "34.jpg", "cocoid": 34, "sentences": [{"raw": "Three"}]},
        ]
    },
    "Flickr8k.token.txt": f"12.jpg#0\t{CAPTION}\n12.jpg#1\tTwo\n34.jpg#0\tThree\n",
    "captions.txt": f'image,caption\n12.jpg,{CAPTION}\n12.jpg,"Two"\n34.jpg,Three\n',
    "table.csv": TABLE,
    "table.parquet": TABLE,
    "lists.parquet": pl.DataFrame({"image_id": [12, 34], "captions": [[CAPTION, "Two"], ["Three"]]}),
    "metadata.jsonl": "\n".join(json.dumps(row) for row in TABLE.to_dicts()),
}


@pytest.mark.parametrize("known", REFERENCES)
@pytest.mark.parametrize("said", PREDICTIONS)
def test_predictions_meet_references_of_any_form(said: str, known: str, tmp_path: Path) -> None:
    (tmp_path / "said").mkdir()
    said_path = write(tmp_path / "said" / said, PREDICTIONS[said])
    predictions, references, _ = read_pair(said_path, write(tmp_path / known, REFERENCES[known]))
    (name,) = predictions
    assert predictions[name] == CAPTION
    assert references[name] == [CAPTION, "Two"]
    assert sorted(map(len, references.values())) == [1, 2]
    assert score(predictions, references, missing="skip")["Bleu_4"] == pytest.approx(1, abs=1e-6)


# As ingest detects them: name and content, and the captions of the photograph a.jpg.
FORMS = {
    "commas": (
        "captions.csv",
        'image,caption\na.jpg,a dog, a cat and a ball\na.jpg,"A ""big"" dog, running"\na.jpg,"No" sign\n',
        ["a dog, a cat and a ball", 'A "big" dog, running', '"No" sign'],
    ),
    "several lines": (
        "captions.txt",
        'image,caption\r\na.jpg,"A dog\r\nruns, and\r\n\r\nbarks"\r\na.jpg,"Never closed\r\na.jpg,Two\r\n',
        ["A dog\nruns, and\n\nbarks", '"Never closed', "Two"],
    ),
    "no heading": ("captions.txt", "a.jpg,a dog, a cat\na.jpg,Two\n", ["a dog, a cat", "Two"]),
    "bars": (
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| A dog, a man | a cat .\na.jpg| 4   Two .\n",
        ["A dog, a man | a cat .", "Two ."],
    ),
    "tabs": (
        "Flickr8k.token.txt",
        "\ufeffa.jpg#0\tA dog, running\r\na.jpg#1\tTwo\r\n",
        ["A dog, running", "Two"],
    ),
    "table": (
        "metadata.csv",
        'file_name,caption,caption_2\na.jpg,"A dog,\nrunning",Two\na.jpg,"[""Three"", ""Four""]",\n',
        ["A dog,\nrunning", "Two", "Three", "Four"],
    ),
    "records": (
        "metadata.jsonl",
        '{"photo_path": "a.jpg", "caption_1": "A dog", "caption_2": "Two", "caption_3": null}\n',
        ["A dog", "Two"],
    ),
    "karpathy": (
        "dataset_x.json",
        '{"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"tokens": ["a", "dog"]}, "Two"]}]}',
        ["a dog", "Two"],
    ),
    "coco": (
        "captions_val.json",
        '{"images": [{"id": 1, "file_name": "a.jpg"}],'
        ' "annotations": [{"image_id": 1, "caption": "A\\ndog"}]}',
        ["A\ndog"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_captions_are_scored_as_ingest_reads_them(form: str, tmp_path: Path) -> None:
    name, content, expected = FORMS[form]
    root = put(tmp_path / "set", **{"a.jpg": photo(), name: content})
    learned = [text for text in read(root).captions["a.jpg"] if text]
    scored = [(row.path, row.caption) for row in read_captions(root / name)]
    assert learned == expected
    assert scored == [("a.jpg", text) for text in expected]


def test_a_caption_with_an_unquoted_comma_is_never_scored_by_its_beginning(tmp_path: Path) -> None:
    known = write(tmp_path / "known.csv", "image,caption\na.jpg,a dog\n")
    kaggles = write(tmp_path / "kaggles.csv", "image,caption\na.jpg,a dog, a cat and a ball\n")
    assert read_pair(kaggles, known).said == {"a.jpg": "a dog, a cat and a ball"}
    table = write(tmp_path / "table.csv", "path,caption\nb.jpg,a cat\na.jpg,a dog, a cat and a ball\n")
    with pytest.raises(UsageError, match=r"table\.csv:3: expected 2 fields, found 3; .* stands in quotes"):
        read_pair(table, known)


@pytest.mark.parametrize("between", ["split", "image_id", "photo_id"])
def test_a_column_between_name_and_caption_that_says_something_is_read(between: str, tmp_path: Path) -> None:
    path = write(tmp_path / "said.csv", f'image,{between},caption\na.jpg,test,"a dog, a cat"\n')
    (row,) = read_captions(path)
    assert (row.path, getattr(row, between), row.caption) == ("a.jpg", "test", "a dog, a cat")


def test_captions_that_parquet_holds_as_bytes_and_splits_as_categories_are_read(tmp_path: Path) -> None:
    frame = pl.DataFrame({"path": ["a.jpg"], "split": ["test"], "caption": ["ein Hündchen".encode()]})
    path = write(tmp_path / "content_targets.parquet", frame.cast({"split": pl.Categorical}))
    (row,) = read_captions(path)
    assert (row.path, row.split, row.caption) == ("a.jpg", "test", "ein Hündchen")


def test_a_file_that_a_link_leads_to_is_read(tmp_path: Path) -> None:
    write(tmp_path / "captions", "image,caption\na.jpg,a dog\n")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "captions.csv"
    link.symlink_to(tmp_path / "captions")
    assert [row.caption for row in read_captions(link)] == ["a dog"]


def test_cocos_zero_padded_file_names_are_its_numbers(tmp_path: Path) -> None:
    said = write(tmp_path / "said.json", [{"image_id": 139, "caption": "a room"}])
    known = pl.DataFrame({"path": ["val2014/COCO_val2014_000000000139.jpg"], "caption": ["A room"]})
    pair = read_pair(said, write(tmp_path / "known.csv", known))
    name = "val2014/COCO_val2014_000000000139.jpg"
    assert pair == ({name: "a room"}, {name: ["A room"]}, {})


def test_files_of_one_name_in_two_folders_are_never_mixed_up(tmp_path: Path) -> None:
    said = write(tmp_path / "said.csv", pl.DataFrame({"path": ["x/1.jpg"], "caption": ["a room"]}))
    known = write(
        tmp_path / "a.csv", pl.DataFrame({"path": ["a/1.jpg", "b/1.jpg"], "caption": ["one", "two"]})
    )
    with pytest.raises(UsageError, match="names in common"):
        read_pair(said, known)


# Names of predictions, names of references, and which of the references has a prediction.
PAIRED_NAMES: dict[str, tuple[list[str], list[str], set[str]]] = {
    "another folder's photograph of the same name": (
        ["cats/1.jpg", "cats/2.jpg", "dogs/3.jpg"],
        ["cats/1.jpg", "cats/2.jpg", "birds/3.jpg"],
        {"cats/1.jpg", "cats/2.jpg"},
    ),
    "another file of the same stem": (
        ["1.jpg", "2.png", "3.png"],
        ["1.jpg", "2.jpg", "3.jpg"],
        {"1.jpg"},
    ),
    "another file of the same number": (
        ["1.jpg", "007.jpg", "008.jpg"],
        ["1.jpg", "7.jpg", "8.jpg"],
        {"1.jpg"},
    ),
    "no exact match, and one folder differs": (
        ["/data/cats/1.jpg", "/data/dogs/3.jpg"],
        ["cats/1.jpg", "birds/3.jpg"],
        {"cats/1.jpg"},
    ),
    "folders below another root": (
        ["train/cats/1.jpg", "train/dogs/1.jpg"],
        ["val/cats/1.jpg", "val/dogs/1.jpg", "val/dogs/2.jpg"],
        {"val/cats/1.jpg", "val/dogs/1.jpg"},
    ),
    "paths of Windows": (["C:\\x\\a.jpg", "C:\\x\\b.jpg"], ["a.jpg", "c.jpg"], {"a.jpg"}),
    "no ending": (["cats/1", "dogs/2"], ["cats/1.jpg", "birds/2.jpg"], {"cats/1.jpg"}),
}


@pytest.mark.parametrize("case", PAIRED_NAMES)
def test_a_photograph_is_scored_against_its_own_references_alone(case: str, tmp_path: Path) -> None:
    said_names, known_names, expected = PAIRED_NAMES[case]
    said = pl.DataFrame({"path": said_names, "caption": [f"said of {name}" for name in said_names]})
    known = pl.DataFrame({"path": known_names, "caption": [f"known of {name}" for name in known_names]})
    pair = read_pair(write(tmp_path / "said.csv", said), write(tmp_path / "known.csv", known))
    assert pair.said.keys() & pair.known.keys() == expected
    assert set(pair.known) == set(known_names)
    assert len(pair.said) == len(said_names)


def test_photographs_of_different_folders_are_never_paired_by_number_alone(tmp_path: Path) -> None:
    said = pl.DataFrame({"path": ["cats/1.jpg", "dogs/2.jpg"], "caption": ["a cat", "a dog"]})
    known = pl.DataFrame({"path": ["birds/1.jpg", "cows/2.jpg"], "caption": ["a bird", "a cow"]})
    with pytest.raises(UsageError, match="names in common"):
        read_pair(write(tmp_path / "said.csv", said), write(tmp_path / "known.csv", known))


def test_names_without_a_match_are_shown_from_both_files(tmp_path: Path) -> None:
    said = write(tmp_path / "said.csv", pl.DataFrame({"path": ["dog_1.jpg"], "caption": ["a dog"]}))
    known = write(tmp_path / "known.csv", pl.DataFrame({"path": ["cat_1.jpg"], "caption": ["a cat"]}))
    with pytest.raises(
        UsageError, match=r"path 'dog_1.jpg' in .*said.csv and path 'cat_1.jpg' in .*known.csv"
    ):
        read_pair(said, known)


SPLITS = ["train", "train", "dev", "test", "test"]


@pytest.fixture(params=["content_targets.parquet", "said.jsonl", "said.csv"])
def of_splits(tmp_path: Path, request: pytest.FixtureRequest) -> Pair:
    """Captions of five photographs as a run writes them; one more has references and no caption."""
    names = [f"{place}.jpg" for place in range(5)]
    said = pl.DataFrame({"path": names, "split": SPLITS, "caption": [f"a dog {name}" for name in names]})
    path = tmp_path / request.param
    said.write_ndjson(path) if path.suffix == ".jsonl" else write(path, said)
    known = pl.DataFrame({"path": [*names, "rejected.jpg"], "caption": "A dog"})
    return read_pair(path, write(tmp_path / "known.csv", known))


def test_photographs_of_one_split_are_scored_alone(of_splits: Pair) -> None:
    pair = of_splits.of("test")
    assert list(pair.said) == ["3.jpg", "4.jpg"]
    assert list(pair.known) == ["3.jpg", "4.jpg", "rejected.jpg"]
    assert (of_splits.learned, pair.learned) == (2, 0)


def test_a_split_that_no_prediction_is_of_is_refused(of_splits: Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--split tset: expected .* found dev, test, train"):
        of_splits.of("tset")
    plain = write(tmp_path / "plain.csv", pl.DataFrame({"path": ["1.jpg"], "caption": ["a dog"]}))
    with pytest.raises(UsageError, match=r"--split test: expected .* found no column 'split'"):
        read_pair(plain, plain).of("test")


def test_two_predictions_for_one_photograph_are_refused(tmp_path: Path) -> None:
    known = write(tmp_path / "known.json", [{"image_id": 1, "caption": "one"}])
    twice = [{"image_id": 1, "caption": "one"}, {"image_id": 1, "caption": "two"}]
    with pytest.raises(
        UsageError, match="expected one caption a photograph, found two of '1': 'one' and 'two'"
    ):
        read_pair(write(tmp_path / "said.json", twice), known)


def test_a_prediction_without_a_caption_is_an_empty_one(tmp_path: Path) -> None:
    said = pl.DataFrame({"image_id": [1, 2], "caption": ["a dog", None]})
    known = pl.DataFrame({"image_id": [1, 2], "caption": ["a dog", "a cat"]})
    predictions, references, _ = read_pair(
        write(tmp_path / "content_targets.parquet", said), write(tmp_path / "known.parquet", known)
    )
    assert predictions == {"1": "a dog", "2": ""}
    assert score(predictions, references)["ROUGE_L"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.json", '[{"image_id": 1, "caption"'),
        ("broken.jsonl", '{"image_id": 1}\n'),
        ("number.json", "12"),
        ("strings.json", '["a", "b"]'),
        ("object.json", '{"images": 3}'),
        ("deep.json", "[" * 100_000),
        ("caption.json", '[{"image_id": 1, "caption": 5}]'),
        ("columns.csv", "who,what\nme,this\n"),
        ("empty.csv", ""),
        ("empty.json", "[]"),
        ("empty.txt", ""),
        ("lines.txt", "image,caption\nno comma here\n"),
        ("text.parquet", "this is no Parquet"),
        ("photo.jpg", "not captions"),
        ("latin.csv", b"path,caption\n1.jpg,caf\xe9\n"),
        ("latin.json", b'[{"image_id": 1, "caption": "caf\xe9"}]'),
        ("true.json", '[{"image_id": true, "caption": "a dog"}]'),  # that is not image 1
        ("number.token", "1.jpg#0\tOne\n1.jpg\tTwo\n"),
        ("fields.csv", "path,caption,score\n1.jpg,One,0.5\n1.jpg,Two\n"),
    ],
)
def test_a_file_of_no_known_form_is_refused(name: str, content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=rf"{name}: expected captions as \.parquet"):
        read_captions(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the file in it"):
        read_captions(tmp_path)
    with pytest.raises(UsageError, match=r"absent\.json"):
        read_captions(tmp_path / "absent.json")
