"""The command line: thin doors to the flows.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished, but a larger share was rejected than
ingest.max_reject_rate allows.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cutline.flows.cli.errors import TOO_MANY_REJECTS, Commands
from cutline.flows.cli.options import (
    config_option,
    deep_option,
    examples,
    json_option,
    runner_option,
    set_option,
    workspace_option,
)
from cutline.schemas.errors import UsageError
from cutline.schemas.safe_text import for_terminal, json_for_terminal, written_out


def _show_traceback(*error: Any) -> None:
    """As Python does, with names in it made safe."""
    click.echo(written_out("".join(traceback.format_exception(*error))), nl=False, err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cutline", message="cutline %(version)s")
def main() -> None:
    """From folders of photographs to captions: cached, validated, rerunnable stages.

    \b
    Exit codes: 0 done, 1 failed, 2 wrong usage,
    3 finished, but a larger share was rejected than ingest.max_reject_rate allows.
    """
    sys.excepthook = _show_traceback
    gc.set_threshold(5_000)  # objects: a hundred thousand come with libraries, and stay
    atexit.register(gc.freeze)  # what is still there at the end goes with the process, unvisited


@main.command(
    short_help="Train, caption, score and report: makes what is missing.",
    epilog=examples("cutline run data/sample", "cutline run ~/flickr8k --set fusion.kind=concat --json"),
)
@click.argument("dataset", type=click.Path(path_type=Path))
@config_option
@set_option
@workspace_option
@runner_option
@deep_option
@json_option
def run(
    dataset: Path,
    config: Path | None,
    assignments: tuple[str, ...],
    workspace: Path,
    runner: str,
    deep: bool,
    as_json: bool,
) -> None:
    """Run every stage on DATASET: train, caption, score, report. Makes only what is missing."""
    from cutline.flows.commands.run import run as plan_run
    from cutline.flows.pipeline.settings import read_settings

    settings = read_settings(config, assignments)
    record = plan_run(dataset, settings, workspace, deep, runner)
    if as_json:
        click.echo(_as_json(record))
    from cutline.flows.cli.printing import show_run

    show_run(record)
    _exit(record.reject_rate, settings.ingest.max_reject_rate)


@main.command(
    short_help="What a run would make, and why.",
    epilog=examples("cutline status data/sample", "cutline status data/sample --set images.crop=pad"),
)
@click.argument("dataset", type=click.Path(path_type=Path))
@config_option
@set_option
@workspace_option
@deep_option
@json_option
def status(
    dataset: Path,
    config: Path | None,
    assignments: tuple[str, ...],
    workspace: Path,
    deep: bool,
    as_json: bool,
) -> None:
    """Say what a run on DATASET would make, and why, without running."""
    from cutline.flows.pipeline.plan import status as look
    from cutline.flows.pipeline.settings import read_settings

    record = look(dataset, read_settings(config, assignments), workspace, deep)
    if as_json:
        click.echo(_as_json(record))
    from cutline.flows.cli.printing import show_status

    show_status(record)


@main.command(
    short_help="Captions of photographs by a trained model.",
    epilog=examples(
        "cutline caption ~/Pictures --out captions.parquet",
        "cutline caption a.jpg b.jpg --model data/workspace/bundles/sample-1f2e3d4c --out captions.jsonl",
        "cutline caption ~/Pictures --out captions.jsonl --max-words 12 --alternatives 5",
    ),
)
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A bundle: a folder that a run made; without it the pretrained model.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Ends in .parquet, .jsonl, .csv, or .json (COCO results).",
)
@click.option("--max-words", "max_tokens", type=click.IntRange(1, 100), help="Of a caption.")
@click.option("--beam", type=click.IntRange(1, 64), help="Captions followed at once; 1 is greedy.")
@click.option(
    "--alternatives",
    type=click.IntRange(1, 64),
    help="Captions kept a photograph, best first; at most the beam.",
)
@click.option(
    "--attention",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write where the model looked for each word: a name in .parquet.",
)
@set_option
@workspace_option
@runner_option
@json_option
def caption(
    photos: tuple[Path, ...],
    model: Path | None,
    out: Path,
    max_tokens: int | None,
    beam: int | None,
    alternatives: int | None,
    attention: Path | None,
    assignments: tuple[str, ...],
    workspace: Path,
    runner: str,
    as_json: bool,
) -> None:
    """Caption PHOTOS (files, folders or a Parquet manifest) with a trained model.

    The column distance tells how far a photograph lies from those that the model learned from; above 1
    its caption is a guess.
    """
    from cutline.flows.commands.caption import caption as caption_photos
    from cutline.flows.pipeline.settings import merge, parse_assignments

    asked = {"max_tokens": max_tokens, "beam": beam, "alternatives": alternatives}
    given = {name: value for name, value in asked.items() if value is not None}
    tree = merge(parse_assignments(assignments), {"predictions": given})
    record, limit = caption_photos(list(photos), model, out, tree, workspace, runner, attention)
    if as_json:
        click.echo(_as_json(record))
    from cutline.flows.cli.printing import show_run

    show_run(record)
    _exit(record.reject_rate, limit)


@main.command(
    short_help="BLEU, ROUGE-L and CIDEr of captions.",
    epilog=examples(
        "cutline evaluate captions.jsonl ~/coco/annotations/captions_val2017.json",
        "cutline evaluate results.json refs.jsonl --json",
        "cutline evaluate captions.parquet ~/flickr8k/Flickr8k.token.txt --split test",
    ),
)
@click.argument("predictions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("references", type=click.Path(exists=True, path_type=Path))
@click.option("--meteor", is_flag=True, help="METEOR too; needs Java.")
@click.option(
    "--missing",
    type=click.Choice(["skip", "empty", "refuse"]),
    default="skip",
    show_default=True,
    help="What becomes of a photograph that has references but no prediction.",
)
@click.option(
    "--split",
    metavar="SPLIT",
    help="Score the photographs of one split alone, such as test, by PREDICTIONS' column of that name.",
)
@click.option("--json", "as_json", is_flag=True, help="The scores as one JSON object on standard output.")
def evaluate(
    predictions: Path, references: Path, meteor: bool, missing: str, split: str | None, as_json: bool
) -> None:
    """Score PREDICTIONS against REFERENCES: BLEU, ROUGE-L, CIDEr."""
    from cutline.tasks.evaluation.caption_files import read_pair
    from cutline.tasks.evaluation.caption_metrics import score
    from cutline.tasks.runtime.formatting import count_of, metric_of

    pair = read_pair(predictions, references)
    if split:
        pair = pair.of(split)
    elif pair.learned:
        scored = len(pair.said.keys() & pair.known.keys())
        click.echo(
            f"cutline: {pair.learned:,} of {count_of(scored, 'photograph')} "
            f"{'is' if pair.learned == 1 else 'are'} of the train split, "
            "which the model learned from: --split test scores the others",
            err=True,
        )
    said, known, _ = pair
    without = len(known.keys() - said.keys())
    if without and missing != "refuse":
        verb = "left out" if missing == "skip" else "scored as empty captions"
        click.echo(
            f"cutline: {count_of(without, 'photograph')} with references but no prediction: {verb}", err=True
        )
    scores = score(said, known, meteor, missing)  # type: ignore[arg-type]
    if as_json:
        click.echo(json.dumps(scores))
    else:
        for name, value in scores.items():
            counts = metric_of(name).form == "count"
            click.echo(f"{name:<15} {value:,.0f}" if counts else f"{name:<15} {value:.4f}")


@main.command(
    short_help="Lines from a language model, or of a photograph.",
    epilog=examples(
        'cutline generate "a man in a" --count 5 --temperature .8 --top-p .9 --seed 1',
        "cutline generate --photo a.jpg --model BUNDLE --retrieve 2",
        "cutline generate --perplexity captions.txt --model BUNDLE",
    ),
)
@click.argument("text", required=False)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A bundle; without it the newest run's, else the pretrained model.",
)
@click.option(
    "--photo",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Draw captions of this photograph.",
)
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="Lines.")
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    help="Below 1 the likely becomes likelier; 0 is greedy.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens of this share.",
)
@click.option("--max-tokens", type=int, default=20, show_default=True, help="Added to TEXT at the most.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--retrieve",
    type=click.IntRange(min=0),
    is_flag=False,
    flag_value=3,
    default=0,
    metavar="[N]",
    help="Print the N (3) nearest real captions beneath each line.",
)
@click.option(
    "--captions",
    type=click.Path(exists=True, path_type=Path),
    help="Where the real captions are: a file, or a data set that was run; else those of the bundle's run.",
)
@click.option(
    "--perplexity",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Write nothing: say how well the language model predicts this file, a caption a line.",
)
@set_option
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def generate(
    text: str | None,
    model: Path | None,
    perplexity: Path | None,
    as_json: bool,
    workspace: Path,
    photo: Path | None,
    count: int,
    retrieve: int,
    captions: Path | None,
    assignments: tuple[str, ...],
    **numbers: Any,
) -> None:
    """Continue TEXT with a bundle's language model, or draw captions of a photograph."""
    from cutline.flows.cli.printing import show_lines, show_perplexity
    from cutline.flows.commands import generate
    from cutline.flows.pipeline.settings import parse_assignments
    from cutline.tasks.decoding.sampling import Sampling

    if perplexity:
        if text or photo:
            raise UsageError("--perplexity reads a file and writes nothing: leave TEXT and --photo out")
        show_perplexity(generate.perplexity(perplexity, model, workspace), as_json)
        return
    found = generate.generate(
        text or "",
        model,
        count,
        Sampling(**numbers),
        photo=photo,
        tree=parse_assignments(assignments),
        retrieve=retrieve,
        captions=captions,
        workspace=workspace,
    )
    show_lines(found, as_json)


