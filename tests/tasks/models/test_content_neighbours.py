"""Neighbours: what is said of photographs like one that nobody has described."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.errors import StaleModel
from cutline.schemas.settings import PredictionsSettings
from cutline.tasks.decoding.captioner import Captioner
from cutline.tasks.models.content_neighbours import CONTENT_NEIGHBOURS, ContentNeighbours
from cutline.tasks.models.joint_embedding import unit
from cutline.tasks.storage.tables import tensor, tensor_column
from cutline.tasks.text.encoding import encode
from cutline.tasks.training import content_neighbours
from cutline.tasks.training.caption_groups import TrainedContent
from cutline.tasks.training.content_embedding import _weigh
from cutline.tasks.training.content_neighbours import find_content_neighbours
from tests.support.toys import (
    CHANNELS,
    DEV_PHOTOS,
    GIST_SETTINGS,
    LM_SETTINGS,
    PHOTOS_WITH_CAPTIONS,
    UNSEEN,
    expected_cider,
    ids,
    toy_captions,
    toy_image_features,
    toy_pairs,
    toy_vocabulary,
)
from tests.tasks.training.test_joint_embedding import a_joint_embedding


def some_content_neighbours(vectors: int, content_vectors: int, count: int = 40) -> ContentNeighbours:
    rng = np.random.default_rng(3)
    numbers = [
        rng.normal(size=(count, size)).astype(np.float32)
        for size in (vectors, content_vectors, content_vectors)
    ]
    return ContentNeighbours(unit(numbers[0]), unit(numbers[1]), 2 * numbers[2])


def gists_of(name: str, content_vectors: dict[str, list[float]]) -> pl.DataFrame:
    values = np.array([*content_vectors.values()], np.float16).reshape(
        len(content_vectors), -1 if content_vectors else 1
    )
    return pl.DataFrame(
        [pl.Series(name, [*content_vectors], pl.String), tensor_column("content_vector", values)]
    )


def captions_of(*rows: tuple[str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, ["caption_id", "subject"], orient="row")


def test_the_nearer_a_neighbour_the_more_it_says_by_hand() -> None:
    """Cosines of vectors 1, 0.9 and 0, of content vectors 0, 0.6 and 0: the third is forgotten, and of the
    others the second is the likelier, by exp(16 × -0.1 + 8 × 0.6)."""
    vectors = np.array([[1, 0], [0.9, np.sqrt(0.19)], [0, 1]], np.float32)
    content_vectors = np.array([[0, 1], [0.6, 0.8], [0, -1]], np.float32)
    content_targets = np.array([[1, 0], [0, 1], [9, 9]], np.float32)
    photo, content_embedding = np.array([[1, 0]], np.float32), np.array([[5, 0]], np.float32)
    told = ContentNeighbours(vectors, content_vectors, content_targets).told(photo, content_embedding).numpy()
    share = 1 / (1 + exp(3.2))
    assert told == pytest.approx(np.array([[share, 1 - share]]), abs=1e-5)


def test_a_described_photograph_lies_amid_its_captions_and_says_what_they_say() -> None:
    place = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (-1.0, 0.0)}
    found = find_content_neighbours(
        captions_of(("a", "two"), ("c", "one"), ("b", "two")),
        gists_of("caption_id", {"b": [3, 4], "a": [3, 4], "c": [0, -2]}),
        gists_of("subject", {"two": [2, 2], "one": [1, 1]}),
        lambda rows: np.array([place[name] for name in rows["caption_id"]]),
    )
    assert found.vectors == pytest.approx(np.array([[-1, 0], [0.5**0.5, 0.5**0.5]]))
    assert found.content_vectors == pytest.approx(np.array([[0, -1], [0.6, 0.8]]), abs=1e-3)
    assert found.content_targets.tolist() == [[1, 1], [2, 2]]


def test_of_too_many_described_photographs_some_are_kept_with_all_their_captions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(content_neighbours, "MOST", 2)
    asked: list[str] = []

    def vectors_of(rows: pl.DataFrame) -> np.ndarray:
        asked.extend(rows["caption_id"])
        return np.ones((rows.height, 1))

    captions = captions_of(("3", "one"), ("9", "three"), ("1", "two"), ("8", "two"), ("5", "three"))
    content_from_text = gists_of("caption_id", {name: [1.0] for name in captions["caption_id"]})
    content_targets = gists_of("subject", {"one": [1], "two": [2], "three": [3]})
    found = find_content_neighbours(captions, content_from_text, content_targets, vectors_of)
    assert found.content_targets.ravel().tolist() == [1, 2]
    assert asked == ["1", "3", "8"]


def test_where_nothing_is_said_there_are_no_neighbours(tmp_path: Path) -> None:
    nothing = gists_of("caption_id", {}), gists_of("subject", {})
    none = find_content_neighbours(
        captions_of(("1", "one")), *nothing, lambda rows: np.ones((rows.height, 1))
    )
    none.save(tmp_path / CONTENT_NEIGHBOURS)
    assert not ContentNeighbours.load(tmp_path / CONTENT_NEIGHBOURS, 128, 0)


def test_the_file_holds_them_to_within_half_a_step(tmp_path: Path) -> None:
    some = some_content_neighbours(6, 3)
    some.save(tmp_path / CONTENT_NEIGHBOURS)
    again = ContentNeighbours.load(tmp_path / CONTENT_NEIGHBOURS, 6, 3)
    for name in ("vectors", "content_vectors", "content_targets"):
        before, after = getattr(some, name), getattr(again, name)
        assert (np.abs(after - before) <= np.abs(before).max(0) / 62 + 1e-6).all()


@pytest.mark.parametrize(
    "damage", ["cut off", "no zip", "other vectors", "other content vectors", "not finite"]
)
def test_a_file_that_holds_none_is_refused(tmp_path: Path, damage: str) -> None:
    path, some = tmp_path / CONTENT_NEIGHBOURS, some_content_neighbours(6, 3)
    some.save(path)
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "no zip":
        path.write_bytes(b"neighbours")
    elif damage == "not finite":
        with np.load(path) as file:
            np.savez(path, **dict(file) | {"content_targets step": np.full(3, np.nan, np.float32)})
    with pytest.raises(StaleModel, match=r"neighbours\.npz.*train again"):
        ContentNeighbours.load(
            path, 7 if damage == "other vectors" else 6, 4 if damage == "other content vectors" else 3
        )


def test_the_captions_of_a_photograph_say_what_their_mean_holds_along_the_directions(
    learned: TrainedContent,
) -> None:
    """What the content embedding that is said leaves of the mean caption is at right angles to all
    directions."""
    tokens = toy_captions()[5 * DEV_PHOTOS :].sort("caption_id")
    grams, _, held = _weigh(encode(tokens["tokens"], toy_vocabulary()), GIST_SETTINGS.min_count)
    content_embedding, pairs = (
        learned.content_embedding,
        toy_pairs()[: 5 * PHOTOS_WITH_CAPTIONS].select("caption_id", "photo_id"),
    )
    assert (grams == content_embedding.grams).all()
    owner = tokens.join(pairs, on="caption_id", how="left", maintain_order="left")["photo_id"]
    for subject, content_targets in (
        learned.content_targets.filter(pl.col("subject").is_in(owner.implode())).head(5).iter_rows()
    ):
        mean = held[np.flatnonzero((owner == subject).to_numpy())].mean(0)
        left = (
            np.asarray(mean).ravel()
            - content_embedding.mean
            - content_embedding.directions @ np.array(content_targets, np.float32)
        )
        assert content_embedding.directions.T @ left == pytest.approx(0, abs=2e-3)
    assert {*learned.content_targets["subject"]} >= {*learned.content_vectors["photo_id"]}


def test_captions_agree_by_three_quarters_with_what_six_thousand_neighbours_say(
    gist_captioner: Captioner, toy_features: Path
) -> None:
    content_embedding = gist_captioner.fusion.content_embedding
    assert content_embedding
    joint_embedding = a_joint_embedding(CHANNELS, LM_SETTINGS.state_size)
    silent = replace(
        joint_embedding, state=joint_embedding.state * 0, word=joint_embedding.word * 0
    )  # captions fit all alike
    beside = some_content_neighbours(len(joint_embedding.text_bias), content_embedding.size, 6_000)
    captioner = replace(gist_captioner, joint_embedding=silent, content_neighbours=beside, _searches={})
    photos = toy_image_features(UNSEEN)
    settings = PredictionsSettings(beam=6, alternatives=6, max_tokens=9, neighbour_weight=1)
    content_vectors = content_embedding.of_photos(photos)
    told = beside.told(joint_embedding.photo_vectors(tensor(photos["pooled"])), content_vectors).numpy()
    found = captioner.caption_photos(photos, settings, lambda _: None)
    alone = captioner.caption_photos(
        photos, settings.model_copy(update={"neighbour_weight": 0}), lambda _: None
    )
    without = replace(captioner, content_neighbours=None, _searches={}).caption_photos(
        photos, settings, lambda _: None
    )
    assert alone.equals(without)
    assert not found["caption"].equals(alone["caption"]), "neighbours that change no caption show nothing"
    for row, about in zip(found["alternatives"], 0.25 * content_vectors + 0.75 * told, strict=True):
        captions = [one["caption"] for one in row]
        idf = expected_cider(content_embedding, about, [ids(caption) for caption in captions])
        idf -= settings.word_penalty * np.array([len(caption.split()) for caption in captions])
        assert (np.diff(idf) < 0.05).all(), "best first, but for what float16 does to the features"
