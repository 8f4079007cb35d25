"""What each page of the dashboard shows: from the query of a request to the values of a template."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import polars as pl
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cutline.flows.commands.search import Collection
from cutline.flows.dashboard.disk import held_by_kind
from cutline.flows.dashboard.guesses import without_guesses
from cutline.flows.pipeline.plan import status
from cutline.flows.pipeline.settings import settings_of_run
from cutline.schemas.errors import CutlineError, UsageError
from cutline.schemas.records import RunRecord
from cutline.schemas.settings import Settings
from cutline.tasks.evaluation.compare_runs import Comparison, compare
from cutline.tasks.report import gallery
from cutline.tasks.report import rejects as rejects_tables
from cutline.tasks.report.photo_files import Pictures, is_photo_id
from cutline.tasks.report.report import HEADLINE_METRICS
from cutline.tasks.runtime.formatting import COLLAPSE, QUALITY, Metric, change_in_form, in_form, metric_of
from cutline.tasks.storage.runs import CURVES, History, reading, settings_of

T = TypeVar("T")

CAPTIONS_PER_PAGE = 48
ROWS_PER_PAGE = 50
REJECTS_PER_PAGE = 24
EXAMPLES_PER_REASON = 6
RUNS_ON_OVERVIEW = 8
CAPTIONS_ON_OVERVIEW = 5
MOST_DATASETS = 20  # on the overview
MOST_COMPARED = 4
COMPARISONS_KEPT = 2
FOUND_BY_SEARCH = 24
SEARCHED = (
    "ingest",
    "predictions",
    "index",
    "caption_index",
    "joint_embedding",
    "language_model",
    "vocabulary",
)
LEAKS_SHOWN = 12
MOST_CHOICES = 200  # runs to choose from
LONGEST_WORDS = 100  # letters
MOST_PAGES = 10**7


class WrongQuery(CutlineError):
    """The query of an address is none that the page knows."""


Fits = Callable[[RunRecord], bool]


def _any(_: RunRecord) -> bool:
    return True


def _has_trained(run: RunRecord) -> bool:
    """A run that captions with a bundle trains nothing."""
    return any(stage.name in CURVES for stage in run.stages)


def _can_be_searched(run: RunRecord) -> bool:
    return any(stage.name == "index" for stage in run.stages)


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part of a page, or why it cannot be shown."""

    value: T | None
    problem: str = ""

    @classmethod
    def of(cls, make: Callable[[], T]) -> Part[T]:
        """What `make` returns; what it says where it raises."""
        try:
            return cls(make())
        except CutlineError as error:
            return cls(None, str(error))


