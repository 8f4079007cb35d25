"""Which stage comes after which: the whole of a run on one screen, and captioning on half of one.

The same lines serve to look (a walk without a maker) and to run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cutline.flows.pipeline.training_pairs import demand_images, demand_pairs
from cutline.schemas.errors import UsageError
from cutline.schemas.records import Record
from cutline.schemas.settings import Settings, StageSettings
from cutline.tasks.bundles.bundle import Bundle
from cutline.tasks.bundles.stage import BUNDLE
from cutline.tasks.decoding.captioner import MODEL_FILES
from cutline.tasks.decoding.stage import PREDICTIONS
from cutline.tasks.engine import executor
from cutline.tasks.engine.explain import changed_files
from cutline.tasks.engine.partition import Partition, partition
from cutline.tasks.engine.planner import Planner, StagePlan
from cutline.tasks.engine.stage import Shard, Stage, lineage_of
from cutline.tasks.evaluation.stage import EVALUATE
from cutline.tasks.features.cnn import resolved_precision, weights_digest
from cutline.tasks.features.stage import IMAGE_FEATURES, TEXT_FEATURES
from cutline.tasks.images.stage import IMAGES
from cutline.tasks.ingest.files import scan
from cutline.tasks.ingest.ingest import listing_digest
from cutline.tasks.ingest.layouts.registry import detect
from cutline.tasks.ingest.stage import INGEST
from cutline.tasks.report.stage import REPORT
from cutline.tasks.retrieval.stage import CAPTION_INDEX, INDEX, LEAKS, RETRIEVAL, WRITTEN_INDEX
from cutline.tasks.storage.tables import read_table
from cutline.tasks.storage.workspace import Workspace, digest_of, in_place, path_of
from cutline.tasks.text.stage import TOKENS, VOCABULARY
from cutline.tasks.text.stopwords import load_stopwords
from cutline.tasks.training.caption_groups import photo_or_missing
from cutline.tasks.training.stage import (
    CONTENT_EMBEDDING,
    CONTENT_NEIGHBOURS,
    CONTENT_TABLES,
    FUSION,
    JOINT_EMBEDDING,
    LANGUAGE_MODEL,
)

PHOTOS_PER_SHARD = 256
CAPTIONS_PER_SHARD = 4096
MOST_TITLE_BYTES = 200
PAIRED = ("train", "dev", "test")  # families of captions that have a photograph
REJECTS = "rejects.parquet"
LEARNED_FROM = ("train", "train-text")  # families whose words a model may see

NO_SETTINGS = StageSettings()  # of a stage that has nothing to choose

Known = Record | None  # None: not made yet


@dataclass(frozen=True)
class Reads:
    """What a stage reads: digests, by name, which are part of its key, and paths, which are not."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Any] = field(default_factory=dict)
    is_made: bool = True  # whether all of it is there yet

    def __or__(self, other: Reads) -> Reads:
        return Reads(
            {**self.inputs, **other.inputs},
            {**self.sources, **other.sources},
            self.is_made and other.is_made,
        )


class SearchParts(NamedTuple):
    """The stages that search is made of."""

    photos: StagePlan
    captions: StagePlan
    retrieval: StagePlan
    leaks: StagePlan


