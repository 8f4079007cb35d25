"""What a stage is, one of its shards, and what a stage's function is given and returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from cutline.schemas.errors import StoreFailed
from cutline.schemas.settings import Settings
from cutline.tasks.engine.fingerprint import code_digest, code_of
from cutline.tasks.storage.workspace import Workspace, digest_of

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Stage:
    """A stage: its name, the function that makes one shard, and what else its key must know."""

    name: str
    function: str  # "cutline.tasks.engine.executor:make_images"
    files: tuple[str, ...] = ()  # files of the repository that the function reads
    folder: str = "shards"  # bundles and reports have folders of their own
    tensorflow: bool = False  # whether it computes with it
    reads_photos: bool = False  # from the data set
    settings: str = ""  # whose settings are its own, where those are another stage's

    @property
    def code(self) -> dict[str, str]:
        """Digest of each definition that makes a shard, by name."""
        return code_of(self.function, *self.files)


@dataclass(frozen=True)
class Shard:
    """One shard to look up or to make; holds small values only, so that it can travel.

    `inputs` are digests and part of the key; `sources` say where the inputs lie and are not.
    """

    stage: Stage
    partition: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    lineage: str
    sources: dict[str, Any] = field(default_factory=dict)
    rows: int = 0  # how many rows it has, for progress
    title: str = ""  # names the folder of a bundle or report

    @property
    def key(self) -> str:
        """The digest of all that makes it, 32 hexadecimal digits: stage, inputs, settings and code."""
        return digest_of([self.stage.name, self.inputs, self.settings, code_digest(self.stage.code)])

    @property
    def prefix(self) -> str:
        """Where its outputs go, below the workspace."""
        if self.stage.folder == "shards":
            return f"shards/{self.stage.name}/{self.key}."
        return f"{self.stage.folder}/{self.title}-{self.key[:8]}/"


def lineage_of(stage: Stage, settings: dict[str, Any], upstream: str, **inputs: str) -> str:
    """Digest of all settings and code from the files up to this stage.

    Rows of two shards of one lineage with the same id are the same, so they can be taken over.
    """
    return digest_of([stage.name, settings, code_digest(stage.code), upstream, inputs])


@dataclass(frozen=True)
class StageResult:
    """How many rows a shard took and gave."""

    rows_in: int
    rows_out: int
    rejects: pl.DataFrame | None = None
    reused_rows: int = 0


@dataclass(frozen=True)
class StageContext:
    """One shard in the making: outputs go to `out`, checkpoints to `partial`."""

    shard: Shard
    workspace: Workspace
    out: Path
    advance: Advance

    @property
    def settings(self) -> Settings:
        """All settings of the run; only those in the key may change what is computed."""
        return Settings.model_validate(self.shard.sources["settings"])

    @property
    def partial(self) -> Path:
        """Survives a kill; gone once the shard is there."""
        return self.workspace.partial(self.shard.stage.name, self.shard.key)

    @property
    def packs(self) -> Path:
        """Where the copies of image bytes lie that photographs in Parquet files are read from."""
        return self.workspace.root / "packs"

    def located(self, photos: pl.DataFrame) -> pl.DataFrame:
        """The same photographs with the paths of their packs, which are here then if they are anywhere."""
        from cutline.tasks.storage.packs import files_of, located

        for container in photos["container"].drop_nulls().unique():
            for file in files_of(container, Path("packs"))[:1]:
                with suppress(StoreFailed):  # then the photograph is a reject, with a reason
                    self.workspace.file(file.as_posix())
        return located(photos, self.packs)

    def path(self, source: str) -> Path:
        """The file that a source names."""
        return self.workspace.file(self.shard.sources[source])

    def paths(self, source: str) -> list[Path]:
        """The files that a source names."""
        return self.workspace.files(self.shard.sources[source])
