"""Which stage comes after which: the whole of a run on one screen, and captioning on half of one.

The same lines serve to look (a walk without a maker) and to run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from schemas.errors import UsageError
from schemas.records import Record
from schemas.settings import Settings, StageSettings
from tasks import stages
from tasks.bundle import Bundle
from tasks.captions import load_stopwords
from tasks.gist import GIST
from tasks.ingest import listing_digest
from tasks.layouts import detect
from tasks.listing import scan
from tasks.matching import MATCHING
from tasks.networks import resolved_precision, weights_digest
from tasks.shards import Cut, Shard, Stage, changed_files, cut, in_place, lineage_of, path_of
from tasks.walk import Walk, Walked
from tasks.workspace import digest_of, digest_of_file

PHOTOS_A_SHARD = 256
CAPTIONS_A_SHARD = 4096
PAIRED = ("train", "dev", "test")  # families of captions that have a photograph
LEARNED_FROM = ("train", "train-text")  # families whose words a model may see

NO_SETTINGS = StageSettings()  # of a stage that has nothing to choose

Known = Record | None  # None: not made yet


class Source(NamedTuple):
    """A file that a stage reads: its digest is part of the key, its path is not."""

    digest: str
    path: str


class SearchParts(NamedTuple):
    """The stages that search is made of."""

    photos: Walked
    captions: Walked
    retrieval: Walked
    leaks: Walked


def run_stages(walk: Walk, dataset: Path, settings: Settings) -> None:
    """From a data set to captions, scores, a bundle and a report."""
    wiring = Wiring(walk, dataset, settings)
    ingest = wiring.ingest()
    features = wiring.image_features(wiring.images(ingest))
    tokens = wiring.tokens(ingest)
    vocabulary = wiring.vocabulary(tokens)
    language_model = wiring.language_model(tokens, vocabulary)
    text_features = wiring.text_features(tokens, vocabulary, language_model)
    gist = wiring.gist(ingest, tokens, features, vocabulary)
    fusion = wiring.fusion(ingest, tokens, features, text_features, vocabulary, language_model, gist)
    matching = wiring.matching(ingest, tokens, features, text_features)
    model = {
        "language_model": language_model,
        "fusion": fusion,
        "familiar": gist,
        "gist": gist,
        "vocabulary": vocabulary,
        "matching": matching,
    }
    index = wiring.index(features, matching)
    caption_index = wiring.caption_index(tokens, text_features, matching)
    retrieval = wiring.retrieval(ingest, index, caption_index)
    leaks = wiring.leaks(ingest, features, text_features)
    captioned = wiring.caption(features, model)
    scores = wiring.evaluate(ingest, tokens, captioned)
    bundle = wiring.bundle(ingest, features, model, scores)
    wiring.report(
        ingest, captioned, model, scores, bundle, SearchParts(index, caption_index, retrieval, leaks)
    )


def caption_stages(
    walk: Walk, dataset: Path, settings: Settings, bundle: Bundle, only: Sequence[str]
) -> None:
    """From photographs to captions by a trained bundle."""
    wiring = Wiring(walk, dataset, settings, only)
    features = wiring.image_features(wiring.images(wiring.ingest()))
    captioned = wiring.caption_with(bundle, features)
    wiring.index_with(bundle, features, captioned)


class Wiring:
    """Builds the shards of each stage from the records of the stages before it."""

    def __init__(self, walk: Walk, dataset: Path, settings: Settings, only: Sequence[str] = ()) -> None:
        self.walk = walk
        self.dataset = dataset
        self.settings = settings
        self.only = tuple(only)
        self.shared_sources = {"settings": settings.model_dump(), "dataset": str(dataset)}

    # -- one shard from whole tables, or from many shards ----------------------------------------

    def _whole(
        self,
        stage: Stage,
        settings: StageSettings,
        inputs: Mapping[str, str],
        sources: Mapping[str, Any],
        needs: Sequence[Known],
        place: str = "",
        counted: Sequence[Known] = (),
        passes: int = 1,
    ) -> Walked:
        """A stage of one shard; unknown where any of `needs` is.

        Its progress counts the rows of `counted`, so many times as there are passes over them.
        """
        if any(need is None for need in needs):
            return self.walk.stage(stage, [None])
        rows = passes * sum(record.rows_out for record in counted if record)
        shard = Shard(
            stage=stage,
            place=place or str(self.dataset),
            inputs=dict(inputs),
            settings=settings.model_dump(),
            lineage="",
            sources={**self.shared_sources, **sources},
            rows=rows,
            title=self.dataset.name or "photographs",
        )
        return self.walk.stage(stage, [shard])

    def _cut(
        self, stage: Stage, settings: StageSettings, table: str, ingest: Walked, **inputs: str
    ) -> Walked:
        """A stage over rows of an ingest table, cut by content within each family."""
        record = ingest.one
        if record is None:
            return self.walk.stage(stage, [None])
        path = record.output(f"{table}.parquet").path
        lineage = lineage_of(stage, settings.model_dump(), "", **inputs)
        shards: list[Shard | None] = []
        for part, ids in _families(self.walk.workspace.file(path), table):
            shards.append(
                Shard(
                    stage=stage,
                    place=part.place,
                    inputs={"rows": _digest_of_ids(ids), **inputs},
                    settings=settings.model_dump(),
                    lineage=lineage,
                    sources={**self.shared_sources, "rows": path, "start": part.start},
                    rows=part.stop - part.start,
                )
            )
        return self.walk.stage(stage, shards)

    def _follow(
        self,
        stage: Stage,
        settings: StageSettings,
        before: Sequence[Known],
        source: str,
        others: Mapping[str, Source | None],
        beside: Mapping[str, Sequence[Known]] | None = None,
        **inputs: str,
    ) -> Walked:
        """A stage with a shard for each shard of the stage before it.

        `others` are single files that every shard needs too, `beside` tables cut as the one before is.
        """
        single = {name: file for name, file in others.items() if file}
        if len(single) < len(others):
            return self.walk.stage(stage, [None] * len(before))
        inputs = {**inputs, **{name: output.digest for name, output in single.items()}}
        shards: list[Shard | None] = []
        for place, record in enumerate(before):
            tables = {name: some[place] for name, some in (beside or {}).items()}
            if record is None or any(table is None for table in tables.values()):
                shards.append(None)
                continue
            more = {name: _output(table, f"{name}.parquet") for name, table in tables.items()}
            rows = record.outputs[0] if len(record.outputs) == 1 else record.output(f"{source}.parquet")
            shards.append(
                Shard(
                    stage=stage,
                    place=record.place,
                    inputs={
                        source: rows.digest,
                        **inputs,
                        **{name: output.digest for name, output in more.items() if output},
                    },
                    settings=settings.model_dump(),
                    lineage=lineage_of(stage, settings.model_dump(), record.lineage, **inputs),
                    sources={
                        **self.shared_sources,
                        source: rows.path,
                        **{name: output.path for name, output in [*single.items(), *more.items()] if output},
                    },
                    rows=record.rows_out,
                )
            )
        return self.walk.stage(stage, shards)

    # -- the stages --------------------------------------------------------------------------------

    def ingest(self) -> Walked:
        """Read what is new or changed in the data set; a walk that only looks reads it aside."""
        place = str(self.dataset.resolve()) + (f" ({digest_of(self.only)[:8]})" if self.only else "")
        known = next(
            (record for record in self.walk.workspace.records("ingest") if record.place == place), None
        )
        files = str(path_of(self.walk.workspace, known, "files.parquet")) if known else None
        ingest = self._whole(
            stages.INGEST,
            self.settings.ingest,
            {"files": listing_digest(self.dataset, self.only)},
            {"known": files, "only": self.only},
            needs=[],
            place=place,
        )
        if ingest.one is None and not self.walk.maker:
            detect(scan(self.dataset, self.only), self.settings.ingest.layout)  # fails early, if it must
        if ingest.one is None and self.walk.preview and ingest.shards[0]:
            made = stages.make_shard(ingest.shards[0], self.walk.preview, lambda _rows: None)
            ingest.records[0] = in_place(made, self.walk.preview)
        if ingest.one and files and ingest.whys == ["input: files"]:
            new = path_of(self.walk.workspace, ingest.one, "files.parquet")
            ingest.whys[0] = changed_files(Path(files), new)
        return ingest

    def images(self, ingest: Walked) -> Walked:
        return self._cut(stages.IMAGES, self.settings.images, "photos", ingest)

    def image_features(self, images: Walked) -> Walked:
        settings = self.settings.image_features
        return self._follow(
            stages.IMAGE_FEATURES,
            settings,
            images.records,
            "images",
            {},
            weights=weights_digest(settings),
            precision=resolved_precision(settings),
        )

    def tokens(self, ingest: Walked) -> Walked:
        settings = self.settings.captions
        return self._cut(stages.CAPTIONS, settings, "captions", ingest, stopwords=self._stopwords())

    def vocabulary(self, tokens: Walked) -> Walked:
        train = tokens.of(*LEARNED_FROM)
        if not train:
            raise UsageError(
                f"'{self.dataset}' has no training captions, so there is nothing to learn from; "
                "caption its photographs with a trained bundle: cutline caption … --model BUNDLE --out FILE"
            )
        return self._whole(
            stages.VOCABULARY,
            self.settings.vocabulary,
            _digests(train, "tokens"),
            {"tokens": _paths(train, "tokens")},
            needs=train,
            counted=train,
        )

    def language_model(self, tokens: Walked, vocabulary: Walked) -> Walked:
        train, dev = tokens.of(*LEARNED_FROM), tokens.of("dev")
        return self._whole(
            stages.LANGUAGE_MODEL,
            self.settings.language_model,
            {**_digests([*train, *dev], "tokens"), **_digests([vocabulary.one], "vocabulary")},
            {
                "train": _paths(train, "tokens"),
                "dev": _paths(dev, "tokens"),
                "vocabulary": _path(vocabulary.one, "vocabulary.parquet"),
            },
            needs=[*train, *dev, vocabulary.one],
            counted=train,
            passes=self.settings.language_model.epochs,
        )

    def text_features(self, tokens: Walked, vocabulary: Walked, language_model: Walked) -> Walked:
        return self._follow(
            stages.TEXT_FEATURES,
            self.settings.text_features,
            tokens.of(*PAIRED),
            "tokens",
            {
                "vocabulary": _output(vocabulary.one, "vocabulary.parquet"),
                "language_model": _output(language_model.one, "language_model.weights.h5"),
            },
        )

    def gist(self, ingest: Walked, tokens: Walked, features: Walked, vocabulary: Walked) -> Walked:
        """Learns from the train split, photographed or not; other rows do not touch its key."""
        photos, words = features.of("train"), tokens.of(*LEARNED_FROM)
        needs = [ingest.one, vocabulary.one, *photos, *words]
        if any(need is None for need in needs):
            return self.walk.stage(stages.GIST, [None])
        pairs = _path(ingest.one, "captions.parquet")
        return self._whole(
            stages.GIST,
            self.settings.gist,
            {
                "pairs": _digest_of_pairs(self.walk.workspace.file(pairs), "train"),
                **_digests(photos, "image_features"),
                **_digests(words, "tokens"),
                **_digests([vocabulary.one], "vocabulary"),
            },
            {
                "captions": pairs,
                "tokens": _paths(words, "tokens"),
                "image_features": _paths(photos, "image_features"),
                "vocabulary": _path(vocabulary.one, "vocabulary.parquet"),
            },
            needs=needs,
            counted=words,
        )

    def fusion(
        self,
        ingest: Walked,
        tokens: Walked,
        features: Walked,
        text_features: Walked,
        vocabulary: Walked,
        language_model: Walked,
        gist: Walked,
    ) -> Walked:
        """Learns from the train split, is watched on the dev split; other rows do not touch its key."""
        photos, captions = features.of("train", "dev"), text_features.of("train", "dev")
        learned, words = tokens.of(*LEARNED_FROM), tokens.of(*LEARNED_FROM, "dev")
        needs = [ingest.one, vocabulary.one, language_model.one, gist.one, *photos, *captions, *words]
        if any(need is None for need in needs):
            return self.walk.stage(stages.FUSION, [None])
        pairs = _path(ingest.one, "captions.parquet")
        settings = self.settings.fusion
        return self._whole(
            stages.FUSION,
            settings,
            {
                "pairs": _digest_of_pairs(self.walk.workspace.file(pairs), "train", "dev"),
                **_digests(photos, "image_features"),
                **_digests(captions, "text_features"),
                **_digests(learned, "tokens"),
                **_digests([vocabulary.one], "vocabulary"),
                **{name: _digest(gist.one, file) for name, file in GIST_FILES.items()},
                "language_model": _digest(language_model.one, "language_model.weights.h5"),
            },
            {
                "captions": pairs,
                "tokens": _paths(words, "tokens"),
                **{name: _path(gist.one, file) for name, file in GIST_FILES.items()},
                "image_features": _paths(photos, "image_features"),
                "text_features": _paths(captions, "text_features"),
                "vocabulary": _path(vocabulary.one, "vocabulary.parquet"),
                "language_model": _path(language_model.one, "language_model.weights.h5"),
            },
            needs=needs,
            counted=[*learned * settings.text_epochs, *tokens.of("train") * settings.epochs],
        )

    def matching(self, ingest: Walked, tokens: Walked, features: Walked, text_features: Walked) -> Walked:
        """Learns from the train split, stops by the dev split; other rows do not touch its key."""
        photos, captions = features.of("train", "dev"), text_features.of("train", "dev")
        words = tokens.of("train", "dev")
        needs = [ingest.one, *photos, *captions, *words]
        if any(need is None for need in needs):
            return self.walk.stage(stages.MATCHING, [None])
        pairs = _path(ingest.one, "captions.parquet")
        return self._whole(
            stages.MATCHING,
            self.settings.matching,
            {
                "pairs": _digest_of_pairs(self.walk.workspace.file(pairs), "train", "dev"),
                **_digests(photos, "image_features"),
                **_digests(captions, "text_features"),
                **_digests(words, "tokens"),
                "stopwords": self._stopwords(),
            },
            {
                "captions": pairs,
                "tokens": _paths(words, "tokens"),
                "image_features": _paths(photos, "image_features"),
                "text_features": _paths(captions, "text_features"),
            },
            needs=needs,
            counted=tokens.of("train"),
            passes=1 + self.settings.matching.epochs,
        )

    def index(self, features: Walked, matching: Walked) -> Walked:
        return self._follow(
            stages.INDEX,
            NO_SETTINGS,
            features.records,
            "image_features",
            {"matching": _output(matching.one, MATCHING)},
        )

    def caption_index(self, tokens: Walked, text_features: Walked, matching: Walked) -> Walked:
        return self._follow(
            stages.CAPTION_INDEX,
            NO_SETTINGS,
            text_features.records,
            "text_features",
            {"matching": _output(matching.one, MATCHING)},
            {"tokens": tokens.of(*PAIRED)},
        )

    def index_with(self, bundle: Bundle, features: Walked, captioned: Walked) -> None:
        """As `index`, with the files of a bundle; the captions are those that the model wrote."""
        files: dict[str, Source | None] = {"matching": self._of_bundle(bundle.folder / MATCHING)}
        self._follow(stages.INDEX, NO_SETTINGS, features.records, "image_features", files)
        for name in ("language_model", "vocabulary"):
            files[name] = self._of_bundle(bundle.folder / MODEL_FILES[name])
        settings = self.settings.language_model
        self._follow(stages.WRITTEN_INDEX, settings, captioned.records, "predictions", files)

    def retrieval(self, ingest: Walked, index: Walked, caption_index: Walked) -> Walked:
        photos = {split: index.of(split) for split in ("dev", "test")}
        captions = {split: caption_index.of(split) for split in ("dev", "test")}
        held_out = [*_flat(photos), *_flat(captions)]
        return self._whole(
            stages.RETRIEVAL,
            NO_SETTINGS,
            {
                **{f"photos {name}": digest for name, digest in _digests(_flat(photos), "vectors").items()},
                **_digests(_flat(captions), "caption_vectors"),
            },
            {
                "captions": _path(ingest.one, "captions.parquet"),
                **{f"photos {split}": _paths(some, "vectors") for split, some in photos.items()},
                **{f"captions {split}": _paths(some, "caption_vectors") for split, some in captions.items()},
            },
            needs=[ingest.one, *held_out],
            counted=_flat(photos),
        )

    def leaks(self, ingest: Walked, features: Walked, text_features: Walked) -> Walked:
        photos = {split: features.of(split) for split in PAIRED}
        captions = {split: text_features.of(split) for split in PAIRED}
        every = [*_flat(photos), *_flat(captions)]
        return self._whole(
            stages.LEAKS,
            self.settings.leaks,
            {
                **_digests(_flat(photos), "image_features"),
                **_digests(_flat(captions), "text_features"),
                **_digests([ingest.one], "photos"),
                **_digests([ingest.one], "captions"),
            },
            {
                "photos": _path(ingest.one, "photos.parquet"),
                "captions": _path(ingest.one, "captions.parquet"),
                **{f"photos {split}": _paths(some, "image_features") for split, some in photos.items()},
                **{f"captions {split}": _paths(some, "text_features") for split, some in captions.items()},
            },
            needs=[ingest.one, *every],
            counted=every,
        )

    def _stopwords(self) -> str:
        return digest_of(sorted(load_stopwords(self.settings.captions.stopwords)))

    def caption(self, features: Walked, model: Mapping[str, Walked]) -> Walked:
        return self._follow(
            stages.CAPTION,
            self.settings.caption,
            features.records,
            "image_features",
            {name: _output(walked.one, MODEL_FILES[name]) for name, walked in model.items()},
        )

    def caption_with(self, bundle: Bundle, features: Walked) -> Walked:
        """As `caption`, with the files of a bundle: the same bytes make the same shards."""
        files = {name: self._of_bundle(bundle.folder / file) for name, file in MODEL_FILES.items()}
        return self._follow(stages.CAPTION, self.settings.caption, features.records, "image_features", files)

    def _of_bundle(self, file: Path) -> Source:
        digest = digest_of_file(file)
        makes = self.walk.maker is not None  # one that only looks puts nothing into a store
        return Source(digest, self.walk.workspace.shared(file, digest) if makes else str(file))

    def evaluate(self, ingest: Walked, tokens: Walked, captioned: Walked) -> Walked:
        scored, train = captioned.of("dev", "test"), tokens.of("train")
        references = tokens.of("dev", "test")  # the references that count are those with photographs
        return self._whole(
            stages.EVALUATE,
            self.settings.evaluate,
            {**_digests(scored, "predictions"), **_digests([*train, *references], "tokens")},
            {
                "predictions": _paths(scored, "predictions"),
                "captions": _path(ingest.one, "captions.parquet"),
                "photos": _path(ingest.one, "photos.parquet"),
                "train": _paths(train, "tokens"),
            },
            needs=[ingest.one, *scored, *train, *references],
            counted=scored,
        )

    def bundle(self, ingest: Walked, features: Walked, model: Mapping[str, Walked], scores: Walked) -> Walked:
        files = {name: walked.one for name, walked in model.items()}
        made_with = {
            name: getattr(self.settings, name).model_dump()
            for name in ("images", "image_features", "language_model", "fusion", "caption")
        }
        return self._whole(
            stages.BUNDLE,
            self.settings.caption,
            {
                **{name: _digest(record, MODEL_FILES[name]) for name, record in files.items()},
                "scores": _digest(scores.one, "scores.parquet"),
                "settings": digest_of(made_with),
                "weights": weights_digest(self.settings.image_features),
            },
            {
                **{name: _path(record, MODEL_FILES[name]) for name, record in files.items()},
                "scores": _path(scores.one, "scores.parquet"),
                "photos": _path(ingest.one, "photos.parquet"),
                "captions": _path(ingest.one, "captions.parquet"),
                "features": next(iter(_paths(features.records, "image_features")), ""),
            },
            needs=[ingest.one, scores.one, *files.values()],
        )

    def report(
        self,
        ingest: Walked,
        captioned: Walked,
        model: Mapping[str, Walked],
        scores: Walked,
        bundle: Walked,
        search: SearchParts,
    ) -> Walked:
        """The page, the captions and the rejects of the run in files for people."""
        walked = list(self.walk.stages)
        records = [record for stage in walked for record in stage.present]
        rejects = [record for record in records if record.has("rejects.parquet")]
        images, features = walked[1], walked[2]
        curves = {name: model[name].one for name in ("language_model", "fusion")}
        return self._whole(
            stages.REPORT,
            self.settings.report,
            {
                **_digests([ingest.one], "photos"),
                **_digests([ingest.one], "captions"),
                **{
                    f"rejects {record.stage} {record.place}": _digest(record, "rejects.parquet")
                    for record in rejects
                },
                **_digests(captioned.records, "predictions"),
                **{f"curve {name}": _digest(record, "curve.parquet") for name, record in curves.items()},
                "scores": _digest(scores.one, "scores.parquet"),
                **_digests(search.photos.records, "vectors"),
                **_digests(search.captions.records, "caption_vectors"),
                "retrieval": _digest(search.retrieval.one, "retrieval.parquet"),
                "leaks": _digest(search.leaks.one, "leaks.parquet"),
                "settings": digest_of(self.settings.model_dump()),
                **{name: _digest(walked.one, MODEL_FILES[name]) for name, walked in model.items()},
            },
            {
                "photos": _path(ingest.one, "photos.parquet"),
                "captions": _path(ingest.one, "captions.parquet"),
                "rejects": [_path(record, "rejects.parquet") for record in rejects],
                "predictions": _paths(captioned.records, "predictions"),
                "images": {record.place: _path(record, "images.parquet") for record in images.present},
                "features": {
                    record.place: _path(record, "image_features.parquet") for record in features.present
                },
                "curves": {name: _path(record, "curve.parquet") for name, record in curves.items()},
                "scores": _path(scores.one, "scores.parquet"),
                "retrieval": _path(search.retrieval.one, "retrieval.parquet"),
                "vectors": {
                    record.place: _path(record, "vectors.parquet") for record in search.photos.present
                },
                "caption_vectors": {
                    record.place: _path(record, "caption_vectors.parquet")
                    for record in search.captions.present
                },
                **{name: _path(walked.one, MODEL_FILES[name]) for name, walked in model.items()},
                "stages": [stage.summary().model_dump() for stage in walked],
            },
            needs=[
                ingest.one,
                scores.one,
                bundle.one,
                *captioned.records,
                *curves.values(),
                *(record for walked in search for record in walked.records),
            ],
            counted=captioned.records,
        )


MODEL_FILES = {
    "language_model": "language_model.weights.h5",
    "fusion": "fusion.weights.h5",
    "familiar": "familiar.parquet",
    "gist": GIST,
    "vocabulary": "vocabulary.parquet",
    "matching": MATCHING,
}


GIST_FILES = {
    "gist": GIST,
    "familiar": "familiar.parquet",
    "gists": "gists.parquet",
    "imagined": "imagined.parquet",
}


def _families(path: Path, table: str) -> list[tuple[Cut, list[str]]]:
    """The shards of an ingest table, which is sorted by family and id, with the ids of each."""
    if table == "photos":
        frame = pl.read_parquet(path, columns=["photo_id", "split"]).select("photo_id", family="split")
        most = PHOTOS_A_SHARD
    else:
        alone = pl.when(pl.col("photo_id").is_null()).then(pl.lit("-text")).otherwise(pl.lit(""))
        frame = pl.read_parquet(path, columns=["caption_id", "photo_id", "split"]).select(
            "caption_id", family=pl.col("split") + alone
        )
        most = CAPTIONS_A_SHARD
    found = []
    start = 0
    for (family,), part in frame.group_by("family", maintain_order=True):
        ids = part[:, 0].to_list()
        found += [
            (one, ids[one.start - start : one.stop - start]) for one in cut(ids, str(family), most, start)
        ]
        start += len(ids)
    return found


def _digest_of_ids(ids: Sequence[str]) -> str:
    return hashlib.blake2b("".join(ids).encode(), digest_size=16).hexdigest()


def _digest_of_pairs(captions: Path, *splits: str) -> str:
    """Digest of which caption of these splits belongs to which photograph."""
    frame = pl.read_parquet(captions, columns=["caption_id", "photo_id", "split"])
    pairs = frame.filter(pl.col("photo_id").is_not_null() & pl.col("split").is_in(splits))
    return _digest_of_ids(pairs.select(pl.concat_str(pl.all())).to_series().to_list())


def _flat(by_split: Mapping[str, Sequence[Known]]) -> list[Known]:
    return [record for records in by_split.values() for record in records]


def _output(record: Known, output: str) -> Source | None:
    return Source(record.output(output).digest, record.output(output).path) if record else None


def _digest(record: Known, output: str) -> str:
    return record.output(output).digest if record else ""


def _path(record: Known, output: str) -> str:
    return record.output(output).path if record else ""


def _digests(records: Sequence[Known], table: str) -> dict[str, str]:
    """Name -> digest of a table's shards; the name says which, so that a change can be told."""
    return {
        f"{table} {record.place}".strip(): _digest(record, f"{table}.parquet") for record in records if record
    }


def _paths(records: Sequence[Known], table: str) -> list[str]:
    return [_path(record, f"{table}.parquet") for record in records if record]
