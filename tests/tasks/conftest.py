"""Fixtures of the tests of tasks."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.tasks.decoding.captioner import Captioner
from cutline.tasks.models.content_embedding import CONTENT_EMBEDDING
from cutline.tasks.storage.tables import write_table
from cutline.tasks.training.caption_groups import TrainedContent
from tests.conftest import Once
from tests.support.toys import (
    CHANNELS,
    FUSION_SETTINGS,
    WITH_TEXT,
    learn_toy_gist,
    no_gist,
    toy_captioner,
    toy_familiar,
    toy_familiar_photos,
    train_toy_fusion,
    write_toy_features,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty data set."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    return folder


@pytest.fixture
def draws_beside() -> Iterator[None]:
    """Another thread that draws from the generators of Python and NumPy, as Prefect's connections do."""
    ended = threading.Event()

    def draw() -> None:
        while not ended.wait(1e-4):
            random.random()
            np.random.random()

    thread = threading.Thread(target=draw)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.fixture(scope="session")
def toy_features(once: Once) -> Path:
    """What `write_toy_features` writes; never write to it."""
    return once("toy_features", write_toy_features)


@pytest.fixture(scope="session")
def toy_fusion(once: Once, toy_features: Path) -> tuple[Path, pl.DataFrame]:
    """A folder with the toy fusion's weights, and its curve."""

    def fill(folder: Path) -> None:
        train_toy_fusion(toy_features, folder).write_parquet(folder / "curve")

    folder = once("toy_fusion", fill)
    return folder, pl.read_parquet(folder / "curve")


@pytest.fixture(scope="session")
def captioner(toy_features: Path, toy_fusion: tuple[Path, pl.DataFrame]) -> Captioner:
    """The toy fusion, loaded to caption."""
    toy_familiar(toy_fusion[0])
    no_gist(toy_fusion[0])
    return toy_captioner(toy_features, toy_fusion[0], FUSION_SETTINGS)


@pytest.fixture(scope="session")
def gist_captioner(once: Once, toy_features: Path, learned: TrainedContent) -> Captioner:
    """A toy fusion that began with what the content embedding imagines, loaded to caption."""

    def fill(folder: Path) -> None:
        learned.content_embedding.save(folder / CONTENT_EMBEDDING)
        write_table(
            toy_familiar_photos(), folder / "reference_photos.parquet", "reference_photos", channels=CHANNELS
        )
        train_toy_fusion(toy_features, folder, WITH_TEXT, learned=learned)

    return toy_captioner(toy_features, once("gist_captioner", fill), WITH_TEXT)


@pytest.fixture(scope="session")
def learned(toy_features: Path) -> TrainedContent:
    """The content embedding of the toy world, and what it says of its captions."""
    return learn_toy_gist(toy_features)
