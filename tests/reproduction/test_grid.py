"""Cells are trained, skipped, continued; what fails is noted, and the others go on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gradshare.config import ORIGINAL, SHARING, train
from gradshare.errors import DataError, GradshareError, RunError
from reproduction.executors.local import LocalExecutor
from reproduction.grid import (
    FAILURE,
    Standing,
    run_cells,
    standing,
    standings,
    unfinished,
)
from reproduction.plan import Cell, Plan
from reproduction.status import tally
from reproduction.results import save_results
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress
from tests.conftest import TINY_SIZE
from tests.reproduction.synthetic_results import arm, comparison


class CountingExecutor(LocalExecutor):
    """Runs on this machine, remembering which."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.started: list[str] = []

    def start(self, jobs: Any) -> None:
        self.started += list(jobs)
        super().start(jobs)


def ignore(name: str, progress: Progress) -> None:
    pass


def run(cells: list[Cell], out: Path, executor: CountingExecutor) -> list[Standing]:
    """What `gradshare paper run` does."""
    found = standings(cells, out)
    return run_cells(unfinished(found), found, "cpu", out, executor, ignore)


@pytest.fixture
def cells(tiny: dict[str, Any]) -> list[Cell]:
    arms = {"original": {"sharing": False}, "gradient-sharing": {"sharing": True}}
    settings = {**tiny, "image_size": TINY_SIZE}
    plan = {"settings": settings, "studies": {"toy": {"title": "toy", "axes": {"arm": arms}}}}
    return Plan.model_validate(plan).cells()


def test_cells_are_trained_once_and_finished_by_their_results_alone(
    cells: list[Cell], tmp_path: Path
) -> None:
    first = CountingExecutor()
    done = run(cells[:1], tmp_path, first)
    assert [(one.cell.name, one.state) for one in done] == [("toy/original", "done")]
    results = done[0].results
    assert results is not None
    assert results.command == "gradshare paper run --scale cpu --only toy/original"
    assert results.arms[0].name == "original"
    assert not {"data_root", "device", "threads"} & results.config.keys()

    shutil.rmtree(tmp_path / "toy/original/checkpoints")
    (tmp_path / "toy/original/config.yaml").unlink()
    again = CountingExecutor()
    (other,) = run(cells, tmp_path, again)
    assert again.started == ["toy/gradient-sharing"]
    assert other.state == "done"
    assert standing(cells[0], tmp_path).results == results


def test_a_cell_that_fails_is_noted_and_tried_again_the_next_time(
    cells: list[Cell], tmp_path: Path
) -> None:
    stray = tmp_path / "toy/original/thesis.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("years", encoding="utf-8")
    failed, done = run(cells, tmp_path, CountingExecutor())
    assert (failed.state, done.state) == ("failed", "done")
    assert failed.fault == (
        f"the output folder {stray.parent} already holds 'thesis.txt'; choose another (--out), "
        "continue it (resume='auto', --resume auto), or delete it if you no longer need it"
    )
    assert (stray.parent / FAILURE).read_text(encoding="utf-8") == f"{failed.fault}\n"
    stray.unlink()
    again = CountingExecutor()
    assert [one.state for one in run(cells, tmp_path, again)] == ["done"]
    assert again.started == ["toy/original"]
    assert not (stray.parent / FAILURE).exists()


def test_a_comparison_in_the_place_of_a_run_is_refused(cells: list[Cell], tmp_path: Path) -> None:
    path = tmp_path / "toy/original/results.json"
    path.parent.mkdir(parents=True)
    config = cells[0].config.model_dump(mode="json", exclude={"data_root", "device", "threads"})
    save_results(comparison([arm(ORIGINAL), arm(SHARING)], config=config), path)
    found = standing(cells[0], tmp_path)
    assert found.state == "unreadable"
    assert found.fault == f"{path} holds a comparison, not one run"


def test_a_folder_with_another_run_is_refused_before_anything_is_begun(
    cells: list[Cell], tmp_path: Path
) -> None:
    run(cells[:1], tmp_path, CountingExecutor())
    shutil.move(tmp_path / "toy/original", tmp_path / "toy/gradient-sharing")
    executor = CountingExecutor()
    with pytest.raises(RunError) as error:
        run(cells, tmp_path, executor)
    folder = tmp_path / "toy/gradient-sharing"
    assert str(error.value) == (
        f"cell toy/gradient-sharing: {folder} holds a run with sharing False, the plan has True. "
        "Move its folder away, or leave it out with --except toy/gradient-sharing"
    )
    assert executor.started == []
    # The others can be looked at, and trained.
    assert [standing(cell, tmp_path).state for cell in cells] == ["left", "unreadable"]
    assert [one.state for one in run(cells[:1], tmp_path, executor)] == ["done"]


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("results.json", "{", "results.json: not valid JSON at line 1"),
        ("config.yaml", "sharing: perhaps", "holds a run with invalid settings: --sharing "),
        ("config.yaml", "novel: 1", "unknown setting 'novel'"),
    ],
)
def test_a_damaged_cell_is_named_and_hides_no_other(
    cells: list[Cell], tmp_path: Path, file: str, content: str, fault: str
) -> None:
    folder = tmp_path / "toy/original"
    folder.mkdir(parents=True)
    (folder / file).write_text(content, encoding="utf-8")
    RunFolder(folder).store({"gradshare": "0.2.0"})  # which makes it the folder of a run
    damaged, left = (standing(cell, tmp_path) for cell in cells)
    assert (damaged.state, left.state) == ("unreadable", "left")
    assert damaged.fault is not None
    assert fault in damaged.fault
    assert str(folder) in damaged.fault


