"""A bundle can be carried away, is checked before it is used, and refuses features that are not its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cutline.schemas.errors import CutlineError, StaleModel, UsageError
from cutline.schemas.settings import ImageFeaturesSettings, ImagesSettings, PredictionsSettings, Settings
from cutline.tasks.bundles.bundle import PRETRAINED, FeatureOrigin, load_bundle, write_bundle
from cutline.tasks.decoding.captioner import Captioner, ModelFiles
from cutline.tasks.decoding.stage import PREDICTIONS, _load_captioner_once, load_captioner
from cutline.tasks.engine.stage import Shard, StageContext
from cutline.tasks.features.cnn import weights_digest
from cutline.tasks.models.fusion import build_fusion
from cutline.tasks.models.language_model import build_language_model
from cutline.tasks.models.weights import save_weights
from cutline.tasks.storage.tables import write_table
from cutline.tasks.storage.workspace import Workspace, digest_of_file
from tests.support.limits import within_limits
from tests.support.toys import (
    CHANNELS,
    FUSION_SETTINGS,
    LM_SETTINGS,
    a_gist,
    toy_familiar,
    toy_image_features,
    toy_vocabulary,
)
from tests.tasks.models.test_content_neighbours import some_content_neighbours
from tests.tasks.training.test_joint_embedding import a_joint_embedding

ORIGIN = FeatureOrigin.of(ImagesSettings(), ImageFeaturesSettings(), "a1" * 16, CHANNELS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    words = toy_vocabulary().height
    save_weights(build_language_model(words, LM_SETTINGS).model, folder / "language_model.weights.h5")
    fusion = build_fusion(words, CHANNELS, FUSION_SETTINGS, LM_SETTINGS, a_gist(folder))
    save_weights(fusion.model, folder / "fusion.weights.h5")
    a_joint_embedding(CHANNELS, LM_SETTINGS.state_size).save(folder / "joint_embedding.npz")
    toy_familiar(folder)
    a_gist(folder).save(folder / "content_embedding.npz")
    some_content_neighbours(4, a_gist(folder).size).save(folder / "content_neighbours.npz")
    write_table(toy_vocabulary(), folder / "vocabulary.parquet", "vocabulary")
    return folder


def write(weights: Path, folder: Path, **changes: Any) -> None:
    values: dict[str, Any] = {
        "features": ORIGIN,
        "lm_settings": LM_SETTINGS,
        "fusion_settings": FUSION_SETTINGS,
        "caption_settings": PredictionsSettings(beam=2),
        "scores": {"test": {"CIDEr": 0.34567}},
        "sizes": {"training photographs": 6000},
        "versions": {"keras": "3.15.1"},
        "about": "Drawn scenes.",
    }
    folder.mkdir(exist_ok=True)
    write_bundle(folder, ModelFiles.within(weights), **values | changes)


@pytest.fixture
def bundle(weights: Path, tmp_path: Path) -> Path:
    write(weights, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_moved_elsewhere_writes_the_same_captions(
    weights: Path, bundle: Path, tmp_path: Path
) -> None:
    moved = load_bundle(Path(shutil.move(bundle, tmp_path / "elsewhere")))
    photos = toy_image_features(range(5))
    original = Captioner.load(ModelFiles.within(weights), LM_SETTINGS, FUSION_SETTINGS, CHANNELS)
    settings = moved.description.predictions
    assert settings.beam == 2
    found = moved.captioner().caption_photos(photos, settings, lambda _: None)
    assert found.equals(original.caption_photos(photos, settings, lambda _: None))


def test_the_same_model_gives_the_same_bytes_and_nothing_else_is_in_a_bundle(
    weights: Path, bundle: Path
) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    write(weights, bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert set(before) == {
        "language_model.weights.h5",
        "fusion.weights.h5",
        "reference_photos.parquet",
        "content_embedding.npz",
        "joint_embedding.npz",
        "content_neighbours.npz",
        "vocabulary.parquet",
        "bundle.json",
        "CARD.md",
    }
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_the_card_says_what_it_was_trained_on_and_how_good_it_is(bundle: Path) -> None:
    card = (bundle / "CARD.md").read_text(encoding="utf-8")
    for said in (
        "Drawn scenes.",
        "training photographs: 6,000",
        "| test | CIDEr | 0.346 |",
        "cannot",
        "keras 3.15.1",
    ):
        assert said in card


@pytest.mark.parametrize("name", ["language_model.weights.h5", "fusion.weights.h5", "vocabulary.parquet"])
def test_a_changed_or_missing_file_is_noticed(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(StaleModel, match=f"{name} should have the digest"):
        load_bundle(bundle)
    (bundle / name).unlink()
    with pytest.raises(StaleModel, match="found no such file"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "the whole"),
        (b'{"format": "cutline-bundle-2"}', "format"),
        (b" " * (2**20 + 1), "bytes"),
    ],
)
def test_a_description_that_is_none_is_refused(bundle: Path, content: bytes, message: str) -> None:
    (bundle / "bundle.json").write_bytes(content)
    with pytest.raises(StaleModel, match=message):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"fusion": {"kind": "telepathy"}},
        {"unknown": 1},
        {"language_model": {"state_size": "24; import os"}},
        {"digests": None},
    ],
)
def test_settings_that_are_none_are_refused(bundle: Path, change: dict[str, Any]) -> None:
    description = json.loads((bundle / "bundle.json").read_bytes())
    (bundle / "bundle.json").write_text(json.dumps(description | change))
    with pytest.raises(StaleModel, match=next(iter(change))):
        load_bundle(bundle)


def test_settings_of_another_size_than_the_weights_are_refused(bundle: Path) -> None:
    description = json.loads((bundle / "bundle.json").read_bytes())
    description["language_model"]["state_size"] = 25
    (bundle / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(StaleModel, match="expected size"):
        load_bundle(bundle).captioner()


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("language_model", {"state_size": 100_000}),
        ("language_model", {"embedding_size": 10**9}),
        ("fusion", {"hidden_size": 10**8, "heads": 10**6}),
        ("features", {"channels": 65_536}),
    ],
)
def test_settings_of_gigabytes_are_refused_before_a_model_is_built(
    bundle: Path, part: str, changes: dict[str, int]
) -> None:
    description = json.loads((bundle / "bundle.json").read_bytes())
    description[part] |= changes
    (bundle / "bundle.json").write_text(json.dumps(description))
    cost = within_limits("tests.tasks.bundles.test_bundle", "outcome", str(bundle))
    assert cost.result.startswith("StaleModel"), cost.result


def outcome(folder: str) -> str:
    """What loading a bundle comes to; run in a child."""
    try:
        load_bundle(Path(folder)).captioner()
    except CutlineError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def mutants(folder: str, name: str, count: int) -> dict[str, int]:
    """Outcomes of loading bundles with a mutated file and its right digest; run in a child."""
    path, told = Path(folder) / name, Path(folder) / "bundle.json"
    data, description = path.read_bytes(), json.loads(told.read_bytes())
    rng, found = np.random.default_rng(7), {"StaleModel": 0, "loaded": 0}
    for number in range(count):
        mutant = bytearray(data)
        # Headers, which the first kilobytes hold, break more than numbers do.
        for at in rng.integers(0, len(data) if number % 2 else min(len(data), 2_000), rng.integers(1, 4)):
            mutant[at] = rng.integers(0, 256)
        path.write_bytes(mutant)
        description["digests"][name] = digest_of_file(path)
        told.write_text(json.dumps(description))
        found[outcome(folder).partition(":")[0]] += 1
    return found


@pytest.mark.parametrize(
    "name",
    [
        *(
            "language_model.weights.h5",
            "fusion.weights.h5",
            "content_embedding.npz",
            "joint_embedding.npz",
            "content_neighbours.npz",
        ),
        *("reference_photos.parquet", "vocabulary.parquet"),
    ],
)
def test_mutated_files_with_a_right_digest_are_stale_or_loaded(bundle: Path, name: str) -> None:
    cost = within_limits("tests.tasks.bundles.test_bundle", "mutants", str(bundle), name, 12)
    assert sum(cost.result.values()) == 12
    assert cost.result["StaleModel"] > 0


def test_a_bundle_that_was_replaced_in_its_place_is_loaded_again(
    weights: Path, bundle: Path, tmp_path: Path
) -> None:
    settings = Settings(language_model=LM_SETTINGS, fusion=FUSION_SETTINGS)
    files = ModelFiles.within(bundle)._asdict()

    def captioner() -> Captioner:
        digests = {name: digest_of_file(path) for name, path in files.items()}
        sources = {"settings": settings.model_dump(), **{name: str(path) for name, path in files.items()}}
        shard = Shard(PREDICTIONS, "", digests, {}, "", sources)
        context = StageContext(shard, Workspace(tmp_path / "workspace"), tmp_path, lambda _rows: None)
        return load_captioner(context, toy_image_features(range(1)))

    first = captioner()
    assert captioner() is first
    another = build_language_model(toy_vocabulary().height, LM_SETTINGS, seed=1)
    save_weights(another.model, bundle / "language_model.weights.h5")
    kept, found = (words.language_model.embedding.embeddings.numpy() for words in (first, captioner()))
    assert np.abs(kept - found).max() > 0.01


def test_a_bundle_replaced_between_the_look_and_the_load_captions_nothing(bundle: Path) -> None:
    """Else captions of the new files would lie under the old ones' key, and be believed ever after."""
    files = ModelFiles.within(bundle)
    looked_at = tuple(map(digest_of_file, files))
    another = build_language_model(toy_vocabulary().height, LM_SETTINGS, seed=1)
    save_weights(another.model, files.language_model)
    with pytest.raises(StaleModel, match="replaced while it was used"):
        _load_captioner_once(files, looked_at, LM_SETTINGS, FUSION_SETTINGS, CHANNELS)