def plan_run(planner: Planner, dataset: Path, settings: Settings) -> None:
    """From a data set to captions, scores, a bundle and a report."""
    wiring = Wiring(planner, dataset, settings)
    ingest = wiring.ingest()
    demand_pairs(planner.workspace, dataset, ingest)
    images = wiring.images(ingest)
    demand_images(planner.workspace, dataset, images)
    features = wiring.image_features(images)
    tokens = wiring.tokens(ingest)
    vocabulary = wiring.vocabulary(ingest, tokens)
    language_model = wiring.language_model(tokens, vocabulary)
    text_features = wiring.text_features(tokens, vocabulary, language_model)
    content_embedding = wiring.content_embedding(ingest, tokens, features, vocabulary)
    fusion = wiring.fusion(
        ingest, tokens, features, text_features, vocabulary, language_model, content_embedding
    )
    joint_embedding = wiring.joint_embedding(ingest, tokens, features, text_features)
    content_neighbours = wiring.content_neighbours(
        ingest, tokens, vocabulary, language_model, content_embedding, joint_embedding
    )
    model = {
        "language_model": language_model,
        "fusion": fusion,
        "reference_photos": content_embedding,
        "content_embedding": content_embedding,
        "vocabulary": vocabulary,
        "joint_embedding": joint_embedding,
        "content_neighbours": content_neighbours,
    }
    index = wiring.index(features, joint_embedding)
    caption_index = wiring.caption_index(tokens, text_features, joint_embedding)
    retrieval = wiring.retrieval(ingest, index, caption_index)
    leaks = wiring.leaks(ingest, features, text_features)
    captioned = wiring.caption(features, model)
    scores = wiring.evaluate(ingest, tokens, captioned)
    bundle = wiring.bundle(ingest, features, tokens, model, scores)
    wiring.report(
        ingest, captioned, model, scores, bundle, SearchParts(index, caption_index, retrieval, leaks)
    )


def plan_captioning(
    planner: Planner, dataset: Path, settings: Settings, bundle: Bundle, only: Sequence[str]
) -> None:
    """From photographs to captions by a trained bundle."""
    wiring = Wiring(planner, dataset, settings, only)
    features = wiring.image_features(wiring.images(wiring.ingest()))
    captioned = wiring.caption_with(bundle, features)
    wiring.index_with(bundle, features, captioned)


