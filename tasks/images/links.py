"""Where links of a data set may lead: into its folder, and into the stores that such folders are made of.

Tools that keep each file once put a link to it in its place. Known are the store of Hugging Face's hub
(`snapshots/REVISION` beside `blobs`), DVC's (`.dvc/cache`) and git-annex's (`.git/annex/objects`). No
other link out of the folder is read: a data set from a stranger could link to the user's private files.
"""

from __future__ import annotations

import os
from functools import lru_cache

_STORES = (".dvc/cache", ".git/annex/objects")
OUTSIDE = (
    "the link leads out of the data set's folder, to '{place}'; put what it points to in its place, as with "
    "`cp -rL`"
)


def is_inside(place: str, root: str) -> bool:
    """Whether a real path is `root` or lies in it."""
    return place == root or place.startswith(root.rstrip("/") + "/")


def may_read(place: str, root: str) -> bool:
    """Whether a file at the real path `place` may be read for the data set at the real path `root`."""
    return is_inside(place, root) or any(is_inside(place, store) for store in _stores_of(root))


@lru_cache(maxsize=64)
def _stores_of(root: str) -> tuple[str, ...]:
    """The real paths of the stores that the folders above a data set, or itself, have."""
    found = []
    folder, below = root, ""
    while True:
        found += [f"{folder}/{store}" for store in _STORES]
        if below and os.path.basename(folder) == "snapshots":  # noqa: PTH119
            found.append(f"{os.path.dirname(folder)}/blobs")  # noqa: PTH120
        if folder in ("/", ""):
            break
        folder, below = os.path.dirname(folder), folder  # noqa: PTH120
    return tuple(os.path.realpath(store) for store in found if os.path.isdir(store))  # noqa: PTH112
