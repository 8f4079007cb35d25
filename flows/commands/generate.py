"""Text from a trained bundle: lines that continue a text or describe a photograph, and perplexity."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import polars as pl

from cutline.flows.pipeline.run_record import last_run
from cutline.flows.pipeline.settings import Tree, settings_with
from cutline.schemas.errors import UsageError
from cutline.tasks.bundles.bundle import IN_THE_BOX, Bundle, load_bundle
from cutline.tasks.decoding.captioner import ModelFiles
from cutline.tasks.decoding.nearest_captions import RealCaptions
from cutline.tasks.decoding.perplexity import Perplexity, perplexity_of, text_lines, unknown_words
from cutline.tasks.decoding.sampling import Line, Sampler, Sampling
from cutline.tasks.runtime.formatting import count_of, one_line, quoted
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


def newest_bundle(workspace: Path) -> Path:
    """The bundle of the newest run that made one, else the model in the box."""
    for record in Workspace(workspace).runs():
        if record.bundle and (folder := bundle_at(record.bundle)).is_dir():
            return folder
    return IN_THE_BOX


def name_of_model(bundle: Path) -> str:
    """What people call the model of a bundle: its folder's name, or the model in the box."""
    return "the model in the box" if bundle == IN_THE_BOX else bundle.name


def say_model(bundle: Path) -> None:
    """Say on standard error which model is used: commands without --model do not all take the same."""
    click.echo(f"model: {name_of_model(bundle)}", err=True)


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


def show_lines(found: dict[str, Any], as_json: bool) -> None:
    """The lines on standard output, with the real captions nearest to each beneath it."""
    if found["unknown_words"]:
        click.echo(
            f"cutline: the model does not know {quoted(found['unknown_words'])}: read as <unk>", err=True
        )
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for line in found["lines"]:
        click.echo(one_line(line["text"]))
        for near in line.get("nearest", []):
            words = near["distance"]
            what = "copy" if near["copy"] else f"{words} word{'' if words == 1 else 's'} differ"
            click.echo(one_line(f"    {what:<16}  {near['caption']}"))


def show_perplexity(found: Perplexity, as_json: bool) -> None:
    """The perplexity on standard output; what it counts on standard error."""
    if as_json:
        click.echo(json.dumps({"perplexity": found.perplexity, **asdict(found)}, ensure_ascii=False))
        return
    click.echo(
        f"cutline: {count_of(found.captions, 'caption')}, {count_of(found.tokens, 'token')} with their ends, "
        f"of which {found.unknown:,} ({found.unknown / found.tokens:.1%}) are <unk>"
        + (f": {', '.join(word[:40] for word in found.examples)}" if found.examples else "")
        + (f"; without a word: {count_of(found.without_words, 'line')}" if found.without_words else ""),
        err=True,
    )
    click.echo(f"{found.perplexity:.2f}")
