"""The layouts of data sets: which one a folder has, and what its files say.

| layout      | recognised by                               | splits from                                  |
| ----------- | ----------------------------------------- | -------------------------------------------- |
| flickr8k    | `Flickr8k.token.txt`, `results_*.token`   | `Flickr_8k.{train,dev,test}Images.txt`       |
| karpathy    | `dataset_*.json` that holds `sentences`   | `split`; restval is train, val is dev        |
| coco        | `captions_*.json`                         | `train`, `val`, `test` in the file's name    |
| kaggle      | `captions.txt`, `results.csv`, by header  | as flickr8k, where there are lists           |
| imagefolder | `metadata.{jsonl,ndjson,csv,tsv}`         | column `split`, else folders                 |
| webdataset  | `*.tar`                                   | the shard's name, else folders               |
| parquet     | `*.parquet` with photographs or names     | column `split`, else the file's name, folders |
| folder      | photographs, captions in a `.txt` beside  | folders                                      |

The first that fits is taken. To add a layout, write a module with one `Layout` and add it to `LAYOUTS`.
A split word in a name (`val2017`, `train-00000-of-00002.parquet`) counts as the split; val, valid,
validation and eval are dev. Photographs may lie anywhere under the root: a name is looked up where it says,
then where its folders agree with a file's (tasks/ingest/names.py).

Nothing is written into a data set, and nothing is unpacked: a photograph in a tar is addressed by
container, offset and size; the image bytes of a Parquet file are copied once into a pack, since they
cannot be addressed in place.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cutline.schemas.errors import UnknownDataset, UsageError
from cutline.tasks.ingest.files import TEXT_ENDINGS, Files, Problem, ending_of
from cutline.tasks.ingest.finder import Finder
from cutline.tasks.ingest.layouts.base import Item, Layout, Source
from cutline.tasks.ingest.layouts.coco import COCO
from cutline.tasks.ingest.layouts.flickr8k import FLICKR8K
from cutline.tasks.ingest.layouts.folder import FOLDER
from cutline.tasks.ingest.layouts.imagefolder import IMAGEFOLDER
from cutline.tasks.ingest.layouts.kaggle import KAGGLE
from cutline.tasks.ingest.layouts.karpathy import KARPATHY
from cutline.tasks.ingest.layouts.parquet import PARQUET
from cutline.tasks.ingest.layouts.webdataset import WEBDATASET
from cutline.tasks.ingest.unread import unread_columns, unread_endings, why_unknown, why_unread
from cutline.tasks.runtime.unicode import printable

# The most specific first: a data set has the first that fits, a file belongs to the first that matches.
LAYOUTS: tuple[Layout, ...] = (
    FLICKR8K,
    KARPATHY,
    COCO,
    KAGGLE,
    IMAGEFOLDER,
    WEBDATASET,
    PARQUET,
    FOLDER,
)
AUTO = "auto"  # the value of ingest.layout that lets the files decide


@dataclass(frozen=True)
class Detected:
    """The layout of a data set, the files it is known by, and those of other layouts, which are not read."""

    layout: Layout
    markers: list[str]
    others: dict[str, list[str]]


def layout_names() -> list[str]:
    """The values that the setting `ingest.layout` may have."""
    return [AUTO, *(layout.name for layout in LAYOUTS)]


def check_layout(name: str) -> None:
    """Raise UsageError, with the layouts that exist, unless `name` is a value of `ingest.layout`."""
    if name not in layout_names():
        expected = ", ".join(layout_names())
        raise UsageError(f"setting ingest.layout: expected one of {expected}; found '{printable(name, 80)}'")


def detect(files: Files, wanted: str = AUTO) -> Detected:
    """Find out which layout a data set has; with `wanted` other than "auto" only that one will do.

    Raises UnknownDataset, which names what was looked for and what was found, and UsageError for a
    `wanted` that does not exist.
    """
    check_layout(wanted)
    markers = find_markers(files)
    fitting = [layout for layout in LAYOUTS if markers[layout.name]]
    found = next((layout for layout in fitting if wanted in (AUTO, layout.name)), None)
    if found is None:
        raise UnknownDataset(_unknown(files, wanted))
    # A folder of photographs is part of most data sets, and not another layout of them.
    others = {other.name: markers[other.name] for other in fitting if other not in (found, FOLDER)}
    return Detected(found, markers[found.name], others)


def _unknown(files: Files, wanted: str) -> str:
    if wanted == AUTO:
        lines = [f"no layout fits the files in '{files.root}'; looked for:"]
    else:
        lines = [f"the files in '{files.root}' do not fit ingest.layout={wanted}; looked for:"]
    lines += [f"  {layout.name}: {layout.looked_for}" for layout in LAYOUTS if wanted in (AUTO, layout.name)]
    endings = Counter(printable(ending_of(path)) or "(no ending)" for path in files.paths)
    found = ", ".join(f"{count:,} × {ending}" for ending, count in endings.most_common(10))
    lines.append(f"found {len(files.paths):,} files{': ' + found if found else ''}")
    return "\n".join([*lines, *why_unknown(files)])


def find_markers(files: Files) -> dict[str, list[str]]:
    """The files that each layout is recognised by, by its name; a file belongs to the first that matches.

    A photograph belongs to the layout `folder`. Damaged files count where other files of their layout
    are whole, or where there is no photograph.
    """
    markers: dict[str, list[str]] = {layout.name: [] for layout in LAYOUTS}
    damaged: dict[str, list[str]] = {layout.name: [] for layout in LAYOUTS}
    for path in files.paths:
        for layout in (FOLDER,) if files.is_photo(path) else LAYOUTS:
            fits = layout.matches(files, path)
            if fits is not False:
                (damaged if fits is None else markers)[layout.name].append(path)
                break
    markers[FOLDER.name] += [problem.name for problem in files.problems if problem.kind == "photo"]
    for name, paths in damaged.items():
        if paths and (markers[name] or not markers[FOLDER.name]):
            markers[name] = sorted(markers[name] + paths)
    return markers


def read_layout(
    files: Files, detected: Detected, packs: Path, max_file_bytes: int, finder: Finder | None = None
) -> Iterator[Item]:
    """Read a data set of a known layout, one item after the other.

    Where `finder.claims.revised` afterwards, some names were believed that later ones proved wrong: then
    it has to be read again with `Finder(files, finder.claims)`.

    Photographs under the root are all told of, named by an annotation or not. `packs` is a folder
    for the copies that only Parquet needs; bytes over `max_file_bytes` are not copied.
    """
    has_manifest = files.selection.has_manifest
    yield from (
        problem for problem in files.problems if not has_manifest or files.selection.holds(problem.name)
    )
    for path in files.paths:
        if files.is_photo(path):
            yield files.photo(path)
    source = Source(files, detected.markers, packs, max_file_bytes, finder or Finder(files))
    yield from detected.layout.read(source)
    yield from unread_columns(source)
    yield from _not_read(files, detected)
    yield from unread_endings(files)


def _not_read(files: Files, detected: Detected) -> Iterator[Problem]:
    """A notice for each folder and ending of the texts and tables that nothing was read from."""
    layouts = {path: other for other, paths in detected.others.items() for path in paths}
    alike: dict[tuple[str, str], list[str]] = {}
    for path in files.paths:
        if ending_of(path) in TEXT_ENDINGS and path not in files.read and not files.is_photo(path):
            alike.setdefault((posixpath.dirname(path), ending_of(path)), []).append(path)
    for (folder, ending), paths in alike.items():
        name = paths[0] if len(paths) == 1 else posixpath.join(folder, f"*{ending}")
        detail = f"{len(paths):,} such files; " if len(paths) > 1 else ""
        detail += f"the data set is read as {detected.layout.name}: {detected.layout.looked_for}"
        others = sorted({layouts[path] for path in paths if path in layouts})
        detail += f"; or set ingest.layout={others[0]}" if others else ""
        detail = (not others and why_unread(files, paths[0])) or detail
        yield Problem("file", printable(name), "not_read", detail)
