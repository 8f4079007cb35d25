"""A bundle: a folder that holds a trained model with its vocabulary, its settings and a card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cutline.schemas.errors import SchemaMismatch, StaleModel, UsageError
from cutline.schemas.settings import (
    FusionSettings,
    ImageFeaturesSettings,
    ImagesSettings,
    LanguageModelSettings,
    PredictionsSettings,
)
from cutline.tasks.decoding.captioner import MODEL_FILES, Captioner, ModelFiles
from cutline.tasks.ingest.parquet_pages import BoundedParquet
from cutline.tasks.runtime.formatting import in_form, metric_of
from cutline.tasks.storage.tables import read_table
from cutline.tasks.storage.workspace import digest_of_file

DESCRIPTION, CARD = "bundle.json", "CARD.md"
VOCABULARY = MODEL_FILES["vocabulary"]
PRETRAINED = Path(__file__).resolve().parents[2] / "data" / "pretrained" / "everyday"  # see its CARD.md
MAX_DESCRIPTION_BYTES = 2**20
MAX_TOKEN_BYTES = 2**16

Digest = Field(pattern=r"^[0-9a-f]{32}$")


class FeatureOrigin(BaseModel):
    """How the photographs were made into features: what a bundle and its input must agree on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: ImagesSettings
    network: str
    weights: str = Field(description="the digest of the network's weights, whatever they were called")
    channels: int = Field(ge=1, le=65_536, description="numbers a region")

    @staticmethod
    def of(
        images: ImagesSettings, image_features: ImageFeaturesSettings, weights_digest: str, channels: int
    ) -> FeatureOrigin:
        """Leaves out what changes no feature, such as the batch size."""
        return FeatureOrigin(
            images=images, network=image_features.network, weights=weights_digest, channels=channels
        )

    @property
    def digest(self) -> str:
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=16).hexdigest()


