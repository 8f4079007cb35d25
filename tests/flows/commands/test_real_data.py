"""Real photographs go all the way through."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tests.flows.conftest import run_json


@pytest.mark.real_data
@pytest.mark.long
@pytest.mark.usefixtures("server")
def test_a_real_coco_data_set_is_captioned_whole(real_data: Path, tmp_path: Path) -> None:
    record = run_json(real_data / "data" / "coco-mini", tmp_path / "workspace")
    rows = {stage["name"]: (stage["rows_out"], stage["rejected"]) for stage in record["stages"]}
    assert rows["images"] == (80, 0)
    assert rows["tokens"] == (400, 0)
    captions = pl.read_parquet(record["captions"])
    assert captions.height == 80
    # Every photograph keeps COCO's own number, which results for its server need.
    assert captions["source_id"].str.zfill(12).to_list() == [Path(path).stem for path in captions["path"]]
    splits = captions["split"].value_counts()
    assert set(splits["split"]) == {"train", "dev", "test"}
    outputs = next(stage for stage in record["stages"] if stage["name"] == "image_features")["outputs"]
    for output in outputs:
        features = pl.read_parquet(tmp_path / "workspace" / output)
        assert features.schema["regions"] == pl.Array(pl.Float16, (9, 512))
        assert features["pooled"].to_numpy().max() > 0