class Views:
    """The pages over one workspace."""

    def __init__(self, history: History, pictures: Pictures) -> None:
        self.history = history
        self.pictures = pictures
        self._where = Path(history.workspace.where)
        self._compared: dict[tuple[str, str], Comparison] = {}
        self._one_comparison = threading.Lock()  # it reads all captions of two runs
        self._one_search = threading.Lock()  # the language model fits in memory once
        self._one_look = threading.Lock()  # looking at a data set reads its files: one at a time

    # -- pages ----------------------------------------------------------------------------------

    def overview(self, _: Request) -> dict[str, Any]:
        """The data sets, the newest runs, what is damaged; what to do where there is nothing yet."""
        newest, runs = self.history.newest_by_dataset(), self.history.runs()

        def sample() -> gallery.Page:
            captions = without_guesses(self.history.captions(self.history.run(runs[0].run)))
            return gallery.captions_page(captions, gallery.Wish(), CAPTIONS_ON_OVERVIEW)

        return {
            "here": "overview",
            "datasets": [
                {"run": run, "splits": self._splits(run), "scores": _headline(run)}
                for run in newest[:MOST_DATASETS]
            ],
            "more_datasets": max(0, len(newest) - MOST_DATASETS),
            "runs": runs[:RUNS_ON_OVERVIEW],
            "sample": Part.of(sample) if runs else None,
            "damaged": self.history.damaged(),
            "metrics": _metrics(HEADLINE_METRICS),
        }

    def dataset(self, request: Request) -> dict[str, Any]:
        """Counts by split, formats, rejects by reason with pictures."""
        run = self._chosen(request)
        if run is None:
            return {"here": "datasets", "run": None}
        rejects = Part.of(lambda: self.history.rejects(run))

        def reasons() -> list[dict[str, Any]]:
            if rejects.value is None:
                raise CutlineError(rejects.problem)
            table = rejects.value
            return [
                {
                    "row": row,
                    "examples": rejects_tables.rejects_page(table, row.reason, 1, EXAMPLES_PER_REASON).rows,
                }
                for row in rejects_tables.reasons(table)
            ]

        return {
            "here": "datasets",
            "run": run,
            "choices": self._choices(),
            "splits": self._splits(run),
            "formats": Part.of(lambda: rejects_tables.formats(self.history.table(run, "ingest", "photos"))),
            "reasons": Part.of(reasons),
            "leaks": Part.of(lambda: self._leaks(run)),
            "exists": Path(run.dataset).exists(),
        }

    def rejects(self, request: Request) -> dict[str, Any]:
        """All rejects of one reason, page by page."""
        run, reason = self._wanted(request), _text(request, "reason")
        page = rejects_tables.rejects_page(
            self.history.rejects(run), reason, _page(request), REJECTS_PER_PAGE
        )
        if not page.total:
            raise HTTPException(404, "the run has no rejects of this reason")
        known = {row.reason: row.meaning for row in rejects_tables.reasons(self.history.rejects(run))}
        return {
            "here": "datasets",
            "run": run,
            "reason": reason,
            "meaning": known[reason],
            "page": page,
            "link": _link("/rejects", run=run.run, reason=reason),
        }

    def runs(self, request: Request) -> dict[str, Any]:
        """All runs, to be chosen for a comparison."""
        runs = self.history.runs()
        frame = pl.LazyFrame({"number": range(len(runs))}, schema={"number": pl.Int64})
        page = gallery.page_of(frame, _page(request), ROWS_PER_PAGE)
        return {
            "here": "runs",
            "runs": [runs[number] for number in page.frame["number"]],
            "page": page,
            "damaged": self.history.damaged(),
            "metrics": _metrics(HEADLINE_METRICS),
            "link": _link("/runs"),
        }

    def run(self, request: Request) -> dict[str, Any]:
        """One run: stages with times and reasons, scores, settings."""
        run = self._named(request.path_params["run"])
        return {
            "here": "runs",
            "run": run,
            "scores": Part.of(lambda: _score_rows([self.history.scores(run)])),
            "slowest": max((stage.took_s for stage in run.stages), default=0.0),
            "settings": _beside_defaults(run),
            "before": self._before(run),
        }

    def compare(self, request: Request) -> dict[str, Any]:
        """Runs side by side: settings, scores, stage times, what was made and why."""
        names = list(dict.fromkeys(request.query_params.getlist("run")))[: MOST_COMPARED + 1]
        if len(names) > MOST_COMPARED:
            raise WrongQuery(f"at most {MOST_COMPARED} runs fit side by side; choose fewer")
        runs = sorted((self._named(name) for name in names), key=lambda run: run.run)  # oldest first
        if len(runs) < 2:
            return {"here": "runs", "runs": [], "choices": self._choices()}
        stages = list(dict.fromkeys(stage.name for run in runs for stage in run.stages))
        by_name = [{stage.name: stage for stage in run.stages} for run in runs]
        return {
            "here": "runs",
            "runs": runs,
            "letters": "ABCD",
            "choices": self._choices(),
            "settings": settings_of(runs),
            "scores": Part.of(lambda: _score_rows([self.history.scores(run) for run in runs])),
            "stages": [(name, [found.get(name) for found in by_name]) for name in stages],
            "slowest": max((stage.took_s for run in runs for stage in run.stages), default=0.0),
        }

    def changes(self, request: Request) -> dict[str, Any]:
        """Which captions differ between two runs, and how their CIDEr moved."""
        before = self._named(_text(request, "before"))
        after = self._named(_text(request, "after"))
        sort = _choice(request, "sort", CHANGE_SORTS, "moved")
        found = self._comparison(before, after)
        order = {"path": {"path": False}, "better": {"gain": True}, "worse": {"gain": False}}.get(sort)
        changed = found.captions.lazy().with_columns(gain=pl.col("cider_after") - pl.col("cider_before"))
        return {
            "here": "runs",
            "before": before,
            "after": after,
            "found": found,
            "page": gallery.page_of(changed, _page(request), CAPTIONS_PER_PAGE, order),
            "sort": sort,
            "sorts": CHANGE_SORTS,
            "link": _link("/changes", before=before.run, after=after.run, sort=sort),
        }

    def captions(self, request: Request) -> dict[str, Any]:
        """A gallery of a run's captions."""
        run = self._chosen(request)
        if run is None:
            return {"here": "captions", "run": None}
        wish = gallery.Wish(
            words=_text(request, "words"),
            file=_text(request, "file"),
            sort=_choice(request, "sort", gallery.SORTS, "best"),
            split=_choice(request, "split", SPLIT_CHOICES, ""),
            page=_page(request),
        )
        query = {
            "run": run.run,
            "words": wish.words,
            "file": wish.file,
            "sort": wish.sort,
            "split": wish.split,
        }
        return {
            "here": "captions",
            "run": run,
            "choices": self._choices(),
            "wish": wish,
            "sorts": gallery.SORTS,
            "splits": SPLIT_CHOICES,
            "page": Part.of(
                lambda: gallery.captions_page(self.history.captions(run), wish, CAPTIONS_PER_PAGE)
            ),
            "link": _link("/captions", **query),
        }

    def search(self, request: Request) -> dict[str, Any]:
        """Photographs that fit a sentence, in a run that has an index."""
        words, choices = _text(request, "words"), self._choices(_can_be_searched)
        run = self._chosen(request, _can_be_searched)
        if run is None or not choices:
            return {"here": "search", "run": None}
        if not _can_be_searched(run):
            raise UsageError(f"run {run.run} has no index, so it cannot be searched; choose another")
        return {
            "here": "search",
            "words": words,
            "run": run,
            "choices": choices,
            "found": Part.of(lambda: self._found(run, words)) if words else None,
        }

    def photo(self, request: Request) -> dict[str, Any]:
        """One photograph with all that was written and said about it."""
        run, photo_id = self._named(request.path_params["run"]), request.path_params["photo_id"]
        if not is_photo_id(photo_id):
            raise HTTPException(404, "there is no such photograph")
        try:
            row = self.pictures.row_of(run, photo_id)
        except KeyError:
            raise HTTPException(404, "the run has no such photograph") from None
        is_it = pl.col("photo_id") == photo_id

        def written() -> list[dict[str, Any]]:
            with reading():
                return self.history.captions(run).rows.filter(is_it).head(1).collect().to_dicts()

        def references() -> list[str]:
            with reading():
                texts = self.history.table(run, "ingest", "captions").filter(is_it).select("text")
                return texts.collect()["text"].to_list()

        return {
            "here": "captions",
            "run": run,
            "photo": row,
            "written": Part.of(written),
            "references": Part.of(references),
            "gone": self.pictures.why_not_the_file(run, row),
        }

    def curves(self, request: Request) -> dict[str, Any]:
        """The curves of a run's trainings, with their numbers."""
        run = self._chosen(request, _has_trained)
        if run is None:
            return {"here": "curves", "run": None}
        return {
            "here": "curves",
            "run": run,
            "choices": self._choices(_has_trained),
            "curves": Part.of(
                lambda: {stage: curve.to_dicts() for stage, curve in self.history.curves(run).items()}
            ),
        }

    def stale(self, request: Request) -> dict[str, Any]:
        """What a run with the same settings would make today, and why."""
        newest = [run for run in self.history.newest_by_dataset() if run.command == "run"]
        run = self._named(_text(request, "run")) if request.query_params.get("run") else None
        run = run or (newest[0] if newest else None)

        def look() -> RunRecord:
            assert run
            if run.command != "run":
                raise UsageError("only what `cutline run` made can be looked at; choose another")
            with self._one_look, reading():
                return status(Path(run.dataset), settings_of_run(run), self._where)

        found = Part.of(look) if run else None
        told = (
            [stage.estimate_s for stage in found.value.stages if stage.made] if found and found.value else []
        )
        return {
            "here": "stale",
            "run": run,
            "only_captioned": bool(self.history.runs()),
            "choices": newest,
            "status": found,
            "seconds": None if None in told else sum(filter(None, told)),
        }

    def disk(self, _: Request) -> dict[str, Any]:
        """How much each stage holds, and how much of it no run refers to."""
        return {"here": "disk", "held": Part.of(lambda: held_by_kind(self._where))}

    # -- what several pages need ------------------------------------------------------------------

    def _named(self, name: str) -> RunRecord:
        try:
            return self.history.run(name)
        except KeyError:
            raise HTTPException(404, "there is no such run in this workspace") from None

    def _wanted(self, request: Request) -> RunRecord:
        run = self._chosen(request)
        if run is None:
            raise HTTPException(404, "there is no run in this workspace")
        return run

    def _chosen(self, request: Request, fits: Fits = _any) -> RunRecord | None:
        """The run that the query names, else the newest that fits, or else the newest; None without any."""
        if name := request.query_params.get("run"):
            return self._named(name)
        newest = self._choices(fits) or self.history.runs()
        return self._named(newest[0].run) if newest else None

    def _choices(self, fits: Fits = _any) -> list[RunRecord]:
        return [run for run in self.history.runs() if fits(run)][:MOST_CHOICES]

    def _before(self, run: RunRecord) -> RunRecord | None:
        """The run before, of the same command on the same data set."""
        return next(
            (
                other
                for other in self.history.runs()
                if other.run < run.run and (other.command, other.dataset) == (run.command, run.dataset)
            ),
            None,
        )

    def _splits(self, run: RunRecord) -> Part[list[rejects_tables.SplitCounts]]:
        def count() -> list[rejects_tables.SplitCounts]:
            whole = run if run.shards else self.history.run(run.run)
            photos, captions = (self.history.table(whole, "ingest", name) for name in ("photos", "captions"))
            return rejects_tables.split_counts(photos, captions)

        return Part.of(count)

    def _leaks(self, run: RunRecord) -> dict[str, Any]:
        """Pairs that look the same and are in two splits, the most similar first, with the ids of
        photographs."""
        leaks = self.history.table(run, "leaks", "leaks").sort("similarity", descending=True)
        page = gallery.page_of(leaks, 1, LEAKS_SHOWN)
        with reading():
            pairs = dict(leaks.group_by("kind").len().collect().iter_rows())
        names = [row[name] for row in page.rows for name in ("name", "other_name") if row["kind"] == "photo"]
        with reading():
            photos = self.history.table(run, "ingest", "photos").filter(pl.col("path").is_in(names))
            ids = dict(photos.select("path", "photo_id").collect().iter_rows())
        return {
            "page": page,
            "ids": ids,
            "photos": pairs.get("photo", 0),
            "captions": pairs.get("caption", 0),
        }

    def _found(self, run: RunRecord, words: str) -> dict[str, Any]:
        """The photographs of a run that a sentence fits best, and those of its words that nobody knows."""
        with self._one_search, reading():
            store = self.history.workspace
            records = {stage: store.records_of(run, stage) for stage in SEARCHED}
            collection = Collection(store, run, records)
            vector, unknown = collection.text_vector(words)
            nearest = collection.photos.nearest(vector, FOUND_BY_SEARCH)
            return {"photos": collection.described(nearest), "unknown_words": unknown}

    def _comparison(self, before: RunRecord, after: RunRecord) -> Comparison:
        """The comparison of two runs; the last few are kept, for their further pages."""
        key = before.run, after.run
        with self._one_comparison:
            if key not in self._compared:
                with reading():
                    self._compared[key] = compare(self.history.workspace, before, after)
                while len(self._compared) > COMPARISONS_KEPT:
                    del self._compared[next(iter(self._compared))]
            return self._compared[key]


