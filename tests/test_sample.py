"""The sample data set is what its generator makes, and holds what its README says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from cutline.schemas.errors import BadPhoto
from cutline.schemas.settings import IngestSettings
from cutline.tasks.images.headers import read_header
from tests import REPOSITORY

SAMPLE = REPOSITORY / "data" / "sample"


def names(split: str, folder: Path = SAMPLE) -> list[str]:
    return (folder / f"Flickr_8k.{split}Images.txt").read_text().split()


def captions() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SAMPLE / "Flickr8k.token.txt").read_text().splitlines():
        name, _, text = re.fullmatch(r"([^#]+)#(\d)\t(.*)", line).groups()
        found.setdefault(name, []).append(text)
    return found


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_sample", SAMPLE / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_generator_makes_the_same_captions_and_pictures_again(
    generator: ModuleType, tmp_path: Path
) -> None:
    generator.generate(tmp_path, seed=1)
    for text in SAMPLE.glob("*.txt"):
        assert (tmp_path / text.name).read_bytes() == text.read_bytes()
    shipped = sorted(path.name for path in (SAMPLE / "images").iterdir())
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == shipped
    for name in shipped:
        ours, again = ((folder / "images" / name).read_bytes() for folder in (SAMPLE, tmp_path))
        if name.startswith("bad_"):
            assert again == ours or name == "bad_truncated.jpg"
            continue
        ours_bgr, again_bgr = (cv2.imdecode(np.frombuffer(data, np.uint8), 1) for data in (ours, again))
        assert np.array_equal(ours_bgr, again_bgr), name


def test_another_seed_makes_another_data_set(generator: ModuleType, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generator, "SPLITS", {"train": 3, "dev": 1, "test": 1})
    generator.generate(tmp_path, seed=2)
    text = (tmp_path / "Flickr8k.token.txt").read_text()
    assert text.splitlines()[0] not in (SAMPLE / "Flickr8k.token.txt").read_text()


def test_the_sample_is_small_and_split_as_its_readme_says() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 2.5 * 2**20
    scenes = {
        split: [n for n in names(split) if n.startswith("scene_")] for split in ("train", "dev", "test")
    }
    assert {split: len(found) for split, found in scenes.items()} == {"train": 200, "dev": 50, "test": 50}
    assert len({n for found in scenes.values() for n in found}) == 300


def test_every_scene_has_five_different_captions_of_a_sentence_each() -> None:
    for name, texts in captions().items():
        sentences = [text for text in texts if text and "long caption" not in text]
        assert len(sentences) == len(set(sentences)) == 5, name
        assert all(re.fullmatch(r"[A-Z][a-z]*( [a-z]+){2,} \.", text) for text in sentences), name


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bad_empty", "empty_file"), ("bad_text", "not_an_image"), ("bad_huge", "too_many_pixels")],
)
def test_bad_files_are_rejected_for_the_reason_that_the_readme_names(name: str, reason: str) -> None:
    assert re.search(rf"`{name}.jpg` .*reject `{reason}`", (SAMPLE / "README.md").read_text())
    with pytest.raises(BadPhoto) as rejected:
        read_header((SAMPLE / "images" / f"{name}.jpg").read_bytes(), IngestSettings().max_pixels)
    assert rejected.value.reason == reason


def test_what_is_bad_on_purpose_is_there() -> None:
    images = SAMPLE / "images"
    assert (images / "bad_empty.jpg").stat().st_size == 0
    assert (images / "bad_text.jpg").read_bytes().isascii()
    assert not (images / "bad_truncated.jpg").read_bytes().endswith(b"\xff\xd9")
    header = (images / "bad_huge.jpg").read_bytes()
    assert [int.from_bytes(header[i : i + 4]) for i in (16, 20)] == [60_000, 60_000]
    assert (images / "png_by_content.jpg").read_bytes().startswith(b"\x89PNG")
    assert (images / "leak.jpg").read_bytes() == (images / "scene_0001.jpg").read_bytes()
    assert "leak.jpg" in names("test")
    assert "scene_0001.jpg" in names("train")
    assert captions()["scene_0002.jpg"][5] == ""
    assert len(captions()["scene_0003.jpg"][5].split()) == 300
    here = {path.name for path in images.iterdir()}
    assert len(set(captions()) - here) == 8
    assert {name for name in here if name not in captions()} == {f"unlabelled_{i}.jpg" for i in (1, 2, 3)}
    listed = {name for split in ("train", "dev", "test") for name in names(split)}
    assert {name for name in here if name.startswith("bad_")} < listed