class Wiring:
    """Builds the shards of each stage from the records of the stages before it."""

    def __init__(self, planner: Planner, dataset: Path, settings: Settings, only: Sequence[str] = ()) -> None:
        self.planner = planner
        self.dataset = dataset
        self.settings = settings
        self.only = tuple(only)
        self.shared_sources = {"settings": settings.model_dump(), "dataset": str(dataset)}

    # -- one shard from whole tables, or from many shards ----------------------------------------

    def _whole(
        self,
        stage: Stage,
        settings: StageSettings,
        reads: Reads,
        partition: str = "",
        counted: Sequence[Known] = (),
        passes: int = 1,
    ) -> StagePlan:
        """A stage of one shard; unknown where anything that it reads is.

        Its progress counts the rows of `counted`, so many times as there are passes over them.
        """
        if not reads.is_made:
            return self.planner.stage(stage, [None])
        rows = passes * sum(record.rows_out for record in counted if record)
        shard = Shard(
            stage=stage,
            partition=partition or str(self.dataset),
            inputs=dict(reads.inputs),
            settings=settings.model_dump(),
            lineage="",
            sources={**self.shared_sources, **reads.sources},
            rows=rows,
            title=_title(self.dataset.name),
        )
        return self.planner.stage(stage, [shard])

    def _cut(
        self, stage: Stage, settings: StageSettings, table: str, ingest: StagePlan, **inputs: str
    ) -> StagePlan:
        """A stage over rows of an ingest table, split by content within each family."""
        record = ingest.one
        if record is None:
            return self.planner.stage(stage, [None])
        path = record.output(f"{table}.parquet").path
        lineage = lineage_of(stage, settings.model_dump(), "", **inputs)
        shards: list[Shard | None] = []
        for part, ids in _groups(self.planner.workspace.file(path), table):
            shards.append(
                Shard(
                    stage=stage,
                    partition=part.partition,
                    inputs={"rows": _digest_of_ids(ids), **inputs},
                    settings=settings.model_dump(),
                    lineage=lineage,
                    sources={**self.shared_sources, "rows": path, "start": part.start},
                    rows=part.stop - part.start,
                )
            )
        return self.planner.stage(stage, shards)

    def _follow(
        self,
        stage: Stage,
        settings: StageSettings,
        before: Sequence[Known],
        source: str,
        every: Reads,
        beside: Mapping[str, Sequence[Known]] | None = None,
    ) -> StagePlan:
        """A stage with a shard for each shard of the stage before it, whose table is `source`.

        `every` shard reads that too; `beside` are tables cut as the one before is.
        """
        shards: list[Shard | None] = []
        for place, record in enumerate(before):
            tables = {source: before, **(beside or {})}
            reads = _all(every, *(_table(name, records[place]) for name, records in tables.items()))
            if record is None or not reads.is_made:
                shards.append(None)
                continue
            before_it = "".join(table.lineage for records in tables.values() if (table := records[place]))
            shards.append(
                Shard(
                    stage=stage,
                    partition=record.partition,
                    inputs=dict(reads.inputs),
                    settings=settings.model_dump(),
                    lineage=lineage_of(stage, settings.model_dump(), before_it, **every.inputs),
                    sources={**self.shared_sources, **reads.sources},
                    rows=record.rows_out,
                )
            )
        return self.planner.stage(stage, shards)

    # -- the stages --------------------------------------------------------------------------------

    def ingest(self) -> StagePlan:
        """Read what is new or changed in the data set; a walk that only looks reads it aside."""
        demand_apart(self.dataset, self.planner.workspace)
        place = str(self.dataset.resolve()) + (f" ({digest_of(self.only)[:8]})" if self.only else "")
        store = self.planner.workspace
        of_place = (record for record in store.records("ingest") if record.partition == place)
        known = next((one for one in of_place if store.is_whole(one.output("files.parquet"))), None)
        files = str(path_of(self.planner.workspace, known, "files.parquet")) if known else None
        listing = listing_digest(scan(self.dataset, self.only))
        ingest = self._whole(
            INGEST,
            self.settings.ingest,
            Reads({"files": listing}, {"known": files, "only": self.only}),
            partition=place,
        )
        if ingest.one is None and not self.planner.maker:
            detect(scan(self.dataset, self.only), self.settings.ingest.layout)  # fails early, if it must
        if ingest.one is None and self.planner.preview and ingest.shards[0]:
            made = executor.make_shard(ingest.shards[0], self.planner.preview, lambda _rows: None)
            ingest.records[0] = in_place(made, self.planner.preview)
        if ingest.one and files and ingest.reasons == ["input: files"]:
            new = path_of(self.planner.workspace, ingest.one, "files.parquet")
            ingest.reasons[0] = changed_files(Path(files), new)
        return ingest

    def images(self, ingest: StagePlan) -> StagePlan:
        """Squares, in shards of PHOTOS_PER_SHARD photographs of one split at the most."""
        return self._cut(IMAGES, self.settings.images, "photos", ingest)

    def image_features(self, images: StagePlan) -> StagePlan:
        """Regions and pooled features; the weights and the precision are part of the key.

        Raises UsageError and MissingWeights.
        """
        settings = self.settings.image_features
        weights = {"weights": weights_digest(settings), "precision": resolved_precision(settings)}
        return self._follow(IMAGE_FEATURES, settings, images.records, "images", Reads(weights))

    def tokens(self, ingest: StagePlan) -> StagePlan:
        """Tokens, in shards of CAPTIONS_PER_SHARD captions of one group at the most.

        Which stop words there are is part of the key. Raises UsageError where they cannot be had.
        """
        settings = self.settings.tokens
        return self._cut(TOKENS, settings, "captions", ingest, stopwords=self._stopwords())

    def vocabulary(self, ingest: StagePlan, tokens: StagePlan) -> StagePlan:
        """Of the training captions, photographed or not. Raises UsageError where there are none."""
        train = tokens.of(*LEARNED_FROM)
        if not train:
            raise UsageError(
                f"'{self.dataset}' has no training captions, so there is nothing to learn from; caption its "
                f"photographs with the pretrained model: cutline caption … --out FILE{self._not_read(ingest)}"
            )
        return self._whole(
            VOCABULARY,
            self.settings.vocabulary,
            _shards("tokens", train, "tokens"),
            counted=train,
        )

    def _not_read(self, ingest: StagePlan) -> str:
        """A line for each of the first files that were not read: links that lead out, texts, tables."""
        if not (ingest.one and ingest.one.has("rejects.parquet")):
            return ""
        path = self.planner.workspace.file(ingest.one.output("rejects.parquet").path)
        told_of = ["outside_dataset", "not_read"]
        rejects = read_table(path, "rejects").filter(pl.col("reason").is_in(told_of))
        unread = rejects.sort("reason", descending=True, maintain_order=True).head(3)
        told = unread.select("name", "detail").iter_rows()
        return "".join(f"\n  {name} was not read: {detail}" for name, detail in told)

    def language_model(self, tokens: StagePlan, vocabulary: StagePlan) -> StagePlan:
        """Learns from the training captions, photographed or not; stops by the dev ones with a photograph."""
        train, dev = tokens.of(*LEARNED_FROM), tokens.of("dev")
        return self._whole(
            LANGUAGE_MODEL,
            self.settings.language_model,
            _all(
                _shards("train", train, "tokens"),
                _shards("dev", dev, "tokens"),
                _table("vocabulary", vocabulary.one),
            ),
            counted=train,
            passes=self.settings.language_model.epochs,
        )

    def text_features(self, tokens: StagePlan, vocabulary: StagePlan, language_model: StagePlan) -> StagePlan:
        """States and vectors of the captions that have a photograph."""
        return self._follow(
            TEXT_FEATURES,
            self.settings.text_features,
            tokens.of(*PAIRED),
            "tokens",
            _table("vocabulary", vocabulary.one) | _model_file("language_model", language_model),
        )

    def content_embedding(
        self, ingest: StagePlan, tokens: StagePlan, features: StagePlan, vocabulary: StagePlan
    ) -> StagePlan:
        """Learns from the train split, photographed or not; other rows do not touch its key."""
        words = tokens.of(*LEARNED_FROM)
        return self._whole(
            CONTENT_EMBEDDING,
            self.settings.content_embedding,
            _all(
                self._pairs(ingest, "train", missing=True),
                _shards("tokens", words, "tokens"),
                _shards("image_features", features.of("train"), "image_features"),
                _table("vocabulary", vocabulary.one),
            ),
            counted=words,
        )

    def fusion(
        self,
        ingest: StagePlan,
        tokens: StagePlan,
        features: StagePlan,
        text_features: StagePlan,
        vocabulary: StagePlan,
        language_model: StagePlan,
        content_embedding: StagePlan,
    ) -> StagePlan:
        """Learns from the train split, is watched on the dev split; other rows do not touch its key."""
        learned, settings = tokens.of(*LEARNED_FROM), self.settings.fusion
        return self._whole(
            FUSION,
            settings,
            _all(
                self._pairs(ingest, "train", "dev"),
                _shards("tokens", tokens.of(*LEARNED_FROM, "dev"), "tokens"),
                _shards("image_features", features.of("train", "dev"), "image_features"),
                _shards("text_features", text_features.of("train", "dev"), "text_features"),
                _table("vocabulary", vocabulary.one),
                _model_file("language_model", language_model),
                _model_file("content_embedding", content_embedding),
                *(_table(name, content_embedding.one) for name in ("reference_photos", *CONTENT_TABLES)),
            ),
            counted=[*learned * settings.text_epochs, *tokens.of("train") * settings.epochs],
        )

    def joint_embedding(
        self, ingest: StagePlan, tokens: StagePlan, features: StagePlan, text_features: StagePlan
    ) -> StagePlan:
        """Learns from the train split, stops by the dev split; other rows do not touch its key."""
        return self._whole(
            JOINT_EMBEDDING,
            self.settings.joint_embedding,
            _all(
                self._pairs(ingest, "train", "dev"),
                _shards("tokens", tokens.of("train", "dev"), "tokens"),
                _shards("image_features", features.of("train", "dev"), "image_features"),
                _shards("text_features", text_features.of("train", "dev"), "text_features"),
                Reads({"stopwords": self._stopwords()}),
            ),
            counted=tokens.of("train"),
            passes=1 + self.settings.joint_embedding.epochs,
        )

    def content_neighbours(
        self,
        ingest: StagePlan,
        tokens: StagePlan,
        vocabulary: StagePlan,
        language_model: StagePlan,
        content_embedding: StagePlan,
        joint_embedding: StagePlan,
    ) -> StagePlan:
        """From the captions that the content embedding is of; other rows do not touch its key."""
        words = tokens.of(*LEARNED_FROM)
        return self._whole(
            CONTENT_NEIGHBOURS,
            self.settings.language_model,
            _all(
                self._pairs(ingest, "train", missing=True),
                _shards("tokens", words, "tokens"),
                _table("vocabulary", vocabulary.one),
                _model_file("language_model", language_model),
                *(_table(name, content_embedding.one) for name in ("content_from_text", "content_targets")),
                _model_file("joint_embedding", joint_embedding),
            ),
            counted=words,
        )

    def index(self, features: StagePlan, joint_embedding: StagePlan) -> StagePlan:
        """A vector for each photograph, and an index of each shard."""
        return self._follow(
            INDEX,
            NO_SETTINGS,
            features.records,
            "image_features",
            _model_file("joint_embedding", joint_embedding),
        )

    def caption_index(
        self, tokens: StagePlan, text_features: StagePlan, joint_embedding: StagePlan
    ) -> StagePlan:
        """As `index`, for each caption of a person that has a photograph."""
        return self._follow(
            CAPTION_INDEX,
            NO_SETTINGS,
            text_features.records,
            "text_features",
            _model_file("joint_embedding", joint_embedding),
            {"tokens": tokens.of(*PAIRED)},
        )

    def index_with(self, bundle: Bundle, features: StagePlan, captioned: StagePlan) -> None:
        """As `index`, with the files of a bundle; the captions are those that the model wrote."""
        joint_embedding = self._of_bundle(bundle, "joint_embedding")
        self._follow(INDEX, NO_SETTINGS, features.records, "image_features", joint_embedding)
        words = self._of_bundle(bundle, "language_model", "vocabulary")
        settings = self.settings.language_model
        self._follow(WRITTEN_INDEX, settings, captioned.records, "predictions", joint_embedding | words)

    def retrieval(self, ingest: StagePlan, index: StagePlan, caption_index: StagePlan) -> StagePlan:
        """How well photographs and captions of the dev split, and of the test split, find each other."""
        held_out = ("dev", "test")
        return self._whole(
            RETRIEVAL,
            NO_SETTINGS,
            _all(
                _unkeyed("captions", ingest.one),
                *(_shards(f"photos {split}", index.of(split), "vectors") for split in held_out),
                *(
                    _shards(f"captions {split}", caption_index.of(split), "caption_vectors")
                    for split in held_out
                ),
            ),
            counted=index.of(*held_out),
        )

    def leaks(self, ingest: StagePlan, features: StagePlan, text_features: StagePlan) -> StagePlan:
        """What two splits share, by features; photographs and captions are told by their names."""
        return self._whole(
            LEAKS,
            self.settings.leaks,
            _all(
                _table("photos", ingest.one),
                _table("captions", ingest.one),
                *(_shards(f"photos {split}", features.of(split), "image_features") for split in PAIRED),
                *(_shards(f"captions {split}", text_features.of(split), "text_features") for split in PAIRED),
            ),
            counted=[*features.of(*PAIRED), *text_features.of(*PAIRED)],
        )

    def _stopwords(self) -> str:
        return digest_of(sorted(load_stopwords(self.settings.tokens.stopwords)))

    def _pairs(self, ingest: StagePlan, *splits: str, missing: bool = False) -> Reads:
        """The captions; what counts is which of these splits belongs to which photograph, or to which missing
        one too."""
        captions = _unkeyed("captions", ingest.one)
        if not ingest.one:
            return captions
        path = self.planner.workspace.file(captions.sources["captions"])
        return Reads({"pairs": digest_of_pairs(path, *splits, missing=missing)}, captions.sources)

    def caption(self, features: StagePlan, model: Mapping[str, StagePlan]) -> StagePlan:
        """Captions of all photographs that have features; every file of the model is part of the key."""
        settings = self.settings.predictions
        return self._follow(PREDICTIONS, settings, features.records, "image_features", _model(model))

    def caption_with(self, bundle: Bundle, features: StagePlan) -> StagePlan:
        """As `caption`, with the files of a bundle: the same bytes make the same shards."""
        files = self._of_bundle(bundle, *MODEL_FILES)
        return self._follow(PREDICTIONS, self.settings.predictions, features.records, "image_features", files)

    def _of_bundle(self, bundle: Bundle, *names: str) -> Reads:
        files = {name: bundle.folder / MODEL_FILES[name] for name in names}
        digests = {name: bundle.description.digests[MODEL_FILES[name]] for name in names}
        store = self.planner.workspace
        share = store.shared if self.planner.maker else store.shared_path  # who only looks puts nothing there
        return Reads(digests, {name: share(file, digests[name]) for name, file in files.items()})

    def evaluate(self, ingest: StagePlan, tokens: StagePlan, captioned: StagePlan) -> StagePlan:
        """Scores of the dev and test splits; training captions are looked through for copies."""
        scored = captioned.of("dev", "test")
        # Of the captions to compare with, which are read as people wrote them, these count.
        references = replace(_shards("", tokens.of("dev", "test"), "tokens"), sources={})
        return self._whole(
            EVALUATE,
            self.settings.evaluate,
            _all(
                _unkeyed("photos", ingest.one),
                _unkeyed("captions", ingest.one),
                _shards("predictions", scored, "predictions"),
                _shards("train", tokens.of(*LEARNED_FROM), "tokens"),
                references,
            ),
            counted=scored,
        )

    def bundle(
        self,
        ingest: StagePlan,
        features: StagePlan,
        tokens: StagePlan,
        model: Mapping[str, StagePlan],
        scores: StagePlan,
    ) -> StagePlan:
        """The model in a folder, with what it was made with and its scores."""
        made_with = {
            name: getattr(self.settings, name).model_dump()
            for name in ("images", "image_features", "language_model", "fusion", "predictions")
        }
        return self._whole(
            BUNDLE,
            self.settings.predictions,
            _all(
                _model(model),
                _table("scores", scores.one),
                _unkeyed("captions", ingest.one),
                *(
                    replace(_shards(name, records, table), inputs={})
                    for name, records, table in (
                        ("image_features", features.of("train"), "image_features"),
                        ("any_features", features.present[:1], "image_features"),
                        ("tokens", tokens.of(*LEARNED_FROM), "tokens"),
                    )
                ),
                Reads(
                    {
                        "settings": digest_of(made_with),
                        "weights": weights_digest(self.settings.image_features),
                        **self._name(),
                    }
                ),
            ),
        )

    def report(
        self,
        ingest: StagePlan,
        captioned: StagePlan,
        model: Mapping[str, StagePlan],
        scores: StagePlan,
        bundle: StagePlan,
        search: SearchParts,
    ) -> StagePlan:
        """The page, the captions and the rejects of the run in files for people."""
        stage_plan = list(self.planner.stages)
        told = {"settings": digest_of(self.settings.model_dump()), **self._name()}
        return self._whole(
            REPORT,
            self.settings.report,
            _all(
                Reads(
                    told, {"stages": [stage.summary().model_dump() for stage in stage_plan]}, bundle.complete
                ),
                _table("photos", ingest.one),
                _table("captions", ingest.one),
                _rejects(stage_plan),
                _model(model),
                *(
                    _file(f"curve {name}", model[name].one, "curve.parquet")
                    for name in ("language_model", "fusion")
                ),
                _table("scores", scores.one),
                _table("retrieval", search.retrieval.one),
                _table("leaks", search.leaks.one),
                _shards("predictions", captioned.records, "predictions"),
                _by_place("images", self.planner.of("images").present),
                _by_place("image_features", self.planner.of("image_features").present),
                _by_place("vectors", search.photos.records),
                _by_place("caption_vectors", search.captions.records),
            ),
            counted=captioned.records,
        )

    def _name(self) -> dict[str, str]:
        """The data set's name, for what tells it to people."""
        return {"dataset": digest_of(self.dataset.name)}


