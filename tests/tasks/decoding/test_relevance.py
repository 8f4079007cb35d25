"""Fit: captions held against their photograph, within the search as outside of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cutline.schemas.settings import PredictionsSettings
from cutline.tasks.decoding.captioner import Captioner
from cutline.tasks.models.joint_embedding import ARRAYS, JointEmbedding
from cutline.tasks.retrieval.text_encoder import TextEncoder
from cutline.tasks.storage.tables import tensor
from tests.support.toys import (
    CHANNELS,
    LM_SETTINGS,
    UNSEEN,
    expected_cider,
    ids,
    toy_image_features,
    toy_vocabulary,
)

WORDS = ("dog", "cat", "red", "sand", "snow", "runs")


@pytest.fixture(scope="module")
def joint_embedding() -> JointEmbedding:
    rng = np.random.default_rng(2)
    shapes = ((CHANNELS, 8), (8,), (LM_SETTINGS.state_size, 8), (len(WORDS), 8), (8,))
    numbers = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in zip(ARRAYS, shapes, strict=True)
    }
    weights = np.linspace(0.5, 2, len(WORDS), dtype=np.float32)
    return JointEmbedding(words=WORDS, weights=weights, stopwords=("a", "the", "is", "on", "and"), **numbers)


def test_captions_are_in_the_order_of_what_is_expected_of_them_and_of_how_well_they_fit(
    gist_captioner: Captioner, joint_embedding: JointEmbedding, toy_features: Path
) -> None:
    photos = toy_image_features(UNSEEN)
    settings = PredictionsSettings(beam=6, alternatives=6, max_tokens=9)
    plain = gist_captioner.caption_photos(photos, settings, lambda _: None)
    fitting = replace(gist_captioner, joint_embedding=joint_embedding, _searches={})
    table = fitting.caption_photos(photos, settings, lambda _: None)
    content_embedding = gist_captioner.fusion.content_embedding
    assert content_embedding
    weights = toy_features / "language_model.weights.h5"
    texts = TextEncoder(joint_embedding, weights, toy_vocabulary(), LM_SETTINGS)
    moved = 0
    for row, before, photo, about in zip(
        table["alternatives"], plain["alternatives"], joint_embedding.photo_vectors(tensor(photos["pooled"])),
        content_embedding.of_photos(photos), strict=True,
    ):  # fmt: skip
        captions = [one["caption"] for one in row]
        assert sorted(captions) == sorted(one["caption"] for one in before), "the same are found"
        cosines = texts.vectors(row.struct.field("caption")) @ photo
        idf = expected_cider(content_embedding, about, [ids(caption) for caption in captions]) + cosines
        idf -= settings.word_penalty * np.array([len(caption.split()) for caption in captions])
        assert (np.diff(idf) < 0.02).all(), "best first, but for what float16 does to the features"
        moved += captions[0] != before[0]["caption"]
    assert moved, "a matching that changes no caption shows nothing"


def test_without_agreement_the_likeliest_caption_is_written_however_it_fits(
    gist_captioner: Captioner, joint_embedding: JointEmbedding
) -> None:
    photos, settings = toy_image_features(UNSEEN), PredictionsSettings(beam=4, cider_weight=0, max_tokens=9)
    fitting = replace(gist_captioner, joint_embedding=joint_embedding, _searches={})
    table = fitting.caption_photos(photos, settings, lambda _: None)
    assert table.equals(gist_captioner.caption_photos(photos, settings, lambda _: None))
