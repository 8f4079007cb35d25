"""Search in the photographs of a run: by a sentence, or by a photograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cutline.flows.pipeline.run_record import demand_ending, existing
from cutline.flows.pipeline.settings import settings_of_run
from cutline.schemas.errors import StaleModel, UsageError
from cutline.schemas.records import Record, RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.models.joint_embedding import JOINT_EMBEDDING, JointEmbedding
from cutline.tasks.report.search_page import write_search_page
from cutline.tasks.retrieval.index import Found, Part, VectorIndex
from cutline.tasks.retrieval.text_encoder import TextEncoder
from cutline.tasks.runtime.tensorflow import load_tensorflow
from cutline.tasks.storage.tables import read_table, squares
from cutline.tasks.storage.workspace import Workspace, digest_of_file


def search(
    text: str,
    photo: Path | None,
    top: int,
    *,
    exact: bool = False,
    dataset: Path | None = None,
    html: Path | None = None,
    workspace: Path,
) -> dict[str, Any]:
    """The `top` photographs nearest to a text or a photograph; what `--json` prints.

    With a photograph, the captions that fit it too. Raises UsageError where there is nothing to search
    by or in, StaleModel where the model of the run is damaged.
    """
    if bool(text.strip()) == bool(photo):
        raise UsageError('expected a TEXT or --photo FILE: cutline search "two dogs on a beach"')
    if photo and not photo.exists():
        raise UsageError(f"'{photo}': expected a photograph, found nothing there")
    demand_ending("--html", html, ".html", ".htm")
    collection = Collection.of(workspace, dataset)
    unknown: list[str] = []
    if photo:
        vector = collection.photo_vector(photo)
    else:
        vector, unknown = collection.text_vector(text)
    photos = collection.photos.nearest(vector, top, exact=exact)
    # Different people write the same: more are asked for than are shown.
    captions = collection.captions.nearest(vector, 5 * top, exact=exact) if photo else []
    found = {
        "run": collection.run.run,
        "dataset": collection.run.dataset,
        "text": text if not photo else "",
        "photo": str(photo) if photo else None,
        "unknown_words": unknown,
        "photos": collection.described(photos),
        "captions": collection.texts(captions)[:top],
    }
    if html:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_search_page(found, collection.pictures(photos), html)
    return found


@dataclass(frozen=True)
class Collection:
    """The photographs of one run, ready to be searched."""

    store: Workspace
    run: RunRecord
    records: dict[str, list[Record]]  # by stage

    @staticmethod
    def of(workspace: Path, dataset: Path | None) -> Collection:
        """The newest run that made an index (on `dataset`).

        Raises UsageError where there is none, DamagedFile where what it made is not there any more.
        """
        store = Workspace(workspace)
        where = str(existing(dataset)) if dataset else None
        runs = (run for run in store.runs() if where in (None, run.dataset))
        run, without = None, None
        for run in runs:
            if run.shards.get("index"):
                break
            without = without or (run.run if "index" in run.shards else None)
        else:
            run = None
        what = f" of '{dataset}'" if dataset else ""
        if run is None and without:
            raise UsageError(
                f"expected photographs{what} to search in, found none: run {without} had no photograph that "
                "could be used; `cutline rejects` says why"
            )
        if run is None:
            raise UsageError(
                f"expected an index{what} in {workspace}, found none; make one with `cutline run DATASET` "
                "or `cutline caption PHOTOS --out FILE`"
            )
        stages = (
            "ingest",
            "images",
            "predictions",
            "index",
            "caption_index",
            "joint_embedding",
            "language_model",
            "vocabulary",
        )
        records = {stage: store.records_of(run, stage) for stage in stages}
        return Collection(store, run, records)

    @property
    def settings(self) -> Settings:
        return settings_of_run(self.run)

    @property
    def photos(self) -> VectorIndex:
        """The photographs, by their vectors."""
        return self._index("index", "vectors.parquet")

    @property
    def captions(self) -> VectorIndex:
        """The captions, by their vectors: people's, or after `cutline caption` the model's, by photo_id."""
        return self._index("caption_index", "caption_vectors.parquet")

    def _index(self, stage: str, table: str) -> VectorIndex:
        return VectorIndex(
            [
                Part(self._path(record, table), self._path(record, "index.usearch"))
                for record in self.records[stage]
            ]
        )

    def _path(self, record: Record, output: str) -> Path:
        return self.store.file(record.output(output).path)

    def _model_file(self, stage: str, name: str) -> Path:
        """A file of the model that the index was made with. Raises StaleModel where it is another by now."""
        if not self.run.model:
            return self._path(self.records[stage][0], name)
        path = self.store.file(self.run.model[stage])
        made_with = [
            record.inputs.get(stage) for made in ("index", "caption_index") for record in self.records[made]
        ]
        if not path.is_file() or digest_of_file(path) not in made_with:
            raise StaleModel(
                f"'{path}' is not the file any more that the photographs of '{self.run.dataset}' were "
                "captioned with; `cutline caption` them again"
            )
        return path

    def text_vector(self, text: str) -> tuple[np.ndarray, list[str]]:
        """The vector of a text, (size,), and those of its words that nobody knows."""
        encoder = TextEncoder.load(
            self._model_file("joint_embedding", JOINT_EMBEDDING),
            self._model_file("language_model", "language_model.weights.h5"),
            read_table(self._model_file("vocabulary", "vocabulary.parquet"), "vocabulary").sort("id"),
            self.settings.language_model,
        )
        unknown = encoder.unknown_words(text)
        load_tensorflow()
        return encoder.vectors(pl.Series([text]))[0], unknown

    def photo_vector(self, photo: Path) -> np.ndarray:
        """The vector of a photograph, (size,)."""
        from cutline.tasks.features.image_features import features_of_file

        joint_embedding = JointEmbedding.load(self._model_file("joint_embedding", JOINT_EMBEDDING))
        _, pooled = features_of_file(photo, self.settings)
        return joint_embedding.photo_vectors(pooled)[0]

    # -- what was found, for people -------------------------------------------------------------

    def described(self, found: list[Found]) -> list[dict[str, Any]]:
        """Path, score and caption of photographs."""
        (ingest,) = self.records["ingest"]
        ids = [one.id for one in found]
        names = pl.scan_parquet(self._path(ingest, "photos.parquet")).filter(pl.col("photo_id").is_in(ids))
        paths = dict(names.select("photo_id", "path").collect().iter_rows())
        captions = self._written(found, "index")
        return [
            {
                "photo_id": one.id,
                "path": paths[one.id],
                "score": round(one.score, 4),
                "caption": captions.get(one.id),
            }
            for one in found
        ]

    def texts(self, found: list[Found]) -> list[dict[str, Any]]:
        """Different captions with scores: people's, or those that the model wrote where there are none."""
        (ingest,) = self.records["ingest"]
        ids = [one.id for one in found]
        if self.run.model:
            texts = self._written(found, "caption_index")
        else:
            names = pl.scan_parquet(self._path(ingest, "captions.parquet"))
            wanted = names.filter(pl.col("caption_id").is_in(ids)).select("caption_id", "text")
            texts = dict(wanted.collect().iter_rows())
        best: dict[str, float] = {}
        for one in found:
            best.setdefault(texts[one.id], round(one.score, 4))
        return [{"caption": caption, "score": score} for caption, score in best.items()]

    def _written(self, found: list[Found], index: str) -> dict[str, str]:
        frame = self._rows("predictions", "predictions.parquet", found, "caption", index)
        return dict(frame.iter_rows())

    def pictures(self, found: list[Found]) -> list[np.ndarray | None]:
        """The squares of photographs, (S, S, 3) RGB uint8; None where one was not cropped."""
        if not found:
            return []
        images = self._rows("images", "images.parquet", found, "square", "index")
        by_id = dict(zip(images["photo_id"], squares(images["square"]), strict=True))
        return [by_id.get(one.id) for one in found]

    def _rows(self, stage: str, output: str, found: list[Found], column: str, index: str) -> pl.DataFrame:
        """A column of the photographs found, read from the shards that they are in; `index` found them."""
        if not found:
            return pl.DataFrame(schema={"photo_id": pl.String, column: pl.String})
        places = {self.records[index][one.part].partition for one in found}
        ids = [one.id for one in found]
        frames = [
            pl.read_parquet(self._path(record, output), columns=["photo_id", column]).filter(
                pl.col("photo_id").is_in(ids)
            )
            for record in self.records[stage]
            if record.partition in places
        ]
        return pl.concat(frames)
