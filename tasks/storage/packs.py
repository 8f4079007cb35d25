"""Packs: the image bytes of a Parquet file, which cannot be addressed there, one behind the other.

A table says `pack:NAME` where a photograph lies in a pack, whatever folder the packs are in: so it is
the same in every workspace, and stays true in one that is moved.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


# No tar of a data set can be called so: it would not end in ".tar".
_CONTAINER = re.compile(r"^pack:([0-9a-f]{32}\.pack)$")


def located(photos: pl.DataFrame, packs: Path) -> pl.DataFrame:
    """The same photographs with the path of the pack, in the folder `packs`, where one is their container.

    Only a pack has an absolute path for a container; other containers are relative to the data set.
    """
    import polars as pl

    name = pl.col("container").str.extract(_CONTAINER.pattern)
    folder = f"{os.path.abspath(packs)}/"  # noqa: PTH100 (a link in the workspace's path may stay)
    return photos.with_columns(pl.coalesce(pl.lit(folder) + name, "container").alias("container"))


def files_of(container: str, packs: Path) -> list[Path]:
    """The files in the folder `packs` that a container stands for; none unless it is a pack."""
    name = _CONTAINER.fullmatch(container)
    return [packs / name[1], (packs / name[1]).with_suffix(".npy")] if name else []
