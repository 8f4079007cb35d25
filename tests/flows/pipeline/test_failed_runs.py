"""Where no training caption has its photograph a run ends before any training, and its rejects are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cutline.flows.commands.prune import find_unused, remove
from cutline.flows.pipeline.failed_runs import failed_runs
from cutline.flows.pipeline.graph import plan_run
from cutline.schemas.errors import UsageError
from cutline.schemas.records import Record
from cutline.schemas.settings import Settings
from cutline.tasks.engine import executor
from cutline.tasks.engine.planner import Planner
from cutline.tasks.engine.stage import Shard, Stage
from cutline.tasks.storage.workspace import Workspace
from tests.flows.conftest import cutline
from tests.support.datasets import photo, put

A, B = photo(1, side=64), photo(2, side=64)
Filled = Callable[[Path], object]

UNPAIRED: dict[str, tuple[Filled, list[str]]] = {
    "names without their ending": (
        lambda root: put(root, **{"a.jpg": A, "b.jpg": B, "captions.txt": "image,caption\na,One\nb,Two\n"}),
        ["photographs called 'a', 'b'", "found 'a.jpg', 'b.jpg' (2 unlabelled)"],
    ),
    "numbers filled up with zeros": (
        lambda root: put(root, **{"1.jpg": A, "captions.txt": "image,caption\n0001.jpg,One\n"}),
        ["called '0001.jpg'", "found '1.jpg'"],
    ),
    "paths of another machine": (
        lambda root: put(root, **{"x/1.jpg": A, "captions.txt": "image,caption\n/y/z/1.jpg,One\n"}),
        ["called '/y/z/1.jpg'", "found 'x/1.jpg'"],
    ),
    "all photographs with captions rejected": (
        lambda root: put(root, **{"a.jpg": b"no photograph", "a.txt": "One", "b.jpg": B}),
        ["called 'a.jpg'", "found 'b.jpg'", "a.jpg: not_an_image"],
    ),
    "photographs in dev and test only": (
        lambda root: put(
            root,
            **{
                "a.jpg": A,
                "b.jpg": B,
                "captions.csv": "image,split,caption\na.jpg,dev,One\nb.jpg,test,Two\nc.jpg,train,Three\n",
            },
        ),
        ["called 'c.jpg'", "found 'a.jpg', 'b.jpg' (1 dev, 1 test)"],
    ),
    "photographs that cannot be decoded": (
        lambda root: put(
            root, **{"train/a.png": photo(1, "PNG", 64)[:-40] + bytes(40), "train/a.txt": "One"}
        ),
        ["a.png"],
    ),
}


@pytest.mark.parametrize("what", UNPAIRED)
def test_a_run_ends_before_training_and_says_which_names_were_expected_and_found(
    what: str, tmp_path: Path
) -> None:
    fill, expected = UNPAIRED[what]
    dataset = tmp_path / "dataset"
    fill(dataset)
    store, made = Workspace(tmp_path / "workspace"), []

    def maker(stage: Stage, shards: list[Shard], _reused: int) -> list[Record]:
        made.append(stage.name)
        return [executor.make_shard(shard, store, lambda _rows: None) for shard in shards]

    with pytest.raises(UsageError) as error:
        plan_run(Planner(store, maker), dataset, Settings())
    assert set(made) <= {"ingest", "images"}
    for text in expected:
        assert text in str(error.value)


def test_a_failed_run_leaves_its_rejects_until_one_is_finished(server: str, tmp_path: Path) -> None:
    dataset, workspace = tmp_path / "dataset", tmp_path / "workspace"
    put(dataset, **{"a.jpg": A, "bad.jpg": b"x", "captions.txt": "image,caption\na,One\n"})
    done = cutline("run", dataset, "--workspace", workspace, check=False)
    assert done.returncode == 2
    assert "called 'a'; found 'a.jpg'" in done.stderr
    assert "Traceback" not in done.stderr
    for _ in range(2):
        shown = cutline("rejects", dataset, "--workspace", workspace)
        assert "missing_photo" in shown.stdout
        assert "not_an_image" in shown.stdout
        remove(find_unused(workspace))  # what the failed run refers to is kept
    assert [run.dataset for run in failed_runs(Workspace(workspace))] == [str(dataset)]
    assert list(Workspace(workspace).runs()) == []