@main.command(
    short_help="A run again, with settings changed by --set.",
    epilog=examples(
        "cutline reprocess --set predictions.beam=5 --dry-run",
        "cutline reprocess data/sample --set images.crop=pad",
    ),
)
@click.argument("dataset", required=False, type=click.Path(path_type=Path))
@set_option
@click.option(
    "--dry-run", is_flag=True, help="Say what would be made, why, and about how long; make nothing."
)
@workspace_option
@json_option
def reprocess(
    dataset: Path | None, assignments: tuple[str, ...], dry_run: bool, workspace: Path, as_json: bool
) -> None:
    """Run DATASET (that of the newest run) again with its last settings, changed by --set.

    Makes what depends on the changes and nothing else, then says which captions they changed. A new
    data set takes the settings of the newest run.
    """
    from cutline.flows.cli.printing import show_comparison, show_run, show_status
    from cutline.flows.commands.reprocess import reprocess as make_anew
    from cutline.flows.pipeline.rerun import dry_run as look

    if dry_run:
        record = look(dataset, assignments, workspace)
        if as_json:
            click.echo(_as_json(record))
        show_status(record)
        return
    record, comparison = make_anew(dataset, assignments, workspace)
    if as_json:
        click.echo(_as_json(record))
    show_run(record)
    if comparison:
        show_comparison(comparison, most=10, stderr=True)
    _exit(record.reject_rate, record.settings["ingest"]["max_reject_rate"])


