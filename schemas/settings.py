"""Settings: one frozen pydantic model a stage, so that no stage's key sees another's settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class StageSettings(BaseModel):
    """Base of every stage's settings: frozen, finite, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `no` as false, which would pass for 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("expected a number")
        return value


class IngestSettings(StageSettings):
    layout: str = Field(  # its values are those of the registry in tasks/ingest/layouts, which checks them
        "auto", description="how the data set is laid out; `auto` finds out from its files"
    )
    dev_share: float = Field(
        0.1, ge=0, lt=0.5, description="share of photographs for dev, where the data set has no splits"
    )
    test_share: float = Field(
        0.1, ge=0, lt=0.5, description="share of photographs for test, where the data set has no splits"
    )
    held_out: bool = Field(
        True, description="false: dev and test teach too, for a last model when nothing is left to choose"
    )
    max_pixels: int = Field(
        100_000_000, ge=1, description="a photograph that declares more is rejected before it is decoded"
    )
    max_file_bytes: int = Field(256 * 2**20, ge=1, description="a larger file is rejected unread")
    max_caption_words: int = Field(100, ge=1, description="a longer caption is rejected")
    max_reject_rate: float = Field(
        0.05, ge=0, le=1, description="above this share of rejected rows a run ends with exit code 3"
    )


class ImagesSettings(StageSettings):
    side_px: int = Field(224, ge=32, le=1024, description="width and height of the square")
    crop: Literal["centre", "pad", "squash"] = Field(
        "centre", description="cut the longer side, add grey borders, or change the aspect"
    )
    interpolation: Literal["area", "linear", "cubic", "lanczos"] = Field(
        "area", description="OpenCV's resampling; `area` only when shrinking, else cubic"
    )


class TokensSettings(StageSettings):
    stopwords: str = Field(
        "english", description="a language of NLTK's lists, or the path of a file with a word a line"
    )


class VocabularySettings(StageSettings):
    min_count: int = Field(3, ge=1, description="a rarer token of the training captions becomes <unk>")
    max_size: int = Field(10_000, ge=10, description="most frequent tokens kept")


class ImageFeaturesSettings(StageSettings):
    network: str = Field(
        "VGG16", description="`VGG16`, `EfficientNetLite2`, or another network of keras.applications"
    )
    weights: str = Field(
        "bundled",
        description="`bundled` (VGG16, EfficientNetLite2), `imagenet` (downloaded to data/workspace/keras), "
        "or a path",
    )
    precision: Literal["auto", "float32", "int8"] = Field(
        "auto",
        description="`auto` is int8 for the bundled weights where the processor is fast at it, else float32",
    )
    batch_size: int = Field(
        2,
        ge=1,
        description="photographs a pass; the last batch of a shard is filled up, so a row never depends on "
        "its neighbours",
    )


class LanguageModelSettings(StageSettings):
    embedding_size: int = Field(256, ge=1, description="numbers a token")
    state_size: int = Field(384, ge=1, description="width of the LSTM's state")
    dropout: float = Field(
        0.25, ge=0, lt=1, description="share of the embeddings and states left out in training"
    )
    max_tokens: int = Field(40, ge=2, description="a longer caption is cut for training")
    batch_size: int = Field(64, ge=1, description="captions a step")
    learning_rate: float = Field(8e-3, gt=0, description="Adam's, at its highest")
    epochs: int = Field(
        3,
        ge=1,
        description="the learning rate falls to nothing over them; ends early when dev perplexity rises",
    )
    patience: int = Field(2, ge=1, description="epochs without a better perplexity before it ends")
    seed: int = Field(
        1, ge=0, lt=2**32, description="of the first weights, the order of captions, and dropout"
    )


class TextFeaturesSettings(StageSettings):
    batch_size: int = Field(256, ge=1, description="captions a pass")


class ContentEmbeddingSettings(StageSettings):
    size: int = Field(128, ge=1, le=1024, description="numbers that say what a photograph's captions hold")
    min_count: int = Field(10, ge=1, description="n-grams in fewer training captions are left out")
    penalty: float = Field(
        0.25,
        gt=0,
        description="L2 penalty of the regression from features to content vectors",
    )


