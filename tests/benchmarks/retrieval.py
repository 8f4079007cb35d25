"""How well sentences find photographs and photographs sentences, beside two baselines.

    python -m tests.benchmarks.retrieval WORKSPACE [--out FILE]

Takes the features of the newest run in WORKSPACE; trains the matching anew for three seeds, with the
stop words left out and with them left in. The baselines: ridge regression from pooled features to
TF-IDF vectors of the content words, and ranking by the captioner's own likelihood. What there is to
choose (of ridge regression its strength) is chosen on the dev split; all figures are of the test
split. Prints a table in Markdown, and writes it as CSV where --out says.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.schemas.settings import JointEmbeddingSettings, Settings
from cutline.tasks.evaluation.retrieval_metrics import (
    GaussianKernel,
    cosine_similarity,
    mean_recall,
    ranks,
    recalls,
)
from cutline.tasks.models.joint_embedding import JOINT_EMBEDDING, JointEmbedding
from cutline.tasks.storage.tables import tensor
from cutline.tasks.storage.workspace import Workspace
from cutline.tasks.text.stopwords import load_stopwords
from cutline.tasks.training.joint_embedding import inverse_document_frequencies, train_joint_embedding

SEEDS = (1, 2, 3)
STRENGTHS = tuple(10.0**power for power in np.arange(2, 7, 0.5))


@dataclass(frozen=True)
class Tables:
    """What a run left: features of photographs and captions, and where they lie."""

    store: Workspace
    run: RunRecord
    captions: pl.DataFrame  # with a photograph: caption_id, photo_id, split, tokens, content_tokens
    photos: pl.DataFrame  # photo_id, split, pooled

    @staticmethod
    def of(workspace: Path) -> Tables:
        store = Workspace(workspace)
        run = next((run for run in store.runs() if run.command == "run"), None)
        if run is None:
            raise UsageError(f"expected a run in {workspace}, found none; start with `cutline run`")
        found = Tables(store, run, pl.DataFrame(), pl.DataFrame())
        captions = pl.read_parquet(found.files("ingest", "captions.parquet")).drop_nulls("photo_id")
        tokens = pl.concat(pl.read_parquet(path) for path in found.files("captions", "tokens.parquet"))
        photos = pl.read_parquet(found.files("ingest", "photos.parquet")).select("photo_id", "split")
        features = pl.concat(
            pl.read_parquet(path, columns=["photo_id", "pooled"])
            for path in found.files("image_features", "image_features.parquet")
        )
        captions = captions.join(tokens.unique("caption_id"), on="caption_id").sort("caption_id")
        return Tables(store, run, captions, photos.join(features, on="photo_id").sort("photo_id"))

    def files(self, stage: str, name: str) -> list[Path]:
        """The files of a stage, one a shard."""
        records = [self.store.read_record(stage, key) for key in self.run.shards[stage]]
        return [self.store.file(record.output(name).path) for record in records if record]

    def split(self, name: str) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
        """Photographs and captions of a split, and which photograph each caption is of."""
        photos = self.photos.filter(pl.col("split") == name)
        captions = self.captions.filter(pl.col("split") == name)
        numbers = photos.select("photo_id").with_row_index("number")
        of = captions.join(numbers, on="photo_id", maintain_order="left")["number"].to_numpy()
        return photos, captions, of.astype(np.int64)

    @property
    def text_features(self) -> list[Path]:
        return self.files("text_features", "text_features.parquet")


Ranks = tuple[np.ndarray, np.ndarray]


def ridge(tables: Tables, column: str = "content_tokens") -> Ranks:
    """Pooled features → TF-IDF of the words that two training captions have, by cosine."""
    train_photos, train, train_of = tables.split("train")
    words, weights = inverse_document_frequencies(train[column], 100_000)

    def tf_idf(captions: pl.DataFrame) -> np.ndarray:
        places = {word: place for place, word in enumerate(words)}
        found = np.zeros((captions.height, len(words)), np.float32)
        for row, tokens in enumerate(captions[column]):
            for token in tokens:
                if token in places:
                    found[row, places[token]] += weights[places[token]]
        return unit(found)

    inputs = tensor(train_photos["pooled"]).astype(np.float64)[train_of]
    targets = tf_idf(train)
    mean, target_mean = inputs.mean(0), targets.mean(0)
    covariance, both = (inputs - mean).T @ (inputs - mean), (inputs - mean).T @ (targets - target_mean)

    def found_on(split: str, strength: float) -> Ranks:
        photos, captions, of = tables.split(split)
        solved = np.linalg.solve(covariance + strength * np.eye(len(covariance)), both)
        guessed = unit((tensor(photos["pooled"]).astype(np.float64) - mean) @ solved + target_mean)
        return ranks(cosine_similarity(guessed, tf_idf(captions)), of, photos.height)

    best = max(STRENGTHS, key=lambda strength: mean_recall(found_on("dev", strength)))
    return found_on("test", best)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def likelihood(tables: Tables) -> Ranks:
    """By the captioner's log-probability a token of each caption for each photograph."""
    import tensorflow as tf

    from cutline.tasks.decoding.captioner import MODEL_FILES, Captioner, ModelFiles
    from cutline.tasks.models.fusion import photo_tensor
    from cutline.tasks.text.encoding import encode
    from cutline.tasks.text.vocabulary import END

    settings = Settings.model_validate(tables.run.settings)
    vocabulary = pl.read_parquet(tables.files("vocabulary", "vocabulary.parquet")).sort("id")
    photos, captions, of = tables.split("test")
    features = pl.concat(
        pl.read_parquet(path).join(photos.select("photo_id"), on="photo_id", how="semi")
        for path in tables.files("image_features", "image_features.parquet")
    )
    features = photos.select("photo_id").join(features, on="photo_id", maintain_order="left")
    seen = photo_tensor(features, settings.fusion.kind)
    stages = {"reference_photos": "content_embedding"}  # all others are named as the stage that makes them
    files = (tables.files(stages.get(name, name), file)[0] for name, file in MODEL_FILES.items())
    captioner = Captioner.load(ModelFiles(*files), settings.language_model, settings.fusion, seen.shape[-1])
    texts = pl.concat(
        pl.read_parquet(path, columns=["caption_id", "states"]).join(
            captions.select("caption_id"), on="caption_id", how="semi"
        )
        for path in tables.text_features
    )
    states = captions.select("caption_id").join(texts, on="caption_id", maintain_order="left")["states"]
    flat = tensor(states.explode()).astype(np.float32)
    lengths = states.list.len().to_numpy().astype(np.int64)
    tokens = encode(captions["tokens"], vocabulary)
    targets = np.concatenate([[*tokens[i], END] for i in range(len(tokens))]).astype(np.int32)

    @tf.function
    def log_probabilities(photo: tf.Tensor) -> tf.Tensor:
        logits = captioner.fusion.logits(captioner.fusion.encode(photo[None]), tf.constant(flat)[None])[0]
        return -tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)

    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    rows = [
        np.add.reduceat(log_probabilities(tf.constant(photo, tf.float32)).numpy(), starts) / lengths
        for photo in seen
    ]
    table = np.array(rows)
    similarity: GaussianKernel = lambda first, last: table[first:last]  # noqa: E731
    return ranks(similarity, of, len(seen))