def test_a_cell_that_another_process_trains_is_left_to_it(
    cells: list[Cell], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "toy/original")
    with folder.locked():
        found = [standing(cell, tmp_path) for cell in cells]
        assert [one.state for one in found] == ["running", "left"]
        assert [cell.name for cell in unfinished(found)] == ["toy/gradient-sharing"]
    assert standing(cells[0], tmp_path).state == "left"


def test_a_result_that_cannot_be_written_fails_its_own_cell_alone(
    cells: list[Cell], tmp_path: Path
) -> None:
    # A folder in the place of the file, which even a superuser cannot write.
    executor = CountingExecutor()

    def block(name: str, progress: Progress) -> None:
        if name == "toy/original":
            (tmp_path / name / "results.json").mkdir(exist_ok=True)

    found = run_cells(cells, [], "cpu", tmp_path, executor, block)
    assert [one.state for one in found] == ["unreadable", "done"]
    failure = (tmp_path / "toy/original" / FAILURE).read_text(encoding="utf-8")
    assert failure.startswith(f"{tmp_path / 'toy/original/results.json'} cannot be written: ")


def test_missing_data_is_named_before_anything_is_begun(
    cells: list[Cell], tiny: dict[str, Any], tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    config = cells[1].config.model_copy(update={"dataset": "omniglot", "data_root": nowhere})
    missing = Cell("toy", {"arm": "missing"}, config)
    executor = CountingExecutor()
    with pytest.raises(DataError) as error:
        run_cells([cells[0], missing], [], "cpu", tmp_path / "out", executor, ignore)
    assert str(error.value).startswith("cells of omniglot cannot be run: ")
    assert str(error.value).endswith("; or leave them out with --except missing")
    alike = Cell("other", cells[0].labels, config)
    with pytest.raises(DataError) as error:  # no label is its alone
        run_cells([cells[0], alike], [], "cpu", tmp_path / "out", executor, ignore)
    assert str(error.value).endswith("; or leave them out with --except other")
    with pytest.raises(DataError) as error:
        run_cells([missing], [], "cpu", tmp_path / "out", executor, ignore)
    assert "leave them out" not in str(error.value)  # nothing would be left
    assert executor.started == []
    assert not (tmp_path / "out").exists()


def test_other_images_than_those_of_finished_cells_are_refused_before_anything_is_begun(
    cells: list[Cell], tmp_path: Path
) -> None:
    (done,) = run(cells[:1], tmp_path, CountingExecutor())
    assert done.results is not None
    here = done.results.environment["images_sha256"]
    elsewhere = {**done.results.environment, "images_sha256": "0" * 64}
    save_results(
        done.results.model_copy(update={"environment": elsewhere}),
        tmp_path / "toy/original/results.json",
    )
    executor = CountingExecutor()
    with pytest.raises(DataError) as error:
        run(cells, tmp_path, executor)
    assert str(error.value) == (
        f"cells of {cells[0].config.dataset} cannot be run: it was prepared from other images "
        f"(SHA-256 {here:.12}…) than those of the finished cell toy/original (000000000000…), so "
        "that they would have other test tasks; prepare it from the same copy, or begin another "
        "folder with --out"
    )
    assert executor.started == []


def test_an_interrupted_cell_is_begun_and_its_time_is_told_from_itself(
    cells: list[Cell], tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == cells[0].config.iterations_per_epoch + 1:
            raise RunStoppedError("enough", 15)

    with pytest.raises(GradshareError):
        train(cells[0].config, tmp_path / cells[0].name, watch=stop)
    begun, left = (standing(cell, tmp_path) for cell in cells)
    assert (begun.state, left.state) == ("begun", "left")
    assert begun.iterations == cells[0].config.iterations_per_epoch
    assert begun.seconds is not None
    together = tally([begun, left], [begun, left])
    assert together.cells == 2
    assert dict(together.states) == {"begun": 1, "left": 1}
    assert together.spent == begun.seconds
    assert together.left is not None
    assert together.left > begun.seconds
    assert tally([left], [left]).left is None