class FusionSettings(StageSettings):
    kind: Literal["attention", "concat"] = Field(
        "attention", description="the state asks the regions, or pooled and state side by side"
    )
    hidden_size: int = Field(384, ge=1, description="width of the layer where photograph and text meet")
    heads: int = Field(4, ge=1, description="questions asked of the regions at once; divides hidden_size")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the hidden layer left out in training")
    feature_dropout: float = Field(0.5, ge=0, lt=1, description="share of the features' channels left out")
    averaging: float = Field(
        0.98, ge=0, lt=1, description="weights kept are a running mean over about 1 / (1 - averaging) steps"
    )
    batch_size: int = Field(64, ge=1, description="captions a step")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's, at its highest")
    text_epochs: int = Field(
        2,
        ge=0,
        description="epochs before these on all training captions, their content vectors predicted from text",
    )
    epochs: int = Field(4, ge=1, description="on captions with their photographs; the last is kept")
    dev_beam: int = Field(3, ge=1, le=64, description="beam for the dev split's captions after each epoch")
    seed: int = Field(
        1, ge=0, lt=2**32, description="of the first weights, the order of captions, and dropout"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> FusionSettings:
        if self.hidden_size % self.heads:
            raise ValueError(f"heads={self.heads} must divide hidden_size={self.hidden_size}")
        return self


class JointEmbeddingSettings(StageSettings):
    size: int = Field(
        128, ge=2, le=1024, description="numbers a vector of the space of photographs and texts"
    )
    max_words: int = Field(
        2048, ge=1, le=20_000, description="most frequent content words that have a vector of their own"
    )
    margin: float = Field(
        0.1, gt=0, lt=2, description="how much nearer a caption is to be than the hardest wrong one"
    )
    dropout: float = Field(0.4, ge=0, lt=1, description="share of the features left out in training")
    batch_size: int = Field(128, ge=2, description="photographs a step, each with one of its captions")
    learning_rate: float = Field(3e-4, gt=0, description="Adam's")
    epochs: int = Field(12, ge=0, description="at most; ends early when the dev split's recall stops rising")
    patience: int = Field(6, ge=1, description="epochs without a better recall before it ends")
    seed: int = Field(1, ge=0, lt=2**32, description="of the order of captions, and dropout")


class LeaksSettings(StageSettings):
    similarity: float = Field(
        0.93, gt=0, le=1, description="photographs of two splits at least this alike (cosine) are one"
    )


WIDEST_BEAM = 64


class PredictionsSettings(StageSettings):
    beam: int = Field(20, ge=1, le=WIDEST_BEAM, description="1 is greedy")
    cider_weight: float = Field(
        3.0,
        ge=0,
        le=1000,
        description="weight of the expected CIDEr in the search, beside a caption's score; above 0 the "
        "caption is written that has the highest expected CIDEr and fits the photograph, at 0 the one with "
        "the highest score",
    )
    word_penalty: float = Field(
        0.025,
        ge=0,
        le=10,
        description="CIDEr that each word takes off what is to be expected of a caption: the higher, the "
        "shorter captions are",
    )
    neighbour_weight: float = Field(
        0.65,
        ge=0,
        le=1,
        description="share of what is to be expected that is told by the described photographs, there or "
        "missing, whose captions lie nearest to the photograph, times N / (N + 2,000) where N are described; "
        "the rest is predicted by regression",
    )
    max_tokens: int = Field(20, ge=1, le=100, description="a caption ends there at the latest")
    alternatives: int = Field(
        3, ge=1, le=WIDEST_BEAM, description="captions kept a photograph, best first; at most the beam"
    )
    batch_size: int = Field(
        32,
        ge=1,
        description="photographs a pass; the next one takes the place of one whose captions have ended",
    )


class EvaluateSettings(StageSettings):
    meteor: bool = Field(False, description="also METEOR, which needs Java")


class ReportSettings(StageSettings):
    gallery: int = Field(24, ge=0, description="photographs of the held-out split shown with their captions")
    thumbnail_px: int = Field(200, ge=16, le=640, description="longer side of a thumbnail")


# Names of earlier versions: an error says what they are called now.
RENAMED = {
    "captions": "tokens",
    "caption": "predictions",
    "caption.agreement": "predictions.cider_weight",
    "caption.brevity": "predictions.word_penalty",
    "caption.neighbours": "predictions.neighbour_weight",
    "predictions.agreement": "predictions.cider_weight",
    "predictions.brevity": "predictions.word_penalty",
    "predictions.neighbours": "predictions.neighbour_weight",
    "gist": "content_embedding",
    "matching": "joint_embedding",
    "leaks.likeness": "leaks.similarity",
}


class Settings(BaseModel):
    """All settings of a run, by stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _name_the_new_name(cls, given: Any) -> Any:
        """Raise ValueError for a setting of an earlier version, with its present name."""
        if isinstance(given, dict):
            names = [
                f"{stage}.{name}" for stage, some in given.items() if isinstance(some, dict) for name in some
            ]
            for old in sorted({*names, *given} & RENAMED.keys(), key=len, reverse=True):
                raise ValueError(f"`{old}` is called `{RENAMED[old]}` now")
        return given

    ingest: IngestSettings = IngestSettings()
    images: ImagesSettings = ImagesSettings()
    tokens: TokensSettings = TokensSettings()
    vocabulary: VocabularySettings = VocabularySettings()
    image_features: ImageFeaturesSettings = ImageFeaturesSettings()
    language_model: LanguageModelSettings = LanguageModelSettings()
    text_features: TextFeaturesSettings = TextFeaturesSettings()
    content_embedding: ContentEmbeddingSettings = ContentEmbeddingSettings()
    fusion: FusionSettings = FusionSettings()
    joint_embedding: JointEmbeddingSettings = JointEmbeddingSettings()
    leaks: LeaksSettings = LeaksSettings()
    predictions: PredictionsSettings = PredictionsSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()


def expanded(setting: str) -> Path:
    """The path that a setting names; `~` is the home folder, and stays where there is none."""
    return Path(os.path.expanduser(setting))  # noqa: PTH111 Path's own raises where there is none