@main.command(
    short_help="Captions and scores of two runs, side by side.",
    epilog=examples("cutline compare", "cutline compare 20261101-02 20261102-02 --count 50"),
)
@click.argument("before", required=False)
@click.argument("after", required=False)
@click.option(
    "--count", type=click.IntRange(min=0), default=20, show_default=True, help="Captions shown side by side."
)
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, every caption.")
def compare(before: str | None, after: str | None, count: int, workspace: Path, as_json: bool) -> None:
    """Captions and scores of run AFTER beside those of run BEFORE: the newest, and the one before it.

    A run is named by its id, or the beginning of it.
    """
    from cutline.flows.cli.printing import show_comparison
    from cutline.flows.commands.reprocess import compare as compare_runs

    comparison = compare_runs(before, after, workspace)
    if as_json:
        click.echo(json_for_terminal(json.dumps(comparison.as_dict(), ensure_ascii=False)))
    else:
        show_comparison(comparison, count, stderr=False)


@main.command(
    short_help="Start Prefect's server, whose page shows runs.",
    epilog=examples("cutline server", "cutline server --port 4300 --workspace /srv/cutline"),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), default=4200, show_default=True)
@workspace_option
def server(host: str, port: int, workspace: Path) -> None:
    """Start Prefect's server, whose page shows every run; its state lies in the workspace."""
    from cutline.flows.orchestration.server import start_server

    start_server(workspace, host, port)


@main.command(
    short_help="Caption what is new, and more, on a schedule.",
    epilog=examples(
        "cutline serve ~/inbox",
        'cutline serve ~/inbox --dataset ~/flickr8k --schedule "train=0 4 * * 6" --timezone Europe/Vienna',
    ),
)
@click.argument("photos", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A bundle; without it the newest run's, else the pretrained model.",
)
@click.option("--dataset", type=click.Path(path_type=Path), help="What train and reprocess work on.")
@click.option(
    "--schedule",
    "schedules",
    multiple=True,
    metavar="NAME=WHEN",
    help="When a deployment runs: five fields of cron, or a number of seconds.  [default: "
    "nightly-captions=0 2 * * *]",
)
@click.option("--timezone", default="UTC", show_default=True, help="Of the fields of cron.")
@workspace_option
def serve(
    photos: Path,
    model: Path | None,
    dataset: Path | None,
    schedules: tuple[str, ...],
    timezone: str,
    workspace: Path,
) -> None:
    """Offer nightly-captions (of PHOTOS), train and reprocess at the server, and run them when due."""
    from cutline.flows.orchestration.deployments import serve as serve_all

    serve_all(photos, model, dataset, schedules, timezone, workspace)


