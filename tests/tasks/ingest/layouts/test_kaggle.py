"""Tables of names and captions are read with any separator, quoted or not."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.datasets import photo, put, read


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
