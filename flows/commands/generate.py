"""Text from a trained bundle: lines that continue a text or describe a photograph, and perplexity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import polars as pl

from cutline.flows.pipeline.run_record import last_run, name_of_model, newest_bundle
from cutline.flows.pipeline.settings import Tree, settings_with
from cutline.schemas.errors import UsageError
from cutline.schemas.safe_text import for_terminal
from cutline.tasks.bundles.bundle import Bundle, load_bundle
from cutline.tasks.decoding.captioner import ModelFiles
from cutline.tasks.decoding.nearest_captions import RealCaptions
from cutline.tasks.decoding.perplexity import Perplexity, perplexity_of, text_lines, unknown_words
from cutline.tasks.decoding.sampling import Line, Sampler, Sampling
from cutline.tasks.runtime.tensorflow import load_tensorflow
from cutline.tasks.storage.workspace import Workspace, bundle_at, bundle_folder
from cutline.tasks.text.tokenizer import tokenize

if TYPE_CHECKING:
    from cutline.tasks.models.language_model import LanguageModel


def generate(
    text: str,
    model: Path | None,
    count: int,
    sampling: Sampling,
    *,
    photo: Path | None = None,
    tree: Tree | None = None,
    retrieve: int = 0,
    captions: Path | None = None,
    workspace: Path,
) -> dict[str, Any]:
    """`count` lines that begin with `text`, of a photograph where one is given; what `--json` prints.

    `retrieve` real captions come with each line: those of `captions`, else those of the data set
    that the bundle was trained on. Raises UsageError, StaleModel, CutlineError for a bad photograph.
    """
    folder = bundle_at(model) if model else newest_bundle(workspace)
    prompt = tokenize(text)
    if text.strip() and not prompt:
        raise UsageError(f"text: expected a word, found '{text.strip()[:80]}'; leave it out to begin anew")
    if captions and not retrieve:
        raise UsageError("--captions says where --retrieve looks: add --retrieve, or leave it out")
    if tree and not photo:
        raise UsageError("--set says how a photograph is prepared: add --photo, or leave it out")
    real = RealCaptions(real_captions(captions, folder, workspace)) if retrieve else None
    bundle = load_bundle(folder)
    say_model(folder)
    sampler = sampler_of(bundle, photo, tree or {})
    lines = list(sampler.lines(prompt, count, sampling))
    return {
        "model": str(folder.absolute()),
        "photo": str(photo) if photo else None,
        "text": text,
        "unknown_words": unknown_words(prompt, sampler.vocabulary),
        **asdict(sampling),
        "lines": [_as_record(line, real, retrieve) for line in lines],
    }


def _as_record(line: Line, real: RealCaptions | None, count: int) -> dict[str, Any]:
    record: dict[str, Any] = {
        "text": line.text,
        "tokens": line.tokens,
        "log_probability": line.log_probability,
        "score": line.score,
        "ended": line.ended,
    }
    if real is not None:
        record["nearest"] = [
            {"caption": near.caption, "distance": near.distance, "copy": near.is_copy}
            for near in real.nearest(line.tokens, count)
        ]
    return record


def perplexity(file: Path, model: Path | None, workspace: Path) -> Perplexity:
    """The perplexity of a text file, a caption a line, under a bundle's language model.

    Raises UsageError where the file holds no word or is no text, StaleModel for a damaged bundle.
    """
    bundle = load_bundle(bundle_at(model) if model else newest_bundle(workspace))
    say_model(bundle.folder)
    load_tensorflow()
    return perplexity_of(_language_model(bundle), _tokens(bundle), text_lines(file))


def say_model(bundle: Path) -> None:
    """Say on standard error which model is used: commands without --model do not all take the same."""
    click.echo(for_terminal(f"model: {name_of_model(bundle)}"), err=True)


def sampler_of(bundle: Bundle, photo: Path | None, tree: Tree) -> Sampler:
    """The bundle's language model, with its fusion where there is a photograph.

    Raises as `photo_features`, and StaleModel for weights that do not fit.
    """
    if photo is None:
        load_tensorflow()
        return Sampler(_language_model(bundle), _tokens(bundle))
    features = photo_features(photo, bundle, tree)
    captioner = bundle.captioner()
    return Sampler(captioner.language_model, _tokens(bundle), captioner.fusion, features)


def _language_model(bundle: Bundle) -> LanguageModel:
    from cutline.tasks.models.language_model import load_language_model

    trained = bundle.description.language_model
    return load_language_model(
        ModelFiles.within(bundle.folder).language_model, bundle.vocabulary.height, trained
    )


def _tokens(bundle: Bundle) -> list[str]:
    return bundle.vocabulary["token"].to_list()


def photo_features(photo: Path, bundle: Bundle, tree: Tree) -> np.ndarray:
    """What the bundle's fusion sees of a photograph, (R, C) float16.

    Raises StaleModel where it cannot be prepared as the bundle was trained, CutlineError where the
    file is no photograph that can be used.
    """
    from cutline.tasks.features.image_features import features_of_file

    regions, pooled = features_of_file(photo, settings_with(bundle, tree))
    return regions[0] if bundle.description.fusion.kind == "attention" else pooled


def real_captions(source: Path | None, bundle: Path, workspace: Path) -> Iterable[str]:
    """The captions of a file, or of a data set that was run: without `source`, the bundle's own.

    Raises UsageError where there are none, DamagedFile where they are not there any more.
    """
    if source is not None and source.is_file():
        from cutline.tasks.evaluation.caption_files import read_captions

        return [row.caption for row in read_captions(source)]
    store = Workspace(workspace)
    if source is not None:
        run = last_run(store, "run", source.absolute())
        expected = f"captions '{source}': expected a file of captions, or a data set that was run with it"
    else:
        where = bundle.resolve()
        made = ((run, run.bundle) for run in store.runs() if run.bundle)
        run = next((run for run, its in made if bundle_folder(its).resolve() == where), None)
        expected = f"nearest captions: expected the run that made '{bundle}'"
    if run is None:
        raise UsageError(f"{expected}, found none in {workspace}; name a file with --captions")
    tables = store.outputs_of(run, "ingest", "captions.parquet")
    return pl.read_parquet(tables, columns=["text"])["text"].to_list()
