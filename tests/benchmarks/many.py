"""Many small photographs, and what the stages before the network take for them.

`python -m tests.benchmarks.many COUNT FOLDER` prints the CPU seconds of each stage as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np

WORDS = [
    *("a", "the", "dog", "cat", "man", "woman", "child", "ball", "red", "blue", "green", "runs", "sits"),
    *("on", "in", "with", "grass", "street", "water"),
]
SIDE_PX = 64


def make_photos(count: int, folder: Path) -> None:
    """`count` different JPEGs of 64 × 64 in folders of a thousand, and a caption each, in Flickr8k's form."""
    rng, lines = np.random.default_rng(count), []
    base = np.add.outer(np.arange(SIDE_PX), np.arange(SIDE_PX))[..., None] * np.array([1, 0.5, 0.2])
    for number in range(count):
        name = f"{number // 1000:03}/{number:06}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = base * rng.random() + rng.integers(0, 120, 3)
        centre, size = rng.integers(0, SIDE_PX, 2).tolist(), int(rng.integers(4, 24))
        picture = cv2.circle(picture.astype(np.uint8), centre, size, rng.integers(0, 255, 3).tolist(), -1)
        picture[0, :4] = np.frombuffer(number.to_bytes(12, "little"), np.uint8).reshape(4, 3)
        data = cv2.imencode(".jpg", picture)[1].tobytes()
        (folder / name).write_bytes(data[:-2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + data[-2:])
        lines.append(f"{name}#0\t{' '.join(rng.choice(WORDS, 8))} .")
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")


def cpu_of_stages(dataset: Path, workspace: Path) -> dict[str, float]:
    """Run ingest, images and captions in this process; CPU seconds of each, looking up included."""
    from cutline.flows.pipeline.graph import Wiring
    from cutline.schemas.records import Record
    from cutline.schemas.settings import Settings
    from cutline.tasks.engine import executor
    from cutline.tasks.engine.planner import Planner
    from cutline.tasks.engine.stage import Shard, Stage
    from cutline.tasks.storage.workspace import Workspace

    store = Workspace(workspace)

    def maker(_stage: Stage, shards: list[Shard], _reused: int) -> list[Record]:
        return [executor.make_shard(shard, store, lambda _rows: None) for shard in shards]

    settings = Settings.model_validate({"images": {"side_px": SIDE_PX}})
    wiring = Wiring(Planner(store, maker), dataset, settings)
    found, begun = {}, time.process_time()
    ingest = wiring.ingest()
    for name, make in (("ingest", None), ("images", wiring.images), ("captions", wiring.tokens)):
        if make:
            make(ingest)
        now = time.process_time()
        found[name], begun = now - begun, now
    return found


def main() -> None:
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    make_photos(200, folder / "first")
    cpu_of_stages(folder / "first", folder / "first-workspace")  # imports, and what is made once a process
    make_photos(count, folder / "dataset")
    print(json.dumps(cpu_of_stages(folder / "dataset", folder / "workspace")))


if __name__ == "__main__":
    main()
