"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.support.object_store import S3, s3_server

settings.register_profile("untimed", deadline=None)  # another process may have the machine
settings.load_profile("untimed")

Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those marked `long` first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What stands before stores is gone with the tests."""
    with patch.dict(os.environ, CUTLINE_CACHE=str(tmp_path_factory.mktemp("caches"))):
        yield


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a test, or a command that it calls, sets in the environment ends with it."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds `data/flickr8k`, `data/coco-mini` and `weights`; skips where there is none."""
    folder = os.environ.get("CUTLINE_REAL_DATA")
    if not folder:
        pytest.skip("CUTLINE_REAL_DATA is not set: this test needs real photographs, which are not shipped")
    assert Path(folder, "data/flickr8k/images").is_dir(), f"CUTLINE_REAL_DATA={folder} holds no data/flickr8k"
    return Path(folder)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A folder by its name, filled by the first of the processes that asks; never write to it again."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def s3_of_session() -> Iterator[S3]:
    """A real S3 server on loopback, and the credentials for it in the environment."""
    with s3_server() as server, patch.dict(os.environ, server.environment):
        yield server


@pytest.fixture
def s3(s3_of_session: S3) -> Iterator[S3]:
    """The S3 server, without faults before and after."""
    s3_of_session.faults()
    yield s3_of_session
    s3_of_session.faults()
