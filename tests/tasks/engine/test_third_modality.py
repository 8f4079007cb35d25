"""The recipe of tasks/README.md for a third modality, followed with sound: no existing stage is touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.records import Record
from cutline.tasks.engine.executor import make_shard
from cutline.tasks.engine.stage import Shard, Stage
from cutline.tasks.storage.tables import tensor_column, write_table
from cutline.tasks.storage.workspace import Workspace
from tests.support.datasets import an_id
from tests.support.sound import FRAME, HEARD, RATE_HZ, SOUNDS, spectrum
from tests.support.toys import (
    CHANNELS,
    FUSION_SETTINGS,
    PHOTOS,
    PLACES,
    REGIONS,
    scene,
    toy_image_features,
    train_toy_fusion,
    write_toy_features,
)

PITCHES_HZ = dict(zip(PLACES, (300, 1200, 3000), strict=True))


def waves() -> pl.DataFrame:
    """What each place sounds like: its pitch, in noise."""
    rows = []
    for photo in range(PHOTOS):
        rng = np.random.default_rng(photo)
        time_s = np.arange(8 * FRAME) / RATE_HZ
        rows.append(
            np.sin(2 * np.pi * PITCHES_HZ[scene(photo)[2]] * time_s) + rng.normal(0, 0.1, len(time_s))
        )
    return pl.DataFrame({"photo_id": [an_id(f"photo {photo}") for photo in range(PHOTOS)], "wave": rows})


def blind_to_places() -> pl.DataFrame:
    """The toy photographs, where they were taken painted over."""
    features = toy_image_features()
    regions = features["regions"].to_numpy().copy()
    regions[..., 7:10] = 0
    pooled = regions.astype(np.float32).mean(1).astype(np.float16)
    return features.with_columns(tensor_column("regions", regions), tensor_column("pooled", pooled))


def made(workspace: Workspace, stage: Stage, settings: dict, sources: dict[str, str]) -> Record:
    """One shard of a stage, from its sources; taken from the cache where it is there."""
    inputs = {name: str((workspace.root / path).stat().st_size) for name, path in sources.items()}
    shard = Shard(stage, "train/", inputs, settings, "", {**sources, "settings": {}})
    record, _ = workspace.lookup(stage.name, shard.key)
    return record or make_shard(shard, workspace, lambda _: None)


def test_a_spectrum_tells_pitches_apart() -> None:
    tones = [np.sin(2 * np.pi * pitch * np.arange(2048) / RATE_HZ) for pitch in PITCHES_HZ.values()]
    loudest = [int(spectrum(tone, CHANNELS).argmax()) for tone in tones]
    # 12 bands up to 4,000 Hz: 300 Hz is in the first, 1,200 in the fourth, 3,000 in the tenth.
    assert loudest == [0, 3, 8] or loudest == [0, 3, 9]


def test_what_is_heard_is_fused_with_what_is_seen(tmp_path: Path) -> None:
    write_toy_features(tmp_path / "toys")
    workspace = Workspace(tmp_path / "ws")
    workspace.mark()
    waves().write_parquet(workspace.root / "waves.parquet")
    blind = blind_to_places()
    write_table(
        blind, workspace.root / "images.parquet", "image_features", regions=REGIONS, channels=CHANNELS
    )

    sounds = made(workspace, SOUNDS, {"bands": CHANNELS}, {"waves": "waves.parquet"})
    sources = {"image_features": "images.parquet", "sounds": sounds.output("sounds.parquet").path}
    heard = made(workspace, HEARD, {}, sources)
    assert made(workspace, SOUNDS, {"bands": CHANNELS}, {"waves": "waves.parquet"}) == sounds  # cached

    losses = {}
    for name, file in (("seen", "images.parquet"), ("heard", heard.output("image_features.parquet").path)):
        features = tmp_path / name
        shutil.copytree(tmp_path / "toys", features)
        for old in features.glob("images.*"):
            old.unlink()
        shutil.copyfile(workspace.root / file, features / "images.0")
        curve = train_toy_fusion(features, tmp_path / f"{name} out", FUSION_SETTINGS)
        losses[name] = curve["dev_loss"].min()
    # A caption of six to eight tokens names the place in four of five: knowing it is worth ln 3 each time.
    assert losses["heard"] < losses["seen"] - 0.05


@pytest.mark.parametrize("missing", [0, 5])
def test_a_photograph_without_a_sound_has_silence_there(tmp_path: Path, missing: int) -> None:
    workspace = Workspace(tmp_path)
    workspace.mark()
    waves().slice(missing).write_parquet(tmp_path / "waves.parquet")
    features = toy_image_features()
    write_table(features, tmp_path / "images.parquet", "image_features", regions=REGIONS, channels=CHANNELS)
    sounds = made(workspace, SOUNDS, {"bands": CHANNELS}, {"waves": "waves.parquet"})
    sources = {"image_features": "images.parquet", "sounds": sounds.output("sounds.parquet").path}
    found = pl.read_parquet(
        tmp_path / made(workspace, HEARD, {}, sources).output("image_features.parquet").path
    )
    regions = found["regions"].to_numpy()
    assert regions.shape == (PHOTOS, REGIONS + 1, CHANNELS)
    assert (regions[:, :REGIONS] == features["regions"].to_numpy()).all()
    assert [bool(row.any()) for row in regions[:, -1]] == [False] * missing + [True] * (PHOTOS - missing)
