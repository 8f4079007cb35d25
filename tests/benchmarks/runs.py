"""Whole runs: with nothing to do, with little to do, with many photographs, and from end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cutline.schemas.records import RunRecord
from tests import REPOSITORY
from tests.benchmarks import rivals
from tests.benchmarks.few import add_photos
from tests.benchmarks.harness import OURS, Contest, Figures, Measured, children_cpu_s
from tests.benchmarks.many import make_photos
from tests.benchmarks.places import Place, cutline

SIZES = 1_000, 10_000, 50_000
FEW, MANY = 2_000, 50_000
COMMANDS = "run", "caption"

# A run of every stage in which none but the number of photographs costs much.
LIGHT = [
    "images.side_px=32",
    "image_features.network=MobileNet",
    "language_model.embedding_size=16",
    "language_model.state_size=32",
    "language_model.epochs=1",
    "fusion.hidden_size=32",
    "fusion.heads=2",
    "fusion.epochs=1",
    "fusion.dev_beam=1",
    "predictions.beam=1",
    "predictions.alternatives=1",
    "predictions.max_tokens=8",
]


def unchanged(place: Place) -> Contest:
    """`cutline run` beside `dvc repro`, both as whole processes, both with nothing to do."""
    run = place.finished()
    arguments = ["run", place.dataset, "--workspace", run.workspace.root, *_as_arguments(run.record)]
    told = cutline(*arguments, "--json")  # where the code has changed since, this makes what it changes
    assert json.loads(told)["bundle"]
    dvc = rivals.dvc_command(place.out / "dvc")
    project = rivals.dvc_project(dvc, place.dataset, place.scratch / "project")
    rival = "dvc repro"
    return Contest(
        name="unchanged",
        title=f"nothing changed, whole process, {place.name}",
        count=1,
        thing="",
        sides={OURS: lambda: cutline(*arguments), rival: lambda: rivals.dvc_repro(dvc, project)},
        targets={rival: 1 / 1.5},
        note=lambda: f"{len(run.record.shards)} stages, theirs three",
    )


def _as_arguments(record: RunRecord) -> list[str]:
    """The settings of a run, so that it is the same run."""
    values = ((stage, key, value) for stage, some in record.settings.items() for key, value in some.items())
    return [part for stage, key, value in values for part in ("--set", f"{stage}.{key}={value}")]


def new_photos(place: Place) -> Figures:
    """One photograph in a hundred added, without captions, beside a whole run's stages."""
    folder = place.scratch / "few"
    command = [sys.executable, "-m", "tests.benchmarks.few", str(place.dataset), str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    new = found["new"]
    seconds = {
        (name, part): sum(found[name][part].values()) for name in COMMANDS for part in ("whole", "few")
    }
    rows = [
        Measured(
            f"`cutline {name}`: stages, share of those of all photographs",
            f"{seconds[name, 'few'] / seconds[name, 'whole']:.1%} ({_stages(found[name]['few'])})"
            f" of {seconds[name, 'whole']:.1f} s",
            "≤ 3 %" if name == "run" else "",
        )
        for name in COMMANDS
    ]
    known = sorted(path for path in (folder / "photos").iterdir() if not path.name.startswith("new"))
    add_photos(folder / "photos", known, new, new)
    begun = children_cpu_s()
    cutline("caption", folder / "photos", "--out", folder / "c.csv", "--workspace", folder / "caption")
    start_up = children_cpu_s() - begun - seconds["caption", "few"]
    rows.append(Measured("start-up of a process of `cutline caption`", f"{start_up:.1f} s"))
    return Figures(
        "new_photos",
        f"{new} of {found['photos']} photographs new, {place.name}",
        rows,
        "CPU time; stages in a process that has loaded and compiled all before; start-up is Python, Prefect "
        "and its server, TensorFlow, the network and the model. The new ones have no captions: captions of "
        "the training split would train the models anew",
    )


def _stages(seconds: dict[str, float]) -> str:
    """The stages that took most, with their seconds."""
    most = sorted(seconds.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{name} {value:.1f} s" for name, value in most)


def cost(place: Place) -> Figures:
    """CPU time a photograph of the stages before the network."""
    rows, first = [], {}
    for size in SIZES:
        command = [sys.executable, "-m", "tests.benchmarks.many", str(size), str(place.scratch / str(size))]
        done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
        for stage, cpu_s in json.loads(done.stdout).items():
            first.setdefault(stage, cpu_s / size)
            found = f"{1000 * cpu_s / size:.3f} ms, {cpu_s / size / first[stage]:.2f} of that at {SIZES[0]:,}"
            rows.append(Measured(f"{stage}, {size:,}", found, "≤ 1.10"))
        shutil.rmtree(place.scratch / str(size))
    return Figures(
        "cost",
        "CPU time a photograph",
        sorted(rows, key=lambda row: row.what.partition(",")[0]),
        "JPEGs of 64 × 64 with a caption each; looking shards up and writing records included",
    )


def memory(place: Place) -> Figures:
    """Peak memory of `cutline run` and all its processes."""
    peaks = {size: _peak_of_a_run(place, size) for size in (FEW, MANY)}
    rows = [Measured(f"{size:,} photographs", f"{peak / 2**20:,.0f} MiB") for size, peak in peaks.items()]
    more = peaks[MANY] / peaks[FEW] - 1
    return Figures(
        "memory",
        "peak memory of the whole process tree",
        [*rows, Measured("more", f"{more:.1%}", "≤ 10 %")],
        "every stage, with MobileNet on squares of 32 px with random weights in the place of VGG-16, and "
        "small models: VGG-16 over 50,000 photographs takes hours",
    )


def _peak_of_a_run(place: Place, size: int) -> int:
    folder = place.scratch / str(size)
    weights = place.scratch / "mobilenet.weights.h5"
    if not weights.exists():
        command = (
            "import sys, keras; keras.utils.set_random_seed(0); keras.applications.MobileNet("
            "include_top=False, weights=None, input_shape=(32, 32, 3)).save_weights(sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", command, weights], check=True, capture_output=True)
    make_photos(size, folder / "dataset")
    settings = [*LIGHT, f"image_features.weights={weights}"]
    command = [
        sys.executable,
        "-m",
        "cutline.flows",
        "run",
        folder / "dataset",
        "--workspace",
        folder / "workspace",
    ]
    command += [part for one in settings for part in ("--set", one)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _memory_of_tree(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    shutil.rmtree(folder)
    return peak


def _memory_of_tree(pid: int) -> int:
    """Resident memory of a process and its descendants, bytes: what they share with each other counts
    by halves where it was written, and in full where it is a file, whoever else has that open."""
    total, waiting = 0, [pid]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
            kib = {name: int(size.split()[0]) for name, size in (line.split(":") for line in lines)}
            total += 1024 * (kib["Rss"] - kib["Anonymous"] + kib["Pss_Anon"])
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, KeyError):
            continue  # it has ended
    return total


def whole(place: Place) -> Figures:
    """Photographs to scores, once each: hours."""
    from tests.benchmarks.tutorial import SCORES

    begun = children_cpu_s()
    record = json.loads(cutline("run", place.dataset, "--workspace", place.scratch / "workspace", "--json"))
    ours = children_cpu_s() - begun
    command = [sys.executable, "-m", "tests.benchmarks.tutorial", str(place.dataset)]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    theirs = children_cpu_s() - begun - ours
    scores = json.loads(done.stdout)["scores"]
    rows = [Measured("CPU time", f"{theirs / ours:.1f} × ({ours:,.0f} s, theirs {theirs:,.0f} s)", "≥ 5 ×")]
    rows += [
        Measured(name, f"{record['scores'][name]:.3f}, theirs {scores[name]:.3f}", "better")
        for name in SCORES
    ]
    return Figures(
        "whole", f"photographs to scores, {place.name}", rows, "the tutorials' script: tutorial.py"
    )