def demand_apart(dataset: Path, workspace: Workspace) -> None:
    """Raise UsageError, before anything is written, where a folder of photographs is to be the workspace."""
    if not workspace.store and workspace.root.resolve() == dataset.resolve():
        raise UsageError(
            f"--workspace '{workspace.where}': expected a folder of its own, found the folder of the "
            "photographs; give another --workspace"
        )


def _groups(path: Path, table: str) -> list[tuple[Partition, list[str]]]:
    """The shards of an ingest table, which is sorted by family and id, with the ids of each."""
    if table == "photos":
        frame = pl.read_parquet(path, columns=["photo_id", "split"]).select("photo_id", group="split")
        most = PHOTOS_PER_SHARD
    else:
        alone = pl.when(pl.col("photo_id").is_null()).then(pl.lit("-text")).otherwise(pl.lit(""))
        frame = pl.read_parquet(path, columns=["caption_id", "photo_id", "split"]).select(
            "caption_id", group=pl.col("split") + alone
        )
        most = CAPTIONS_PER_SHARD
    found = []
    start = 0
    for (group,), part in frame.group_by("group", maintain_order=True):
        ids = part[:, 0].to_list()
        found += [
            (one, ids[one.start - start : one.stop - start])
            for one in partition(ids, str(group), most, start)
        ]
        start += len(ids)
    return found