class Description(BaseModel):
    """The content of bundle.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["cutline-bundle-7"] = "cutline-bundle-7"
    features: FeatureOrigin
    language_model: LanguageModelSettings
    fusion: FusionSettings
    predictions: PredictionsSettings
    scores: dict[str, dict[str, float]] = Field(description="by split and metric")
    sizes: dict[str, int] = Field(description="photographs and captions it was trained on, by what they are")
    versions: dict[str, str] = Field(description="of the libraries it was made with")
    digests: dict[str, str] = Field(description="BLAKE2b of each file, 16 bytes, hex")


@dataclass(frozen=True)
class Bundle:
    """A trained model that has been read and found whole."""

    folder: Path
    description: Description
    vocabulary: pl.DataFrame

    def captioner(self) -> Captioner:
        """The model, ready to write captions. Raises StaleModel where the weights do not fit the settings."""
        told, files = self.description, ModelFiles.within(self.folder)
        _check_table(self.folder, files.reference_photos)
        return Captioner.load(files, told.language_model, told.fusion, told.features.channels)

    def check_attention(self) -> None:
        """Raise UsageError where the model does not look at regions."""
        if self.description.fusion.kind != "attention":
            raise UsageError(
                f"bundle '{self.folder}' is of the kind 'concat', which does not look at regions: expected "
                "one trained with fusion.kind=attention"
            )

    def check_features(self, features: FeatureOrigin) -> None:
        """Raise StaleModel where `features` were made in another way than those it was trained on."""
        ours, theirs = _flat(self.description.features), _flat(features)
        different = [name for name in ours if ours[name] != theirs[name]]
        if different:
            raise StaleModel(
                f"bundle '{self.folder}' was trained on features with "
                + ", ".join(f"{name}={ours[name]}" for name in different)
                + "; these have "
                + ", ".join(f"{name}={theirs[name]}" for name in different)
                + ". Make the features with the bundle's settings, or train with these"
            )


def _flat(features: FeatureOrigin) -> dict[str, Any]:
    values = features.model_dump()
    return {f"images.{name}": value for name, value in values.pop("images").items()} | values


def write_bundle(
    folder: Path,
    files: ModelFiles,
    *,
    features: FeatureOrigin,
    lm_settings: LanguageModelSettings,
    fusion_settings: FusionSettings,
    caption_settings: PredictionsSettings,
    scores: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, int],
    versions: Mapping[str, str],
    about: str = "",
) -> None:
    """Put a trained model into an empty `folder`.

    `scores` are by split and metric, `sizes` counts such as {"training photographs": 600};
    `about` says in Markdown where the data came from. The same model gives the same bytes.
    """
    for name, path in files._asdict().items():
        shutil.copyfile(path, folder / MODEL_FILES[name])
    description = Description(
        features=features,
        language_model=lm_settings,
        fusion=fusion_settings,
        predictions=caption_settings,
        scores={split: dict(values) for split, values in scores.items()},
        sizes=dict(sizes),
        versions=dict(versions),
        digests={name: digest_of_file(folder / name) for name in MODEL_FILES.values()},
    )
    tokens = read_table(files.vocabulary, "vocabulary").height
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_card(description, tokens, about), encoding="utf-8")


def load_bundle(folder: Path) -> Bundle:
    """Read and check a bundle; nothing in it is run.

    Raises UsageError where `folder` is no bundle, StaleModel where one of its files is missing,
    damaged or written by another version.
    """
    description = _read_description(folder)
    for name in MODEL_FILES.values():
        expected = description.digests.get(name, "none")
        found = digest_of_file(folder / name) if (folder / name).is_file() else "no such file"
        if found != expected:
            raise StaleModel(
                f"bundle '{folder}': {name} should have the digest {expected}, found {found}; "
                "copy the bundle again from where it was made, or train it again"
            )
    _check_table(folder, folder / VOCABULARY)
    try:
        vocabulary = read_table(folder / VOCABULARY, "vocabulary")
    except (
        SchemaMismatch,
        OSError,
        ValueError,
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
    ) as error:
        raise StaleModel(f"bundle '{folder}': {VOCABULARY} is not a vocabulary: {error}") from None
    longest = vocabulary["token"].str.len_bytes().max()
    if isinstance(longest, int) and longest > MAX_TOKEN_BYTES:
        raise StaleModel(
            f"bundle '{folder}': expected tokens of at most {MAX_TOKEN_BYTES:,} bytes in {VOCABULARY}, found "
            f"one of {longest:,}; train the bundle again"
        )
    return Bundle(folder, description, vocabulary.sort("id"))


def _check_table(folder: Path, path: Path) -> None:
    """Raise StaleModel where a Parquet file is damaged, or expands to more than is plausible."""
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            BoundedParquet(file).check_pages()
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise StaleModel(f"bundle '{folder}': {path.name} cannot be read: {error}; copy it again") from None


def _read_description(folder: Path) -> Description:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UsageError(
            f"'{folder}' is no bundle: expected a folder with {DESCRIPTION}, as `cutline run` makes it"
        )
    if path.stat().st_size > MAX_DESCRIPTION_BYTES:
        raise StaleModel(
            f"'{path}' has {path.stat().st_size:,} bytes; a description has at most {MAX_DESCRIPTION_BYTES:,}"
        )
    try:
        content = json.loads(path.read_bytes())
        return Description.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise StaleModel(
            f"'{path}' does not fit this version of Cutline: {place}: {first['msg']} "
            f"({error.error_count()} such); train the bundle again, or use the version it was made with"
        ) from None
    except (ValueError, RecursionError) as error:
        raise StaleModel(
            f"'{path}' is damaged: expected JSON, found: {error}; copy the bundle again"
        ) from None


def _score_lines(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not scores:
        return ["None: no photograph was held out."]
    rows = [
        f"| {split} | {metric_of(name).label} | {in_form(value, metric_of(name).form)} |"
        for split, values in scores.items()
        for name, value in values.items()
    ]
    return ["| split | metric | value |", "| --- | --- | --- |", *rows]


def _card(description: Description, tokens: int, about: str) -> str:
    """CARD.md: what a person wants to know before using the model."""
    features, fusion = description.features, description.fusion
    lines = [
        "# A caption model",
        "",
        f"Writes one English sentence for a photograph. Pictures go through {features.network} "
        f"({features.images.side_px}×{features.images.side_px} px, crop: {features.images.crop}), the words "
        f"through an LSTM of {description.language_model.state_size} units; fusion: {fusion.kind}.",
        "",
        "## Trained on",
        "",
        *([about, ""] if about else []),
        *(f"- {name}: {count:,}" for name, count in description.sizes.items()),
        f"- tokens it knows: {tokens:,}",
        "",
        "## Scores",
        "",
        *_score_lines(description.scores),
        "",
        "## What it cannot do",
        "",
        "- It knows only the words and the kinds of scene of its training captions, and names the nearest of "
        "them when it sees something else; that a photograph is unlike them shows in its distance, above 1.",
        "- It does not read text in pictures, count reliably beyond two, or recognise persons.",
        "- It repeats the habits of its annotators, such as guesses of gender and age.",
        f"- It takes only features made as described in {DESCRIPTION}; others are refused.",
        "",
        "## Made with",
        "",
        *(f"- {name} {version}" for name, version in description.versions.items()),
    ]
    return "\n".join(lines) + "\n"
