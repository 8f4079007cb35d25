"""Ranks and recalls, against the protocol written out as loops."""

from __future__ import annotations

import numpy as np
import pytest

from cutline.tasks.evaluation import retrieval_metrics
from cutline.tasks.evaluation.retrieval_metrics import cosine_similarity, ranks, recalls, retrieval_table


def by_hand(similarity: np.ndarray, photo_of: np.ndarray) -> tuple[list[int], list[int]]:
    photos = []
    for photo in sorted(set(photo_of)):
        order = sorted(range(len(photo_of)), key=lambda c: -similarity[photo, c])
        photos.append(1 + next(place for place, c in enumerate(order) if photo_of[c] == photo))
    captions = []
    for caption, photo in enumerate(photo_of):
        order = sorted(range(len(similarity)), key=lambda p: -similarity[p, caption])
        captions.append(1 + order.index(photo))
    return photos, captions


@pytest.mark.parametrize("block", [1, 7, 256])
def test_ranks_are_those_of_sorting_whatever_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_metrics, "ROWS_PER_BLOCK", block)
    rng = np.random.default_rng(2)
    photos, captions = rng.normal(size=(20, 6)), rng.normal(size=(95, 6))
    photo_of = np.repeat(np.arange(19), 5)  # the last photograph has no caption
    found = ranks(cosine_similarity(photos, captions), photo_of, 20)
    expected = by_hand(photos @ captions.T, photo_of)
    assert found[0].tolist() == expected[0]
    assert found[1].tolist() == expected[1]


def test_a_wrong_answer_as_near_as_the_right_one_counts_as_nearer() -> None:
    everything_alike = ranks(lambda first, last: np.ones((last - first, 4)), np.array([0, 0, 1, 1]), 2)
    assert everything_alike[0].tolist() == [3, 3]
    assert everything_alike[1].tolist() == [2, 2, 2, 2]


def test_recalls_are_shares_of_the_queries() -> None:
    assert recalls(np.array([1, 5, 6, 11])) == {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75, "median rank": 5.5}


def test_the_table_has_both_directions_of_each_split() -> None:
    table = retrieval_table({"test": (np.array([1, 2]), np.array([1, 1, 3]))})
    values = {(row["direction"], row["metric"]): row["value"] for row in table.to_dicts()}
    assert values["image to text", "queries"] == 2
    assert values["text to image", "queries"] == 3
    assert values["text to image", "R@1"] == pytest.approx(2 / 3)