def _title(name: str) -> str:
    """What a folder is called after a data set: a name may have 255 bytes, with a key behind it."""
    return name.encode()[:MOST_TITLE_BYTES].decode(errors="ignore") or "photographs"


def _digest_of_ids(ids: Sequence[str]) -> str:
    return hashlib.blake2b("".join(ids).encode(), digest_size=16).hexdigest()


def digest_of_pairs(captions: Path, *splits: str, missing: bool) -> str:
    """Digest of which caption of these splits belongs to which photograph, or to which missing one too."""
    photo = photo_or_missing() if missing else pl.col("photo_id")
    frame = pl.read_parquet(captions, columns=["caption_id", "photo_id", "missing_photo", "split"])
    pairs = frame.filter(photo.is_not_null() & pl.col("split").is_in(splits))
    return _digest_of_ids(pairs.select(pl.concat_str("caption_id", photo, "split")).to_series().to_list())


# ---- what a stage reads ----


def _file(name: str, record: Known, output: str) -> Reads:
    """One file, called `name` by its stage."""
    if record is None:
        return Reads(is_made=False)
    found = record.output(output)
    return Reads({name: found.digest}, {name: found.path})


def _table(name: str, record: Known) -> Reads:
    """The table called `name` everywhere."""
    return _file(name, record, f"{name}.parquet")