@main.command(
    short_help="Find photographs by a text or a photograph.",
    epilog=examples(
        'cutline search "two dogs running on a beach" --top 12 --html found.html',
        "cutline search --photo a.jpg --json",
    ),
)
@click.argument("text", required=False)
@click.option(
    "--photo",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Find what looks like this photograph, and captions that fit it.",
)
@click.option("--top", type=click.IntRange(1, 1000), default=12, show_default=True, help="How many.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with thumbnails too: a name in .html.",
)
@click.option("--exact", is_flag=True, help="Compare with every vector, not along the index's graph.")
@click.option(
    "--dataset",
    type=click.Path(path_type=Path),
    help="Search in the photographs of this data set or folder; without it in those of the newest run.",
)
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def search(
    text: str | None,
    photo: Path | None,
    top: int,
    html: Path | None,
    exact: bool,
    dataset: Path | None,
    workspace: Path,
    as_json: bool,
) -> None:
    """Find photographs by TEXT, or by a photograph; after `cutline run` or `cutline caption`."""
    from cutline.flows.cli.printing import show_found
    from cutline.flows.commands import search

    found = search.search(
        text or "", photo, top, exact=exact, dataset=dataset, html=html, workspace=workspace
    )
    show_found(found, as_json)


@main.command(
    short_help="What the last run rejected, and why.",
    epilog=examples("cutline rejects", "cutline rejects data/sample --retry"),
)
@click.argument("dataset", required=False, type=click.Path(path_type=Path))
@click.option("--retry", is_flag=True, help="Read and make again what was rejected; the rest is taken over.")
@workspace_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The rejects as a JSON list on standard output; with --retry, the run's record.",
)
def rejects(dataset: Path | None, retry: bool, workspace: Path, as_json: bool) -> None:
    """List what the last run (on DATASET) rejected, and why; or try it again."""
    from cutline.flows.cli.printing import show_rejects, show_run
    from cutline.flows.commands.run import last_rejects, retry_rejects

    if retry:
        record = retry_rejects(dataset, workspace)
        if as_json:
            click.echo(_as_json(record))
        show_run(record)
        _exit(record.reject_rate, record.settings["ingest"]["max_reject_rate"])
        return
    last, frame = last_rejects(dataset, workspace)
    if as_json:
        click.echo(json_for_terminal(json.dumps(frame.to_dicts(), ensure_ascii=False)))
    else:
        click.echo(for_terminal(f"rejects of {last.run} on {last.dataset}"))
        show_rejects(frame)


@main.command(
    short_help="Remove what no run refers to.",
    epilog=examples("cutline prune", "cutline prune --keep 1 --yes"),
)
@click.option(
    "--keep", type=click.IntRange(min=1), help="Forget all but the newest runs of each data set first."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@workspace_option
def prune(keep: int | None, yes: bool, workspace: Path) -> None:
    """Remove what no run refers to, after showing what and how much."""
    from cutline.flows.commands.prune import demand_workspace, find_unused, remove
    from cutline.tasks.runtime.formatting import count_of

    demand_workspace(workspace)
    unused = find_unused(workspace, keep)
    if not unused.sizes:
        click.echo("nothing to remove: every file is one that a run refers to")
        return
    for kind, (count, size) in unused.by_kind().items():
        click.echo(f"{kind:<24} {count:>7,} {'file ' if count == 1 else 'files'} {size / 1e6:>12,.1f} MB")
    for bundle in unused.bundles:
        click.echo(for_terminal(f"bundle {bundle}"))
    if not yes:
        click.confirm("Remove these files?", abort=True)
    removed = remove(unused)
    click.echo(f"removed {count_of(len(removed.sizes), 'file')}, {removed.size / 1e6:,.1f} MB")


@main.command(
    short_help="Show a workspace in the browser.",
    epilog=examples("cutline dashboard", "cutline dashboard --workspace /data/cutline --port 0"),
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4280,
    show_default=True,
    help="On this machine only; 0 takes a free one.",
)
@workspace_option
def dashboard(port: int, workspace: Path) -> None:
    """Show a workspace in the browser: data sets, runs, captions, what is stale; changes nothing."""
    from cutline.flows.dashboard.app import serve

    with suppress(KeyboardInterrupt):
        of = for_terminal(workspace)
        serve(workspace, port, lambda url: click.echo(f"dashboard of {of}: {url}  (Ctrl-C ends it)"))


def _as_json(record: Any) -> str:
    """The run's record for programs."""
    names = {
        "run",
        "workspace",
        "report",
        "bundle",
        "captions",
        "rejects",
        "leaks",
        "scores",
        "reject_rate",
        "stages",
    }
    return json_for_terminal(record.model_dump_json(include=names))


def _exit(rate: float, limit: float) -> None:
    if rate > limit:
        click.echo(
            f"cutline: {rate:.1%} of the rows were rejected, more than ingest.max_reject_rate={limit:.1%}; "
            "see `cutline rejects`, or raise the rate",
            err=True,
        )
        sys.exit(TOO_MANY_REJECTS)
