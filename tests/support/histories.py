"""Workspaces as runs leave them, written by the project's own writers, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl

from cutline.schemas.records import Record, RunRecord, StageSummary
from cutline.schemas.settings import Settings
from cutline.tasks.images.files import photo_id
from cutline.tasks.report.caption_export import captioned, write_captions
from cutline.tasks.storage.tables import bytes_column, empty_table, write_table
from cutline.tasks.storage.workspace import Workspace
from tests.support.datasets import an_id

RUN, LATER = "20260101-000000-000001", "20260102-000000-000002"
SCRIPT = "<script>alert(1)</script>.jpg"  # a folder called `<script>alert(1)<`, and a file in it
SIDE_PX = 16


class Written:
    """A workspace to which shards and runs are added by hand."""

    def __init__(self, root: Path, dataset: Path) -> None:
        self.workspace = Workspace(root)
        self.dataset = dataset
        self.workspace.mark()

    def shard(
        self, stage: str, key: str, tables: Mapping[str, pl.DataFrame], partition: str = "", rejected: int = 0
    ) -> str:
        """Publish the tables of one shard, and its record; returns its key."""
        with self.workspace.scratch() as out:
            for name, frame in tables.items():
                path = out / f"{name}.parquet"
                if stage == "report" and name == "captions":
                    write_captions(frame, path)
                else:
                    write_table(frame, path, name, **({"side_px": SIDE_PX} if name == "images" else {}))
            prefix = f"reports/{key[:8]}/" if stage == "report" else f"shards/{stage}/{key}."
            outputs = self.workspace.publish(out, prefix)
        self.workspace.write_record(
            Record(
                stage=stage, key=key, partition=partition, inputs={}, settings={}, code="0", lineage="",
                outputs=outputs, rows_in=1, rows_out=1, rejected=rejected, took_s=1.0,
                made_at="2026-01-01T00:00:00+00:00", versions={},
            )
        )  # fmt: skip
        return key

    def run(self, name: str, shards: dict[str, list[str]], **values: Any) -> None:
        """Write the record of a run down."""
        stages = [
            StageSummary(
                name=stage, made=len(keys), reused=0, rows_in=10, rows_out=9, rejected=1, took_s=2.5,
                why=values.get("why", "not made before"), outputs=[],
            )
            for stage, keys in shards.items()
        ]  # fmt: skip
        record = RunRecord(
            run=name,
            command="run" if "report" in shards else "caption",
            dataset=str(self.dataset),
            workspace=str(self.workspace.root),
            settings=values.get("settings", Settings()).model_dump(),
            shards=shards,
            scores=values.get("scores", {}),
            stages=stages,
            finished_at=f"{name[:4]}-{name[4:6]}-{name[6:8]}T00:00:00+00:00",
        )
        self.workspace.write_run(record)


def picture(number: int) -> bytes:
    """A JPEG of one colour, by its number."""
    square = np.full((48, 64, 3), (40 * number % 256, 120, 200 - 30 * number % 200), np.uint8)
    return cv2.imencode(".jpg", square)[1].tobytes()


def photos_of(files: Mapping[str, bytes], splits: Mapping[str, str]) -> pl.DataFrame:
    """The `photos` table of some files."""
    rows = [
        {
            "photo_id": photo_id(data), "path": path, "other_paths": [], "source_id": None,
            "other_source_ids": [], "container": None, "offset": None, "size": len(data), "width": 64,
            "height": 48, "format": "jpeg", "split": splits.get(path, "train"),
        }
        for path, data in files.items()
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=empty_table("photos").schema).sort("split", "photo_id")


def predictions_of(captions: Mapping[str, tuple[str, float]], far: str = "") -> pl.DataFrame:
    """The `predictions` table: id → caption and score; `far` is unlike what the model learned from."""
    rows = [
        {
            "photo_id": id_, "caption": caption, "score": score, "distance": 1.3 if id_ == far else 0.8,
            "alternatives": [{"caption": caption, "score": score}, {"caption": "another", "score": -9.0}],
        }
        for id_, (caption, score) in captions.items()
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=empty_table("predictions").schema)


def small_history(root: Path, dataset: Path) -> Written:
    """Six photographs and two runs over them, with rejects, scores and curves; a hostile name or two."""
    written = Written(root, dataset)
    names = [SCRIPT, *(f"photo{number}.jpg" for number in range(1, 6))]
    files = {name: picture(number) for number, name in enumerate(names)}
    for name, data in files.items():
        (dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).write_bytes(data)
    photos = photos_of(files, {"photo4.jpg": "dev", "photo5.jpg": "test"})
    by_path = dict(photos.select("path", "photo_id").iter_rows())
    texts = {
        SCRIPT: ("<b>a dog</b> & <script>alert(2)</script>", -0.1),
        "photo1.jpg": ("a dog on the beach", -0.2),
        "photo2.jpg": ("A hotdog, please", -0.3),
        "photo3.jpg": ("two children (and a Dog)", -0.4),
        "photo4.jpg": ("a cat", -0.5),
        "photo5.jpg": ("c++ is no dog's life", -0.6),
    }
    captions = pl.DataFrame(
        [
            {
                "caption_id": an_id(1),
                "photo_id": by_path["photo5.jpg"],
                "text": "a dog's life",
                "split": "test",
            },
            {"caption_id": an_id(2), "photo_id": by_path["photo1.jpg"], "text": "a beach", "split": "train"},
            {"caption_id": an_id(3), "photo_id": None, "text": "<i>no photograph</i>", "split": "train"},
        ],
        schema=empty_table("captions").schema,
    )
    rejects = pl.DataFrame(
        [
            ("ingest", "photo", "photo1.jpg", "leak", "also in another split"),
            ("ingest", "photo", "../secret.jpg", "outside_dataset", "the path leaves the folder"),
            ("ingest", "photo", "<img src=x onerror=alert(3)>.jpg", "truncated", "cut off"),
            ("tokens", "caption", "tokens.txt:3", "empty_caption", "no words"),
        ],
        schema=empty_table("rejects").schema,
        orient="row",
    )
    curve = pl.DataFrame(
        {"epoch": [1, 2], "train_loss": [2.0, 1.0], "dev_loss": [2.5, None], "dev_cider": [0.1, 0.4],
         "best": [False, True]},
        schema=empty_table("curve").schema,
    )  # fmt: skip
    shards = {"ingest": [written.shard("ingest", an_id(10), {"photos": photos, "captions": captions})]}
    shards["images"] = [
        written.shard("images", an_id(20 + number), {"images": squares(part)}, partition=f"{split}/")
        for number, ((split,), part) in enumerate(photos.group_by("split", maintain_order=True))
    ]
    shards["language_model"] = [written.shard("language_model", an_id(30), {"curve": curve})]
    shards["fusion"] = [written.shard("fusion", an_id(31), {"curve": curve})]
    before = predictions_of({by_path[path]: said for path, said in texts.items()}, by_path["photo1.jpg"])
    changed = {**texts, "photo5.jpg": ("a dog's life", -0.15)}
    after = predictions_of({by_path[path]: said for path, said in changed.items()}, by_path["photo1.jpg"])
    for number, (name, predictions, cider) in enumerate([(RUN, before, 0.3), (LATER, after, 0.9)]):
        scores = pl.DataFrame({"split": ["test"], "metric": ["CIDEr"], "value": [cider]})
        own = {
            "predictions": [written.shard("predictions", an_id(40 + number), {"predictions": predictions})],
            "evaluate": [written.shard("evaluate", an_id(50 + number), {"scores": scores})],
        }
        rows = {"captions": captioned(photos, predictions), "rejects": rejects}
        own["report"] = [written.shard("report", an_id(60 + number), rows)]
        settings = Settings.model_validate({"predictions": {"beam": 3 + number}})
        written.run(name, shards | own, settings=settings, scores={"CIDEr": cider}, why=f"reason {number}")
    return written


def squares(photos: pl.DataFrame) -> pl.DataFrame:
    """The `images` table of photographs: each square of the brightness of its place in the table."""
    levels = np.arange(photos.height, dtype=np.uint8)[:, None] + 100
    pixels = np.broadcast_to(levels, (photos.height, SIDE_PX**2 * 3))
    return photos.select("photo_id").with_columns(bytes_column("square", pixels))


def many_captions(root: Path, count: int) -> Written:
    """A run with a report of so many captions, whose photographs are not there."""
    written = Written(root, root / "nowhere")
    ids = sorted(an_id(number) for number in range(count))
    photos = pl.DataFrame(
        {"photo_id": ids, "path": [f"images/{number:07}.jpg" for number in range(count)]}
    ).select(
        "photo_id", "path", other_paths=pl.lit([], pl.List(pl.String)), source_id=pl.lit(None, pl.String),
        other_source_ids=pl.lit([], pl.List(pl.String)),
        container=pl.lit(None, pl.String), offset=pl.lit(None, pl.Int64), size=pl.lit(1000, pl.Int64),
        width=pl.lit(64, pl.Int32), height=pl.lit(48, pl.Int32), format=pl.lit("jpeg"), split=pl.lit("train"),
    )  # fmt: skip
    words = pl.Series(["dog", "cat", "beach", "red", "ball", "man", "snow"])
    number = pl.int_range(pl.len())
    said = pl.concat_str(
        *(pl.lit(words).get(number * step % 7) for step in (1, 3, 5)), number.cast(pl.String), separator=" "
    )
    score = (-(number * 7919 % count + 1) / count).cast(pl.Float32)
    predictions = photos.select("photo_id", caption=said, score=score).with_columns(
        distance=pl.lit(None, pl.Float32), alternatives=pl.concat_list(pl.struct("caption", "score"))
    )
    shards = {"ingest": {"photos": photos, "captions": empty_table("captions")}}
    shards["report"] = {"captions": captioned(photos, predictions), "rejects": empty_table("rejects")}
    keys = {stage: [written.shard(stage, an_id(count), tables)] for stage, tables in shards.items()}
    written.run(RUN, keys)
    return written