def test_a_folder_that_is_no_bundle_is_wrong_usage(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no bundle"):
            load_bundle(folder)


def test_features_made_in_another_way_are_refused_and_the_difference_named(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    loaded.check_features(
        FeatureOrigin.of(ImagesSettings(), ImageFeaturesSettings(batch_size=7), "a1" * 16, CHANNELS)
    )
    padded = FeatureOrigin.of(ImagesSettings(crop="pad"), ImageFeaturesSettings(), "b2" * 16, CHANNELS)
    with pytest.raises(StaleModel) as refusal:
        loaded.check_features(padded)
    for said in ("images.crop=centre", "images.crop=pad", "weights=a1a1", "weights=b2b2"):
        assert said in str(refusal.value)
    assert "side_px" not in str(refusal.value)


def test_the_pretrained_model_is_whole_and_small() -> None:
    pretrained = load_bundle(PRETRAINED)
    assert sum(file.stat().st_size for file in PRETRAINED.iterdir()) <= 20e6
    network = ImageFeaturesSettings(network="EfficientNetLite2")
    weights = weights_digest(network)
    pretrained.check_features(FeatureOrigin.of(ImagesSettings(crop="squash"), network, weights, 1280))
    assert pretrained.description.sizes["training photographs"] == 7_410
    assert pl.read_parquet(PRETRAINED / "reference_photos.parquet").height == 2_000
    with pytest.raises(StaleModel, match=r"images\.crop=squash"):
        pretrained.check_features(FeatureOrigin.of(ImagesSettings(crop="pad"), network, weights, 1280))
