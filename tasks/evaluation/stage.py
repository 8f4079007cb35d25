"""The stage that scores captions."""

from __future__ import annotations

from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.storage.tables import read_table, read_tables, write_table

EVALUATE = Stage("evaluate", "cutline.tasks.evaluation.stage:make_scores")


def make_scores(context: StageContext) -> StageResult:
    """Scores of the dev and test splits, with the signs of collapse."""
    from cutline.tasks.evaluation.caption_metrics import evaluate

    predictions = read_tables(context.paths("predictions"), "predictions", ["photo_id", "caption"])
    photos = read_table(context.path("photos"), "photos", ["photo_id", "split"])
    captions = read_table(context.path("captions"), "captions", ["photo_id", "text", "split"])
    train = (read_table(path, "tokens", ["tokens"]) for path in context.paths("train"))
    scores = evaluate(predictions.join(photos, on="photo_id"), captions, train, context.settings.evaluate)
    write_table(scores, context.out / "scores.parquet", "scores")
    context.advance(predictions.height)
    return StageResult(predictions.height, scores.height)
