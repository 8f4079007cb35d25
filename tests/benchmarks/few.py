"""One photograph in a hundred new: what is made again, without what a process does once.

`python -m tests.benchmarks.few DATASET FOLDER` trains on a copy of a data set, and captions its
photographs with the pretrained model, each once whole and once with a hundredth more photographs, in one
process; prints the CPU seconds of each stage as JSON. Models are loaded and graphs compiled by what goes
before, so that the second of each has none of it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2

from cutline.schemas.records import Record
from cutline.schemas.settings import Settings
from cutline.tasks.engine import executor
from cutline.tasks.engine.planner import Maker
from cutline.tasks.engine.stage import Shard, Stage
from cutline.tasks.ingest.ingest import ingest
from cutline.tasks.storage.workspace import Workspace
from tests.benchmarks.places import nobody

ONE_IN = 100


def add_photos(folder: Path, known: list[Path], first: int, count: int) -> None:
    """So many new photographs without captions: known ones, mirrored."""
    for number in range(first, first + count):
        cv2.imwrite(str(folder / f"new {number}.jpg"), cv2.imread(str(known[number]))[:, ::-1])


def cpu_of_stages(store: Workspace, planner: Callable[[Maker], object]) -> dict[str, float]:
    """CPU seconds of each stage that `walk` has made, and of the rest: looking shards up."""
    found: dict[str, float] = {}

    def maker(stage: Stage, shards: list[Shard], _reused: int) -> list[Record]:
        begun = time.process_time()
        records = [executor.make_shard(shard, store, nobody) for shard in shards]
        found[stage.name] = time.process_time() - begun
        print(f"{stage.name}: {found[stage.name]:.1f} s CPU", file=sys.stderr, flush=True)
        return records

    begun = time.process_time()
    planner(maker)
    found["looking up"] = time.process_time() - begun - sum(found.values())
    return found


def main() -> None:
    from cutline.flows.pipeline.captioning import plan_captions
    from cutline.flows.pipeline.graph import plan_run
    from cutline.flows.pipeline.settings import settings_with
    from cutline.tasks.bundles.bundle import PRETRAINED, load_bundle
    from cutline.tasks.engine.planner import Planner

    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    dataset, photos = folder / "dataset", folder / "photos"
    shutil.copytree(source, dataset)
    photos.mkdir()
    table = ingest(source, Settings().ingest, folder / "packs", None, nobody).photos
    known = [source / path for path in table["path"]]
    for path in known:
        shutil.copyfile(path, photos / path.name)
    new = max(1, len(known) // ONE_IN)
    trained, captioned, bundle = (
        Workspace(folder / "run"),
        Workspace(folder / "caption"),
        load_bundle(PRETRAINED),
    )

    def run() -> dict[str, float]:
        return cpu_of_stages(trained, lambda maker: plan_run(Planner(trained, maker), dataset, Settings()))

    def caption() -> dict[str, float]:
        settings = settings_with(bundle, {})
        return cpu_of_stages(
            captioned, lambda maker: plan_captions(captioned, photos, settings, bundle, maker=maker)
        )

    found = {}
    for name, make, into in (("run", run, dataset), ("caption", caption, photos)):
        whole = make()
        add_photos(into, known, 0, new)
        found[name] = {"whole": whole, "few": make()}
    print(json.dumps({"photos": len(known), "new": new, **found}))


if __name__ == "__main__":
    main()
