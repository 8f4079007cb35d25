"""Captions against references: the scores of the COCO caption challenge, and signs of collapse.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004), CIDEr (Vedantam et al. 2015) and METEOR (Denkowski
and Lavie 2014) as pycocoevalcap computes them, so that they compare with published tables. Only its
tokenizer, a Java program, is replaced.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import polars as pl

from schemas.errors import CutlineError, UsageError
from schemas.settings import EvaluateSettings
from schemas.tables import dtypes_of
from tasks.captions import is_word, split, tokenize

HELD_OUT = ("dev", "test")  # the splits that are scored
Missing = Literal["refuse", "empty", "skip"]

# What pycocoevalcap removes from tokens. It does so after lower-casing, so that "-LRB-" has become
# "-lrb-" and brackets stay; they stay here too.
_PUNCTUATION = frozenset([".", "?", "!", ",", ":", "-", "--", "...", ";", "'", "''", "`", "``"])
_SPELT = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"€": "$", "£": "#", "¢": "cents"},
}
_KEPT_SYMBOLS = frozenset("°×§©®™·•¿¡")
# What Java's tokenizer keeps whole and `split` takes apart: "?!", 'n', '80s, names on networks,
# addresses, AT&T.
_WHOLE = re.compile(
    r"([?!]{2,}|(?<!\w)'(?:n'(?!\w)|(?:em|til|cause|\d0s)\b)|(?<!\S)(?:[#@][A-Za-z]\w+|ol'|https?://\S+"
    r"|[\w.]+@\w[\w.]+\w)(?!\S)|(?<!\w)[A-Z]+&[A-Z]+(?!\w))"
)


# ---- scores ----


def ptb_tokens(texts: Iterable[str]) -> list[str]:
    """Each text as Penn Treebank tokens joined with single spaces: lower case, no punctuation.

    Agrees with pycocoevalcap's Java PTBTokenizer on all but about one token in 100,000 of English
    captions. It differs on purpose where Java's tokens would make no sense of other scripts: accents
    are composed, Chinese and Japanese characters are tokens, their punctuation is dropped.
    """
    return [" ".join(_scored_tokens(text)) for text in texts]


def _scored_tokens(text: str) -> Iterator[str]:
    for place, part in enumerate(_WHOLE.split(text)):
        for token in (part.lower(),) if place % 2 else split(part):
            spelt = _SPELT.get(token, token)
            if spelt not in _PUNCTUATION and (spelt.isascii() or is_word(spelt) or spelt in _KEPT_SYMBOLS):
                yield spelt


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    meteor: bool = False,
    missing: Missing = "refuse",
) -> dict[str, float]:
    """Bleu_1 to Bleu_4, ROUGE_L and CIDEr of captions (0 to 1; CIDEr 0 to 10), METEOR if asked for.

    Both mappings are by photograph. A prediction without a reference is not scored, nor is a
    reference without words one. `missing` says what becomes of a photograph that has references but
    no prediction: `refuse` raises, `empty` scores it as a caption of no words, `skip` leaves it out.
    CIDEr weighs words by how many of the scored photographs have them in their references, so that
    scores of different sets of photographs do not compare.

    Raises UsageError if predictions are missing and `missing` is `refuse`, if nothing can be scored,
    or if METEOR is asked for and there is no Java.
    """
    said = _said(references)
    chosen = _chosen(predictions, said, missing)
    tokens = ptb_tokens(predictions.get(photo, "") for photo in chosen)
    results = {photo: [text] for photo, text in zip(chosen, tokens, strict=True)}
    return _pycoco_scores({photo: said[photo] for photo in chosen}, results, meteor)


def _said(references: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """References as tokens, without those that hold none."""
    tokens = {photo: [text for text in ptb_tokens(texts) if text] for photo, texts in references.items()}
    return {photo: texts for photo, texts in tokens.items() if texts}


def _chosen(predictions: Mapping[str, str], references: Mapping[str, object], missing: Missing) -> list[str]:
    """The photographs to score, in the order of the references."""
    absent = [photo for photo in references if photo not in predictions]
    if len(absent) == len(references):
        raise UsageError(
            f"nothing to score: none of {len(predictions):,} predictions ({_some(predictions)}) is of one "
            f"of the {len(references):,} photographs that have references ({_some(references)})"
        )
    if absent and missing == "refuse":
        raise UsageError(
            f"{len(absent):,} of {len(references):,} photographs that have references have no prediction "
            f"({_some(absent)}); caption them, or say that they shall be skipped or scored as empty captions"
        )
    return [photo for photo in references if missing == "empty" or photo in predictions]


def _some(names: Iterable[str], count: int = 3) -> str:
    """The first few names, for a message."""
    shown = [f"'{name[:80]}'" for _, name in zip(range(count + 1), names, strict=False)]
    return ", ".join(shown[:count]) + (", …" if len(shown) > count else "")


def _pycoco_scores(
    references: dict[str, list[str]], results: dict[str, list[str]], meteor: bool
) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, results, verbose=0)
    scores = {f"Bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    scores["ROUGE_L"] = float(Rouge().compute_score(references, results)[0])
    scores["CIDEr"] = float(Cider().compute_score(references, results)[0])
    if meteor:
        scores["METEOR"] = _meteor(references, results)
    return scores


def _meteor(references: dict[str, list[str]], results: dict[str, list[str]]) -> float:
    if shutil.which("java") is None:
        raise UsageError(
            "METEOR needs Java, and there is no 'java' on the PATH; install one or leave METEOR out"
        )
    from pycocoevalcap.meteor.meteor import Meteor

    try:
        return float(Meteor().compute_score(references, results)[0])
    except (OSError, ValueError) as error:
        raise CutlineError(
            f"METEOR's Java program ended without a score ({error}); "
            "it needs Java 8 or later and 2 GB of memory"
        ) from error


# ---- signs of collapse ----


def collapse(predictions: Mapping[str, str], training_captions: Iterable[Sequence[str]]) -> dict[str, float]:
    """Signs that a model says the same of everything; `training_captions` are lists of tokens.

    distinct          share of captions that are left when each is counted once
    vocabulary_used   number of different tokens
    copied            share of captions that stand word for word among the training captions
    shared            number of photographs whose caption another photograph has too
    mean_length       tokens a caption

    Captions are compared by their tokens. All values are 0 where there is no prediction.
    """
    captions = Counter(tuple(tokenize(text)) for text in predictions.values())
    total = max(1, len(predictions))
    learned = {seen for seen in map(tuple, training_captions) if seen in captions}
    return {
        "distinct": len(captions) / total,
        "vocabulary_used": float(len({token for caption in captions for token in caption})),
        "copied": sum(captions[caption] for caption in learned) / total,
        "shared": float(sum(count for count in captions.values() if count > 1)),
        "mean_length": sum(len(caption) * count for caption, count in captions.items()) / total,
    }


def evaluate(
    predictions: pl.DataFrame,
    captions: pl.DataFrame,
    training: Iterable[pl.DataFrame],
    settings: EvaluateSettings,
) -> pl.DataFrame:
    """The `scores` table of the dev and test splits, where photographs there have references.

    `predictions` has photo_id, split and caption; `captions` is the captions table; `training` are the
    tokens of the training captions, a table at a time. Besides the scores and the signs of collapse,
    `photos` counts the photographs scored and `unpredicted` those that have references but no
    prediction, as they were rejected; they are left out of the scores.
    """
    held_out = predictions.filter(pl.col("split").is_in(HELD_OUT))
    if held_out.is_empty():
        return pl.DataFrame(schema=dtypes_of("scores"))
    rows: list[tuple[str, str, float]] = []
    written = {tuple(tokenize(text)) for text in held_out["caption"]}
    tokens = (tuple(caption) for some in training for caption in some["tokens"].to_list())
    known = {caption for caption in tokens if caption in written}
    for name in HELD_OUT:
        predicted = _by_photo(held_out.filter(pl.col("split") == name))
        references = _references_of(captions.filter(pl.col("split") == name))
        scored = {photo: predicted[photo] for photo in references if photo in predicted}
        if not scored:
            continue
        values = score(scored, references, settings.meteor, missing="skip")
        values |= collapse(scored, known)
        values |= {"photos": float(len(scored)), "unpredicted": float(len(references) - len(scored))}
        rows += [(name, metric, value) for metric, value in values.items()]
    return pl.DataFrame(rows, schema=dtypes_of("scores"), orient="row")


def cider_of_each(predictions: pl.DataFrame, captions: pl.DataFrame) -> pl.DataFrame:
    """photo_id and cider: what each caption of a photograph of the dev and test splits has.

    `predictions` has photo_id and caption; `captions` is the captions table. The splits are weighed each
    by itself, so that the mean of one is its score. A photograph without references has no row.
    """
    from pycocoevalcap.cider.cider import Cider

    predicted = _by_photo(predictions)
    found: dict[str, float] = {}
    for name in HELD_OUT:
        said = _said(_references_of(captions.filter(pl.col("split") == name)))
        known = {photo: texts for photo, texts in said.items() if photo in predicted}
        if known:
            tokens = ptb_tokens(predicted[photo] for photo in known)
            results = {photo: [text] for photo, text in zip(known, tokens, strict=True)}
            found |= dict(zip(known, map(float, Cider().compute_score(known, results)[1]), strict=True))
    return pl.DataFrame(
        {"photo_id": list(found), "cider": list(found.values())},
        schema={"photo_id": pl.String, "cider": pl.Float64},
    )


def _by_photo(predictions: pl.DataFrame) -> dict[str, str]:
    return dict(predictions.select("photo_id", "caption").iter_rows())


def _references_of(captions: pl.DataFrame) -> dict[str, list[str]]:
    references: dict[str, list[str]] = {}
    for photo, text in captions.drop_nulls("photo_id").select("photo_id", "text").iter_rows():
        if any(map(is_word, split(text))):
            references.setdefault(photo, []).append(text)
    return references


# ---- files of predictions and references ----


class Row(NamedTuple):
    """A caption, and what its file calls the photograph."""

    photo_id: str | None
    image_id: str | None
    path: str | None
    caption: str
    split: str | None = None


class Pair(NamedTuple):
    """Predictions and references as `score` takes them, and the splits of the photographs predicted.

    `splits` is empty where the file of predictions tells none.
    """

    said: dict[str, str]
    known: dict[str, list[str]]
    splits: dict[str, str]

    def of(self, split: str) -> Pair:
        """The same of the photographs of one split. Raises UsageError where none is known to be of it."""
        if split not in self.splits.values():
            found = ", ".join(sorted(set(self.splits.values()))) or "no column 'split'"
            raise UsageError(f"--split {split}: expected predictions of that split, found {found}")
        others = {photo for photo, its in self.splits.items() if its != split}
        return Pair(
            {photo: text for photo, text in self.said.items() if self.splits.get(photo) == split},
            {photo: texts for photo, texts in self.known.items() if photo not in others},
            {photo: split for photo, its in self.splits.items() if its == split},
        )

    @property
    def learned(self) -> int:
        """How many of the photographs to score are of the train split."""
        return sum(its == "train" for photo, its in self.splits.items() if photo in self.known)


_KINDS = ("photo_id", "image_id", "path")  # of names
_NAME_KEYS = {
    "photo_id": ("photo_id",),
    "image_id": ("image_id", "cocoid"),
    "path": ("path", "file_name", "filename", "file", "image", "image_path", "image_name"),
}
_CAPTION_KEYS = ("caption", "captions", "text", "sentences")
_FORMS = (
    ".parquet, .jsonl, .csv, COCO's .json, Karpathy's dataset_*.json, Flickr8k.token.txt "
    "or Kaggle's captions.txt"
)
_COCO_NUMBER = re.compile(r"(?:COCO_\w+_)?([0-9]{1,18})")

Reading = Callable[[str], "str | None"]
Namer = Callable[[Row], "str | None"]


def read_pair(predictions: Path, references: Path) -> Pair:
    """Two files of captions as `score` takes them, by a name of the photographs that both use.

    The files may be .parquet, .jsonl and .csv (columns photo_id, image_id, or path, file_name, image,
    and caption, captions or text), COCO results and COCO annotations (.json), Karpathy's
    dataset_*.json, Flickr8k.token.txt and Kaggle's captions.txt. Photographs are matched by the kind
    of name that matches most of them: names as they are, else the last part of a path, that without
    its ending, or its number (000000000139.jpg is COCO's image 139).

    Raises UsageError if a file is of no such form, if nothing matches, or if one photograph has two
    different predictions.
    """
    said, known = read_captions(predictions), read_captions(references)
    name_said, name_known = _common_names(said, known, predictions, references)
    chosen: dict[str, str] = {}
    splits: dict[str, str] = {}
    for row in said:
        name = name_said(row)
        if name is not None and row.split:
            splits[name] = row.split
        if name is not None and chosen.setdefault(name, row.caption) != row.caption:
            raise UsageError(
                f"{predictions}: expected one caption a photograph, found two of '{name}': "
                f"'{chosen[name][:80]}' and '{row.caption[:80]}'"
            )
    by_photo: dict[str, list[str]] = {}
    for row in known:
        name = name_known(row)
        if name is not None:
            by_photo.setdefault(name, []).append(row.caption)
    return Pair(chosen, by_photo, splits)


def _number(name: str) -> str | None:
    digits = _COCO_NUMBER.fullmatch(PurePosixPath(name).stem)
    return str(int(digits[1])) if digits else None


_READINGS: tuple[Reading, ...] = (
    lambda name: name,
    lambda name: PurePosixPath(name.replace("\\", "/")).name,
    lambda name: PurePosixPath(name.replace("\\", "/")).stem,
    _number,
)


def _common_names(
    said: list[Row], known: list[Row], predictions: Path, references: Path
) -> tuple[Namer, Namer]:
    """How to name the photographs of both files so that most predictions meet references."""
    best, matched = None, 0
    for reading in _READINGS:
        names_said, names_known = _names(said, reading), _names(known, reading)
        # A kind of name is compared with itself before it is with others.
        pairs = sorted(product(names_said, names_known), key=lambda pair: pair[0] != pair[1])
        for kind, other in pairs:
            count = len(names_said[kind] & names_known[other])
            if count > matched:
                best, matched = (_namer(kind, reading), _namer(other, reading)), count
    if best is None:
        raise UsageError(
            "no prediction is of a photograph that has a reference: expected names in common, found "
            f"{_examples(said)} in {predictions} and {_examples(known)} in {references}"
        )
    return best


def _names(rows: list[Row], reading: Reading) -> dict[str, set[str]]:
    """Names by kind as `reading` gives them; a kind is left out if two photographs would become one."""
    names: dict[str, set[str]] = {}
    for kind in _KINDS:
        plain = {name for name in map(attrgetter(kind), rows) if name is not None}
        read = [name for name in map(reading, plain) if name is not None]
        if read and len(set(read)) == len(read):
            names[kind] = set(read)
    return names


def _namer(kind: str, reading: Reading) -> Namer:
    def name(row: Row) -> str | None:
        plain = getattr(row, kind)
        return None if plain is None else reading(plain)

    return name


def _examples(rows: list[Row]) -> str:
    """A name of each kind that the file has, for a message."""
    found = {kind: next((name for row in rows if (name := getattr(row, kind))), None) for kind in _KINDS}
    return ", ".join(f"{kind} '{name[:80]}'" for kind, name in found.items() if name)


def read_captions(path: Path) -> list[Row]:
    """The captions of a file with the names of their photographs; its form is told by its ending.

    A caption that is missing is an empty one. Raises UsageError if the file is of no known form.
    """
    try:
        rows = list(_rows(path))
    except (OSError, ValueError, RecursionError, csv.Error, pl.exceptions.PolarsError) as error:
        raise UsageError(f"{path}: expected captions as {_FORMS}; {error}") from None
    if not rows:
        raise UsageError(f"{path}: expected captions as {_FORMS}; found none")
    return rows


def _rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        raise ValueError("this is a folder; name the file in it that holds the captions")
    match path.suffix.lower():
        case ".parquet":
            yield from _rows_of_parquet(path)
        case ".jsonl" | ".ndjson":
            for line in filter(str.strip, _text(path).split("\n")):
                yield from _rows_of_record(json.loads(line))
        case ".csv":
            for record in csv.DictReader(io.StringIO(_text(path), newline="")):
                yield from _rows_of_record(record)
        case ".json":
            yield from _rows_of_json(json.loads(_text(path)))
        case ".txt" | ".token":
            yield from _rows_of_lines(_text(path).split("\n"))
        case other:
            raise ValueError(f"found the ending '{other}'")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _rows_of_parquet(path: Path) -> Iterator[Row]:
    names = {"split", *(key for keys in _NAME_KEYS.values() for key in keys)}
    wanted = [
        column
        for column, dtype in pl.read_parquet_schema(path).items()
        if column in _CAPTION_KEYS or (column in names and (dtype == pl.String or dtype.is_integer()))
    ]
    for record in pl.read_parquet(path, columns=wanted).iter_rows(named=True):
        yield from _rows_of_record(record)


def _rows_of_record(record: Any, path: str | None = None) -> Iterator[Row]:
    """The captions of one entry of a table or list; `path` is the photograph's where known from elsewhere."""
    if not isinstance(record, dict):
        raise ValueError(f"expected an object an entry, found {str(record)[:80]}")
    photo_id, image_id, own_path = (_name(record, keys) for keys in _NAME_KEYS.values())
    key = next((key for key in _CAPTION_KEYS if key in record), None)
    if key is None or not (photo_id or image_id or own_path):
        raise ValueError(
            f"expected a name ({', '.join(name for keys in _NAME_KEYS.values() for name in keys)}) and "
            f"a caption ({', '.join(_CAPTION_KEYS)}), found {', '.join(map(str, record))}"
        )
    captions = record[key] if isinstance(record[key], list) else [record[key]]
    for caption in captions:
        yield Row(photo_id, image_id, path or own_path, _caption(caption), _name(record, ["split"]))


def _name(record: dict[str, Any], keys: Sequence[str]) -> str | None:
    values = (record.get(key) for key in keys)
    return next((str(value) for value in values if isinstance(value, str | int) and value != ""), None)


def _caption(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("raw")  # Karpathy's sentences
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"expected a caption, found {str(value)[:80]}")
    return value


def _rows_of_json(data: Any) -> Iterator[Row]:
    """COCO results (a list), COCO annotations, or Karpathy's data set."""
    if isinstance(data, list):
        records, paths = data, {}
    elif isinstance(data, dict) and isinstance(data.get("annotations"), list):
        images = data.get("images")
        known = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
        records = data["annotations"]
        paths = {_name(image, ["id"]): _name(image, _NAME_KEYS["path"]) for image in known if "id" in image}
    elif isinstance(data, dict) and isinstance(data.get("images"), list):
        records, paths = data["images"], {}
    else:
        raise ValueError("found neither a list nor 'annotations' nor 'images'")
    for record in records:
        image_id = _name(record, _NAME_KEYS["image_id"]) if isinstance(record, dict) else None
        yield from _rows_of_record(record, paths.get(image_id))


def _rows_of_lines(lines: Sequence[str]) -> Iterator[Row]:
    """`name.jpg#0<tab>caption`, or under a heading `name.jpg,caption`, where captions may hold commas."""
    tabbed = "\t" in lines[0]
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and not tabbed):
            continue
        name, mark, caption = line.partition("\t" if tabbed else ",")
        if not mark:
            raise ValueError(f"line {number}: expected a file name and a caption, found '{line[:80]}'")
        caption = caption.strip()
        if not tabbed and len(caption) > 1 and caption[0] == caption[-1] == '"':
            caption = caption[1:-1].replace('""', '"')
        yield Row(None, None, name.rpartition("#")[0] if tabbed and "#" in name else name, caption)
