"""Pruning takes what no run refers to, and nothing that one uses, needs for a search, or has begun to use."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from cutline.flows.cli.main import main
from cutline.flows.commands.prune import find_unused, remove
from cutline.schemas.errors import UsageError
from cutline.schemas.records import RunRecord
from cutline.tasks.storage.workspace import Workspace
from tests.support.datasets import an_id
from tests.support.histories import LATER, RUN, Written, small_history

STRAY = "shards/images/ffff.images.parquet"  # of a run that was killed


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A workspace with two runs, and a file that none of them refers to."""
    written = small_history(tmp_path / "workspace", tmp_path / "dataset")
    (written.workspace.root / STRAY).write_bytes(b"x" * 1000)
    return written


def captioned_with(model: dict[str, str], where: str) -> RunRecord:
    """A run of `cutline caption` with the files of a model."""
    return RunRecord(
        run=RUN, command="caption", dataset="/pictures", workspace=where, settings={}, shards={},
        model=model, stages=[], finished_at="",
    )  # fmt: skip


def run_of_shard(written: Written, key: str) -> None:
    """A run that ended a moment ago, and refers to one shard of captions."""
    written.run("20260103-000000-000003", {"predictions": [key]})


def test_the_copies_of_a_model_that_a_store_keeps_stay_while_a_run_refers_to_them(tmp_path: Path) -> None:
    workspace = Workspace(f"memory://{tmp_path.name}")
    assert workspace.store
    for path in ("models/0123/fusion.weights.h5", "models/4567/fusion.weights.h5"):
        workspace.store.write(path, b"weights")
    workspace.write_run(captioned_with({"fusion": "models/0123/fusion.weights.h5"}, workspace.where))
    remove(find_unused(Path(workspace.where)))
    assert list(workspace.store.listing("models")) == ["models/0123/fusion.weights.h5"]


def test_a_bundle_that_captioned_photographs_stays_though_its_own_run_is_forgotten(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    workspace.mark()
    for name in ("old-0123", "unused-4567"):
        (workspace.root / "bundles" / name).mkdir(parents=True)
        for file in ("bundle.json", "fusion.weights.h5"):
            (workspace.root / "bundles" / name / file).write_bytes(b"x")
    fusion = workspace.root / "bundles/old-0123/fusion.weights.h5"
    elsewhere = tmp_path / "elsewhere" / "joint_embedding.npz"
    model = {"fusion": str(fusion), "joint_embedding": str(elsewhere)}
    workspace.write_run(captioned_with(model, workspace.where))
    asked = CliRunner().invoke(main, ["prune", "--workspace", str(workspace.root)], input="n\n")
    assert asked.output.count("bundle unused-4567\n") == 1
    assert "old-0123" not in asked.output
    remove(find_unused(workspace.root))
    assert [path.name for path in (workspace.root / "bundles").iterdir()] == ["old-0123"]
    assert sorted(path.name for path in fusion.parent.iterdir()) == ["bundle.json", "fusion.weights.h5"]


def test_nothing_is_removed_once_a_run_has_begun_while_one_thought_it_over(written: Written) -> None:
    unused = find_unused(written.workspace.root)
    assert set(unused.sizes) == {STRAY}
    with written.workspace.at_work_on(), pytest.raises(UsageError, match="prune when it has ended"):
        remove(unused)
    assert written.workspace.has(STRAY)
    assert remove(unused).size == 1000
    assert not written.workspace.has(STRAY)


def test_a_run_that_begins_while_files_are_removed_waits_until_they_are(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = written.workspace
    unused = find_unused(workspace.root)
    begun = threading.Event()

    def begin() -> None:
        with Workspace(workspace.root).at_work_on():
            begun.set()

    run = threading.Thread(target=begin)
    removed_first: list[bool] = []
    remove_files = Workspace.remove

    def slowly(self: Workspace, paths: list[str]) -> None:
        run.start()  # after the second look
        removed_first.append(not begun.wait(0.5))
        remove_files(self, paths)

    monkeypatch.setattr(Workspace, "remove", slowly)
    remove(unused)
    assert removed_first == [True]
    run.join(60)
    assert begun.is_set()
    assert not workspace.has(STRAY)


def test_a_shard_that_a_run_has_taken_up_in_the_meantime_stays(written: Written) -> None:
    forgotten = an_id(40)  # the captions of the first run
    unused = find_unused(written.workspace.root, keep=1)
    assert {STRAY, f"runs/{RUN}.json", f"shards/predictions/{forgotten}.json"} <= set(unused.sizes)
    run_of_shard(written, forgotten)
    removed = remove(unused)
    assert {STRAY, f"runs/{RUN}.json"} <= set(removed.sizes)
    assert not any(path.startswith(f"shards/predictions/{forgotten}") for path in removed.sizes)
    assert written.workspace.lookup("predictions", forgotten)[0] is not None
    assert written.workspace.has(f"runs/{LATER}.json")
