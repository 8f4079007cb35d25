"""The stage that scores captions."""

from __future__ import annotations

from cutline.tasks.engine.stage import Made, Stage, Work
from cutline.tasks.storage.tables import read_table, read_tables, write_table

EVALUATE = Stage("evaluate", "cutline.tasks.evaluation.stage:make_scores")


def make_scores(work: Work) -> Made:
    """Scores of the dev and test splits, with the signs of collapse."""
    from cutline.tasks.evaluation.caption_metrics import evaluate

    predictions = read_tables(work.paths("predictions"), "predictions", ["photo_id", "caption"])
    photos = read_table(work.path("photos"), "photos", ["photo_id", "split"])
    captions = read_table(work.path("captions"), "captions", ["photo_id", "text", "split"])
    train = (read_table(path, "tokens", ["tokens"]) for path in work.paths("train"))
    scores = evaluate(predictions.join(photos, on="photo_id"), captions, train, work.settings.evaluate)
    write_table(scores, work.out / "scores.parquet", "scores")
    work.advance(predictions.height)
    return Made(predictions.height, scores.height)
