"""The layouts of data sets: what lies in a folder, which layout that is, and what its files say.

| layout      | known by                                  | splits from                                  |
| ----------- | ----------------------------------------- | -------------------------------------------- |
| flickr8k    | `Flickr8k.token.txt`, `results_*.token`   | `Flickr_8k.{train,dev,test}Images.txt`       |
| karpathy    | `dataset_*.json` that holds `sentences`   | `split`; restval is train, val is dev        |
| coco        | `captions_*.json`                         | `train`, `val`, `test` in the file's name    |
| kaggle      | `captions.txt`, `results.csv`, by header  | as flickr8k, where there are lists           |
| imagefolder | `metadata.{jsonl,ndjson,csv,tsv}`         | column `split`, else folders                 |
| webdataset  | `*.tar`                                   | the shard's name, else folders               |
| parquet     | `*.parquet` with photographs or names     | column `split`, else the file's name, folders |
| folder      | photographs, captions in a `.txt` beside  | folders                                      |

The first that fits is taken. A split word in a name (`val2017`, `train-00000-of-00002.parquet`)
counts as the split; val, valid, validation and eval are dev. Photographs may lie anywhere under the
root: a name is looked for where it says, then where its folders agree with a file's (tasks/ingest/names.py).

Nothing is written into a data set, and nothing is unpacked: a photograph in a tar is addressed by
container, offset and size; the image bytes of a Parquet file are copied once into a pack, since they
cannot be addressed in place.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cutline.schemas.errors import UnknownDataset
from cutline.tasks.ingest.files import TEXT_ENDINGS, Files, Problem, ending_of
from cutline.tasks.ingest.finder import Finder
from cutline.tasks.ingest.layouts.annotations import (
    is_own_file,
    kaggle_form,
    read_coco,
    read_flickr8k,
    read_folder,
    read_imagefolder,
    read_kaggle,
    read_karpathy,
    table_separator,
)
from cutline.tasks.ingest.layouts.base import Item, Source
from cutline.tasks.ingest.layouts.parquet import has_photos, read_parquet
from cutline.tasks.ingest.layouts.webdataset import read_webdataset
from cutline.tasks.ingest.unread import unread_columns, unread_endings, why_unknown, why_unread
from cutline.tasks.runtime.unicode import printable


@dataclass(frozen=True)
class Detected:
    """The layout of a data set, the files it is known by, and those of other layouts, which are not read."""

    layout: str
    markers: list[str]
    others: dict[str, list[str]]


def detect(files: Files, wanted: str = "auto") -> Detected:
    """Find out which layout a data set has; with `wanted` other than "auto" only that one will do.

    Raises UnknownDataset, which tells what was looked for and what was found.
    """
    markers = find_markers(files)
    fitting = [layout for layout in READERS if markers[layout]]
    layout = wanted if wanted in fitting else fitting[0] if fitting and wanted == "auto" else None
    if layout is None:
        raise UnknownDataset(_unknown(files, wanted))
    # A folder of photographs is part of most data sets, and not another layout of them.
    others = {other: markers[other] for other in fitting if other not in (layout, "folder")}
    return Detected(layout, markers[layout], others)


def _unknown(files: Files, wanted: str) -> str:
    if wanted == "auto":
        lines = [f"no layout fits the files in '{files.root}'; looked for:"]
    else:
        lines = [f"the files in '{files.root}' do not fit ingest.layout={wanted}; looked for:"]
    lines += [f"  {layout}: {what}" for layout, what in LOOKED_FOR.items() if wanted in ("auto", layout)]
    endings = Counter(printable(ending_of(path)) or "(no ending)" for path in files.paths)
    found = ", ".join(f"{count:,} × {ending}" for ending, count in endings.most_common(10))
    lines.append(f"found {len(files.paths):,} files{': ' + found if found else ''}")
    return "\n".join([*lines, *why_unknown(files)])


LOOKED_FOR = {
    "flickr8k": "Flickr8k.token.txt",
    "karpathy": "dataset_*.json with `images` and their `sentences`",
    "coco": "captions_*.json",
    "kaggle": "captions.txt, captions.csv, captions.tsv or results.csv whose first line names the columns, "
    "as `image,caption`",
    "imagefolder": "metadata.jsonl, metadata.csv, metadata.tsv or captions.jsonl",
    "webdataset": "*.tar",
    "parquet": "*.parquet with a column of photographs or of their names",
    "folder": "photographs: *.jpg, *.png, *.webp, …, their captions in *.txt or *.caption beside them",
}


def find_markers(files: Files) -> dict[str, list[str]]:
    """The files that each layout is known by."""
    markers: dict[str, list[str]] = {layout: [] for layout in READERS}
    damaged: list[str] = []
    for path in files.paths:
        name = path[path.rfind("/") + 1 :].lower()
        ending = ending_of(name)
        if files.is_photo(path):
            markers["folder"].append(path)
        elif ending not in TEXT_ENDINGS:
            continue
        elif name == "flickr8k.token.txt" or re.fullmatch(r"results_\d+\.token", name):
            markers["flickr8k"].append(path)
        elif re.fullmatch(r"dataset_.*\.json", name) and b'"sentences"' in files.head(path, 2**20):
            markers["karpathy"].append(path)
        elif re.fullmatch(r"captions_.*\.json", name) and not is_own_file(files, path):
            markers["coco"].append(path)
        elif re.fullmatch(r".*captions?.*\.(txt|csv|tsv)|results\.csv", name) and _is_table(files, path):
            markers["kaggle"].append(path)
        elif re.fullmatch(r"(metadata|.*captions?.*)\.(jsonl|ndjson)|metadata\.[ct]sv", name):
            markers["imagefolder"] += [] if is_own_file(files, path) else [path]
        elif ending == ".tar":
            markers["webdataset"].append(path)
        elif ending == ".parquet":
            fits = has_photos(files, path)
            (damaged if fits is None else markers["parquet"] if fits else []).append(path)
    markers["folder"] += [problem.name for problem in files.problems if problem.kind == "photo"]
    if markers["parquet"] or not markers["folder"]:
        markers["parquet"] = sorted(markers["parquet"] + damaged)
    return markers


def _is_table(files: Files, path: str) -> bool:
    head = files.head(path, 4096)
    return kaggle_form(head) is not None or table_separator(head) is not None


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
    yield from READERS[detected.layout](source)
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
        detail += f"the data set is read as {detected.layout}: {LOOKED_FOR[detected.layout]}"
        others = sorted({layouts[path] for path in paths if path in layouts})
        detail += f"; or set ingest.layout={others[0]}" if others else ""
        detail = (not others and why_unread(files, paths[0])) or detail
        yield Problem("file", printable(name), "not_read", detail)


READERS: dict[str, Callable[[Source], Iterator[Item]]] = {
    "flickr8k": read_flickr8k,
    "karpathy": read_karpathy,
    "coco": read_coco,
    "kaggle": read_kaggle,
    "imagefolder": read_imagefolder,
    "webdataset": read_webdataset,
    "parquet": read_parquet,
    "folder": read_folder,
}