def _unkeyed(name: str, record: Known) -> Reads:
    """A table of which some rows are read; what counts of them is in the key by other inputs."""
    return replace(_table(name, record), inputs={})


def _model_file(name: str, stage_plan: StagePlan) -> Reads:
    return _file(name, stage_plan.one, MODEL_FILES[name])


def _model(model: Mapping[str, StagePlan]) -> Reads:
    return _all(*(_model_file(name, stage_plan) for name, stage_plan in model.items()))


def _shards(name: str, records: Sequence[Known], table: str) -> Reads:
    """A table of many shards; a change is told of each."""
    places = _by_place(table, records)
    return replace(places, sources={name: list(places.sources[table].values())})


def _by_place(table: str, records: Sequence[Known]) -> Reads:
    """A table of many shards, whose paths are known by their places."""
    found = {record.partition: record.output(f"{table}.parquet") for record in records if record}
    return Reads(
        {f"{table} {place}": output.digest for place, output in found.items()},
        {table: {place: output.path for place, output in found.items()}},
        is_made=all(records),
    )


def _rejects(stage_plan: Sequence[StagePlan]) -> Reads:
    """The rejects of all stages."""
    inputs: dict[str, str] = {}
    paths: list[str] = []
    for stage in stage_plan:
        for record in stage.present:
            if record.has(REJECTS):
                rejects = record.output(REJECTS)
                # The place of ingest is the data set's path, which says nothing of what is in it.
                place = "" if stage.stage is INGEST else f" {record.partition}"
                inputs[f"rejects {record.stage}{place}"] = rejects.digest
                paths.append(rejects.path)
    return Reads(inputs, {"rejects": paths})


def _all(*reads: Reads) -> Reads:
    return reduce(or_, reads, Reads())