def ours(tables: Tables, seed: int, stopwords: bool, scratch: Path) -> Ranks:
    """The stage `matching`; with `stopwords` left in, every token is a content token."""
    captions, texts = tables.captions, tables.text_features
    if stopwords:
        captions = captions.with_columns(content_tokens="tokens")
        texts = list(_of_all_tokens(texts, scratch))
    train_joint_embedding(
        captions.select("caption_id", "photo_id", "split", "content_tokens"),
        tables.files("image_features", "image_features.parquet"),
        texts,
        [] if stopwords else sorted(load_stopwords("english")),
        JointEmbeddingSettings(seed=seed),
        scratch,
        scratch,
        lambda _: None,
    )
    joint_embedding = JointEmbedding.load(scratch / JOINT_EMBEDDING)
    photos, _, of = tables.split("test")
    test = captions.filter(pl.col("split") == "test")
    vectors = pl.concat(
        pl.read_parquet(path, columns=["caption_id", "vector"]).join(test, on="caption_id", how="semi")
        for path in texts
    )
    states = tensor(test.join(vectors, on="caption_id", maintain_order="left")["vector"])
    found = joint_embedding.text_vectors(states, test["content_tokens"])
    return ranks(
        cosine_similarity(joint_embedding.photo_vectors(tensor(photos["pooled"])), found), of, photos.height
    )


def _of_all_tokens(shards: list[Path], scratch: Path) -> Iterator[Path]:
    """The same shards, their vectors the means of the states after all tokens."""
    from cutline.tasks.storage.tables import tensor_column

    for number, shard in enumerate(shards):
        frame = pl.read_parquet(shard)
        flat = tensor(frame["states"].explode()).astype(np.float32)
        lengths = frame["states"].list.len().to_numpy().astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        sums = np.add.reduceat(flat, starts) - flat[starts]  # the state after <start> says nothing
        vectors = (sums / np.maximum(lengths - 1, 1)[:, None]).astype(np.float16)
        path = scratch / f"all.{number}.parquet"
        pl.DataFrame([frame["caption_id"], tensor_column("vector", vectors)]).write_parquet(path)
        yield path


def measured(workspace: Path) -> pl.DataFrame:
    """A row for each way, seed and direction, with the recalls of the test split."""
    tables = Tables.of(workspace)
    rows = []

    def add(what: str, seed: int | None, found: Ranks) -> None:
        for direction, some in zip(("image to text", "text to image"), found, strict=True):
            rows.append({"what": what, "seed": seed, "direction": direction, **recalls(some)})

    add("ridge regression to TF-IDF", None, ridge(tables))
    add("ridge regression, stop words left in", None, ridge(tables, "tokens"))
    add("the captioner's likelihood", None, likelihood(tables))
    for stopwords in (False, True):
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as scratch:
                name = f"matching, stop words left {'in' if stopwords else 'out'}"
                add(name, seed, ours(tables, seed, stopwords, Path(scratch)))
    return pl.DataFrame(rows)


def markdown(found: pl.DataFrame) -> str:
    """The means over the seeds, with the least and the greatest R@10."""
    lines = [
        "| test split | direction | R@1 | R@5 | R@10 | median rank |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (what, direction), some in found.group_by("what", "direction", maintain_order=True):
        r10 = some["R@10"]
        spread = f" ({r10.min():.3f} to {r10.max():.3f})" if some.height > 1 else ""
        values = f"{some['R@1'].mean():.3f} | {some['R@5'].mean():.3f} | {r10.mean():.3f}{spread}"
        lines.append(f"| {what} | {direction} | {values} | {some['median rank'].mean():.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--out", type=Path, help="a CSV file of every row")
    arguments = parser.parse_args()
    found = measured(arguments.workspace)
    print(markdown(found))
    if arguments.out:
        found.write_csv(arguments.out)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