SPLIT_CHOICES = {"": "every split", **{name: name for name in ("train", "dev", "test", "unlabelled")}}
CHANGE_SORTS = {
    "moved": "most moved first",
    "better": "better now first",
    "worse": "worse now first",
    "path": "by file name",
}


# -- queries ------------------------------------------------------------------------------------


def _text(request: Request, name: str) -> str:
    text = request.query_params.get(name, "").strip()
    if len(text) > LONGEST_WORDS:
        raise WrongQuery(f"{name}: expected at most {LONGEST_WORDS} letters, found {len(text):,}")
    return text


def _choice(request: Request, name: str, choices: Mapping[str, str], default: str) -> str:
    value = request.query_params.get(name, default)
    if value not in choices:
        raise WrongQuery(f"{name}: expected one of {', '.join(filter(None, choices))}, found '{value[:40]}'")
    return value


def _page(request: Request) -> int:
    value = request.query_params.get("page", "1")
    if not (value.isascii() and value.isdigit() and len(value) < 9 and 1 <= int(value) <= MOST_PAGES):
        raise WrongQuery(f"page: expected a number from 1 on, found '{value[:40]}'")
    return int(value)


def _link(path: str, **query: str) -> Callable[[int], str]:
    """The address of a page by its number."""
    kept = {name: value for name, value in query.items() if value}
    return lambda page: f"{path}?{urlencode({**kept, 'page': page})}"


