"""The parsers of foreign bytes as functions of these bytes, which return what was read, as text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from cutline.flows.pipeline.safe_yaml import load_yaml
from cutline.flows.pipeline.settings import NOT_YAML
from cutline.schemas.errors import BadPhoto, CutlineError, StaleModel
from cutline.schemas.records import Record, RunRecord
from cutline.tasks.images.decode import decode
from cutline.tasks.images.headers import read_header
from cutline.tasks.ingest.files import scan
from cutline.tasks.ingest.layouts.registry import detect, read_layout
from cutline.tasks.models.weights import check_weights
from cutline.tasks.runtime.npz import read_all_npz

MAX_PIXELS = 4_000_000
MAX_FILE_BYTES = 2**24


def image_header(data: bytes) -> str:
    try:
        return repr(read_header(data, MAX_PIXELS))
    except BadPhoto as bad:
        return repr((bad.reason, bad.detail))


def image(data: bytes) -> str:
    """Header, orientation (EXIF) and pixels."""
    try:
        return str(hash(decode(data, 32, MAX_PIXELS).tobytes()))
    except BadPhoto as bad:
        return repr((bad.reason, bad.detail))


def dataset(data: bytes, name: str) -> str:
    """A data set that holds `data` as the file `name`, beside another photograph."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "dataset")
        root.mkdir()
        (root / name).write_bytes(data)
        (root / "a.jpg").write_bytes(b"\xff\xd8")
        try:
            files = scan(root)
            items = read_layout(files, detect(files), Path(folder, "packs"), MAX_FILE_BYTES)
            told = [item[:2] if hasattr(item, "container") else item for item in items]
        except CutlineError as error:
            return type(error).__name__
    return repr(told)


def settings(data: bytes) -> str:
    try:
        return repr(load_yaml(data.decode("utf-8", "replace")))
    except NOT_YAML as error:
        return type(error).__name__


def arrays(data: bytes) -> str:
    return _of_file(data, lambda path: repr(read_all_npz(path)))


def weights(data: bytes) -> str:
    return _of_file(data, lambda path: repr(check_weights(path, 100, "model")))


def _of_file(data: bytes, read: Callable[[Path], str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(data)
        try:
            return read(path)
        except (StaleModel, ValueError) as error:
            return type(error).__name__


def record(data: bytes) -> str:
    told = []
    for model in (Record, RunRecord):
        try:
            told.append(repr(model.model_validate_json(data)))
        except ValidationError as error:
            told.append(str(error.error_count()))
    return repr(told)


TARGETS: dict[str, Callable[[bytes], str]] = {
    "image_header": image_header,
    "image": image,
    "tar": partial(dataset, name="a.tar"),
    "parquet": partial(dataset, name="a.parquet"),
    "json": partial(dataset, name="captions_a.json"),
    "jsonl": partial(dataset, name="metadata.jsonl"),
    "csv": partial(dataset, name="metadata.csv"),
    "kaggle": partial(dataset, name="captions.txt"),
    "yaml": settings,
    "npz": arrays,
    "h5": weights,
    "record": record,
}


def check(name: str, data: bytes) -> None:
    """Run a target twice; AssertionError where it does not give the same result."""
    first, second = TARGETS[name](data), TARGETS[name](data)
    assert first == second, f"{name}: {first[:200]} and then {second[:200]}"