# -- words ----------------------------------------------------------------------------------------


def _when(moment: str) -> str:
    """ISO 8601 → 2026-11-23 22:20 (UTC), as given where it is none."""
    try:
        return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M}"
    except ValueError:
        return moment


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{count:,} B" if unit == "B" else f"{size:,.1f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def _name_of(run: RunRecord) -> str:
    return Path(run.dataset).name or run.dataset


def _share(part: float, whole: float) -> str:
    """How wide a bar is, in percent."""
    return f"{100 * part / whole:.1f}%" if whole > 0 and part > 0 else "0%"


FILTERS: dict[str, Callable[..., Any]] = {
    "when": _when,
    "size": _bytes,
    "duration": _duration,
    "name_of": _name_of,
    "share": _share,
    "in_form": in_form,
}
TESTS: dict[str, Callable[..., bool]] = {"trained": _has_trained}


def _metrics(names: tuple[str, ...]) -> dict[str, Metric]:
    return {name: QUALITY[name] for name in names}


def _headline(run: RunRecord) -> list[tuple[str, str]]:
    return [
        (QUALITY[name].label, in_form(run.scores[name], QUALITY[name].form))
        for name in HEADLINE_METRICS
        if name in run.scores
    ]


@dataclass(frozen=True)
class ScoreRow:
    """A metric of one split in several runs, as text; `best` marks the highest, where that is better."""

    split: str
    label: str
    reading: str
    values: list[str]
    best: list[bool]
    moved: str  # from the first to the last of two


def _score_rows(tables: list[pl.DataFrame]) -> list[ScoreRow]:
    """Every metric of the held-out splits, test before dev."""
    found = [
        {(split, metric): value for split, metric, value in table.iter_rows()}
        for table in (frame.select("split", "metric", "value") for frame in tables)
    ]
    keys = list(dict.fromkeys(key for values in found for key in values))
    order = list(QUALITY | COLLAPSE)
    keys.sort(key=lambda key: (key[0] != "test", key[0], order.index(key[1]) if key[1] in order else 99))
    rows = []
    for split, name in keys:
        metric = metric_of(name)
        values = [of_run.get((split, name)) for of_run in found]
        known = [value for value in values if value is not None]
        texts = [in_form(value, metric.form) for value in values]
        best = in_form(max(known), metric.form)
        differ = len({in_form(value, metric.form) for value in known}) > 1
        better = differ and name in QUALITY and metric.form == "score"
        change = values[-1] - values[0] if len(values) == 2 and len(known) == 2 else None  # type: ignore[operator]
        rows.append(
            ScoreRow(
                split,
                metric.label,
                metric.reading,
                texts,
                [better and text == best for text in texts],
                "" if change is None else change_in_form(change, metric.form),
            )
        )
    return rows


def _beside_defaults(run: RunRecord) -> list[dict[str, Any]]:
    """Settings of a run with today's defaults and meanings, those that differ from them first."""
    defaults = {
        f"{stage}.{name}": (info.default, info.description or "")
        for stage, model in Settings()
        for name, info in type(model).model_fields.items()
    }
    rows = []
    for row in settings_of([run]):
        default, meaning = defaults.get(row.name, (None, "no setting of this version"))
        shown = default if isinstance(default, str) else str(default)
        value = row.values[0] or ""
        same = row.name in defaults and value.lower() == shown.lower()
        rows.append(
            {"name": row.name, "value": value, "default": shown, "meaning": meaning, "changed": not same}
        )
    return sorted(rows, key=lambda row: not row["changed"])
