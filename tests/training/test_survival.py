"""What a run survives: being killed at any moment, damaged checkpoints, a second process."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import gradshare as gs
from gradshare.errors import RunError
from gradshare.training.checkpoint import load_checkpoint, save_checkpoint
from gradshare.training.folder import RunFolder
from gradshare.training.lock import is_locked
from gradshare.training.options import Progress
from gradshare.training.run import Run
from tests.training.killing import kill_often, records_in, require_same_end, timeless
from tests.training.small import ROWS, Arguments, class_tasks, mlp, poisoned, rows

KILLS = 12
REFUSED = 7  # each seventh iteration is refused
EPOCHS, ITERATIONS = 100, 2
LATEST = "latest-000000009.safetensors"


def fit(path: Path, **changes: Any) -> Run:
    return gs.fit(**rows(**changes), out=path, resume="auto")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that tests leave as it is."""
    return fit(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    """A copy of that run's folder."""
    return Path(shutil.copytree(finished.path, tmp_path / "run"))


def long_run() -> Arguments:
    given = rows(
        learner=gs.maml_plus_plus(mlp(), multi_step_iterations=400, steps=2, sharing=True),
        epochs=EPOCHS,
        iterations=ITERATIONS,
        val_tasks=3,
        on_divergence="skip",
    )
    return poisoned(given, *range(REFUSED, EPOCHS * ITERATIONS, REFUSED))


@pytest.mark.long
def test_killed_any_number_of_times_it_ends_where_it_would_have(tmp_path: Path) -> None:
    whole = gs.fit(**long_run(), out=tmp_path / "whole")
    assert sum(record.skipped for record in whole.history) == EPOCHS * ITERATIONS // REFUSED
    assert kill_often(long_run, {}, tmp_path / "killed", KILLS) >= 8
    survived = gs.fit(**long_run(), out=tmp_path / "killed", resume="auto")
    require_same_end(whole, survived)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    finished: Run, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = copied / "checkpoints" / LATEST
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        again = fit(copied)
    assert timeless(again) == timeless(finished)
    assert again.test == finished.test
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{newest} cannot be read as a checkpoint")
    assert warning.endswith("; falling back to the checkpoint before it")


def test_a_damaged_checkpoint_is_set_aside_and_not_deleted(copied: Path) -> None:
    newest = copied / "checkpoints" / LATEST
    newest.write_bytes(b"torn")
    fit(copied)
    assert newest.with_name(f"damaged-{newest.name}").read_bytes() == b"torn"


def test_without_a_readable_checkpoint_it_says_so(finished: Run, copied: Path) -> None:
    checkpoints = copied / "checkpoints"
    for path in checkpoints.glob("latest-*"):
        path.write_bytes(b"")
    # What the first try sets aside does not make it a run that was never begun.
    for _ in range(2):
        with pytest.raises(RunError) as error:
            fit(copied)
        assert str(error.value) == (
            f"no checkpoint in {checkpoints} can be read; start again in another folder (--out)"
        )
    assert records_in(copied) == finished.history


@pytest.mark.parametrize("gone", ["latest", "everything", "the folder"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(
    gone: str, finished: Run, copied: Path
) -> None:
    checkpoints = copied / "checkpoints"
    for path in checkpoints.glob("latest-*" if gone == "latest" else "*"):
        path.unlink()
    if gone == "the folder":
        checkpoints.rmdir()
    with pytest.raises(RunError) as error:
        fit(copied)
    assert str(error.value) == (
        f"{copied} has completed epochs, but no checkpoints/latest-*.safetensors to "
        "continue from; put these back, or start again in another folder (--out)"
    )
    assert records_in(copied) == finished.history


def test_a_damaged_member_is_left_out_of_the_ensemble(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    min((copied / "checkpoints").glob("epoch-*")).unlink()
    with caplog.at_level(logging.WARNING):
        assert len(gs.open_run(copied).models(2)) == 1
    assert "is left out of the ensemble" in caplog.text


def test_two_processes_cannot_train_into_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(RunError) as error:
        fit(folder)
    assert str(error.value) == (
        f"another process is training in {folder}; wait for it, or choose another folder (--out)"
    )


def test_a_run_that_another_process_began_meanwhile_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[Run] = []

    def meanwhile(*_: object) -> None:  # after the folder was found empty
        monkeypatch.undo()
        others.append(gs.fit(**rows(), out=tmp_path / "run"))

    monkeypatch.setattr(RunFolder, "require_disk", meanwhile)
    with pytest.raises(RunError, match="already holds 'checkpoints'; choose another"):
        gs.fit(**rows(seed=1), out=tmp_path / "run")
    assert records_in(tmp_path / "run") == others[0].history


def test_a_lock_that_is_deleted_while_a_run_is_trained_is_taken_again(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    locked: list[bool] = []

    def delete(progress: Progress) -> None:
        if (progress.phase, progress.done) == ("train", 2):
            lock.unlink()
        locked.append(is_locked(tmp_path / "run"))

    require_same_end(fit(tmp_path / "whole"), fit(tmp_path / "run", progress=delete))
    assert not any(locked[1:3])  # until the run is saved after its third iteration
    assert all(locked[3:])


def test_a_run_whose_lock_was_deleted_and_taken_by_another_process_ends(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    other = FileLock(lock)

    def take(progress: Progress) -> None:
        if (progress.phase, progress.done) == ("train", 4):
            lock.unlink()
            other.acquire(timeout=0)

    with pytest.raises(RunError) as error:
        fit(tmp_path / "run", progress=take)
    other.release()
    assert str(error.value) == (
        f"{lock} was deleted while this process was training, and another process is training "
        "there now; wait for it, and continue with resume='auto' (--resume auto)"
    )
    require_same_end(fit(tmp_path / "whole"), fit(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task_batch": 3}, "a run with task_batch 2, this one has 3;"),
        ({"seed": 1}, "a run with seed 0, this one has 1;"),
        ({"val_tasks": 7}, "a run with val_tasks 6, this one has 7;"),
        ({"ensemble": 1}, "a run with ensemble 2, this one has 1;"),
        ({"clip_norm": 1.0}, "a run with clip_norm None, this one has 1.0;"),
        ({"clamp_gradients": 10}, "a run with clamp_gradients None, this one has 10;"),
        ({"score": "loss"}, "a run with score 'accuracy', this one has 'loss';"),
        ({"test": None}, "a run that differs in its test source;"),
        ({"train": ROWS[0].replace(shots=2)}, "a run that differs in its train source;"),
        (
            {"validation": class_tasks(6, classes=15)[1]},
            "a run that differs in its validation source;",
        ),
        (
            {"learner": gs.maml(mlp(), steps=3, sharing=True)},
            "a run that differs in its meta-parameters;",
        ),
        ({"learner": gs.maml(mlp(), steps=2)}, "a run that differs in its meta-parameters;"),
        (
            {"optimizer": lambda groups: torch.optim.Adam(groups, lr=0.5)},
            "a run with optimizer \"Adam [{'lr': 0.001, ",
        ),
        ({"optimizer": lambda groups: torch.optim.SGD(groups, lr=1e-3)}, 'this one has "SGD [{'),
        (
            {"metrics": {"accuracy": gs.Metric(lambda y, t: 1.0)}},
            "a run with metrics {'accuracy': 'high', 'loss': 'low'}, this one has ",
        ),
    ],
)
def test_another_run_does_not_continue_it(
    changes: dict[str, Any], words: str, finished: Run
) -> None:
    before = sorted(finished.path.rglob("*"))
    with pytest.raises(RunError) as error:
        fit(finished.path, **changes)
    assert str(error.value).startswith(f"{finished.path} holds ")
    assert words in str(error.value)
    assert str(error.value).endswith("; continue it as it was, or choose another folder (--out)")
    assert records_in(finished.path) == finished.history
    assert sorted(finished.path.rglob("*")) == before


def test_the_message_of_another_optimiser_shows_what_differs_and_no_more(tmp_path: Path) -> None:
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    fit(tmp_path / "run", optimizer=functools.partial(adam, eps=1e-8, maximize=False))
    with pytest.raises(RunError) as error:
        fit(tmp_path / "run", optimizer=functools.partial(adam, eps=1e-8, maximize=True))
    message = str(error.value).replace(str(tmp_path), "")
    assert "'maximize': False" in message
    assert "'maximize': True" in message
    assert len(message) < 250


class Counting(gs.UpdateRule):
    """A rule that carries tensors of the default dtype."""

    carries: tuple[str, ...] = ("seen",)

    def init(self, params: Any, steps: int) -> Any:
        return {}, {name: torch.zeros(steps) for name in self.carries}

    def update(self, gradients: Any, meta: Any, carried: Any, task: Any, step: Any) -> Any:
        return gradients, carried, task


def test_what_a_rule_carries_keeps_its_type_under_another_default_dtype(tmp_path: Path) -> None:
    given = {"learner": gs.maml(mlp(), steps=2, rule=Counting())}
    whole = fit(tmp_path / "whole", epochs=4, **given)
    fit(tmp_path / "run", **given)
    torch.set_default_dtype(torch.float64)
    try:
        again = fit(tmp_path / "run", epochs=4, **given)
    finally:
        torch.set_default_dtype(torch.float32)
    require_same_end(whole, again)


def test_a_learner_that_carries_something_else_does_not_continue_it(tmp_path: Path) -> None:
    rule = Counting()
    given = {"learner": gs.maml(mlp(), steps=2, rule=rule)}
    fit(tmp_path / "run", **given)
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())
    rule.carries = ("seen", "more")
    with pytest.raises(RunError) as error:
        fit(tmp_path / "run", epochs=4, **given)
    assert str(error.value) == (
        "the newest checkpoint cannot be continued from: rule.more is another tensor in this "
        "learner, or absent; start again in another folder (--out)"
    )
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before


def test_what_changes_no_result_may_change_when_a_run_is_continued(
    finished: Run, copied: Path
) -> None:
    changes = {"on_divergence": "skip", "callbacks": [print], "tasks": "loop", "progress": True}
    require_same_end(finished, fit(copied, **changes))


def test_a_run_may_be_moved(tmp_path: Path) -> None:
    whole = fit(tmp_path / "run", epochs=4)
    fit(tmp_path / "short")
    shutil.move(tmp_path / "short", tmp_path / "moved")
    assert timeless(fit(tmp_path / "moved", epochs=4)) == timeless(whole)


def test_a_folder_that_vanishes_ends_the_run_with_a_message(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def vanish(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == 4 and folder.exists():
            folder.rename(tmp_path / "elsewhere")

    with pytest.raises(RunError, match="cannot be written: No such file or directory"):
        fit(folder, progress=vanish)
    assert len(fit(tmp_path / "elsewhere").history) == 3


def test_a_moment_is_saved_within_a_long_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshare.training.loop.SAVE_EVERY_SECONDS", 0)
    seen: list[str] = []

    def look(progress: Progress) -> None:
        seen[:] = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("latest-*"))

    fit(tmp_path / "run", epochs=1, iterations=6, progress=look)
    assert seen == ["latest-000000005.safetensors", "latest-000000006.safetensors"]


def test_a_checkpoint_of_another_run_is_passed_over_and_named(
    finished: Run, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "other", learner=gs.maml(mlp(), steps=3))
    name = f"checkpoints/{LATEST}"
    (tmp_path / "other" / name).replace(copied / name)
    with caplog.at_level(logging.WARNING):
        again = fit(copied)
    assert timeless(again) == timeless(finished)
    ids = [RunFolder(path).contents()["id"] for path in (tmp_path / "other", copied)]
    assert caplog.messages == [
        f"{copied / name} is of another run ({ids[0]}, not {ids[1]}); use the run's "
        "own; falling back to the checkpoint before it"
    ]


def test_a_model_of_another_run_or_epoch_is_no_member_of_the_ensemble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = fit(tmp_path / "run", ensemble=3)
    fit(tmp_path / "other", ensemble=3, seed=1)
    one, two, _ = sorted((tmp_path / "run" / "checkpoints").glob("epoch-*"))
    (tmp_path / "other" / "checkpoints" / two.name).replace(two)
    with caplog.at_level(logging.WARNING):
        assert len(run.models(3)) == 2
    assert "is of another run" in caplog.text
    shutil.copy(one, two)
    with caplog.at_level(logging.WARNING):
        assert len(run.models(3)) == 2
    assert f"{two} is of epoch 1, not 2; epoch 2 is left out of the ensemble" in caplog.messages


def test_all_checkpoints_of_another_run_are_no_results_of_this_one(
    copied: Path, tmp_path: Path
) -> None:
    fit(tmp_path / "other", seed=1)
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", copied / "checkpoints")
    for use in (fit, gs.open_run):
        with pytest.raises(RunError, match=r"no checkpoint in .* can be read; start again in"):
            use(copied)


def test_a_metrics_file_that_was_cut_changes_no_result_and_is_written_again(
    finished: Run, copied: Path
) -> None:
    path = copied / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    opened = gs.open_run(copied, rows()["learner"])
    assert finished.test is not None
    assert opened.evaluate(ROWS[2], tasks=8, ensemble=2).values == finished.test.ensemble
    fit(copied, epochs=4)
    assert path.read_bytes().startswith(whole)


def test_progress_that_no_run_makes_is_named(copied: Path) -> None:
    path = copied / "checkpoints" / LATEST
    saved = load_checkpoint(path)
    for change, said in (
        ({"iteration": "soon"}, "iteration: Input should be a valid integer"),
        ({"iteration": 10}, "iteration is 10, this run has 9"),
        ({"iteration": -1}, "iteration is -1, this run has 9"),
        ({"history": [{}]}, "history.0.epoch: Field required"),
        ({"history": [3]}, "history.0: Input should be a dictionary"),
    ):
        changed = {**saved.progress, "test": None, **change}
        save_checkpoint(path, dataclasses.replace(saved, progress=changed))
        with pytest.raises(RunError) as error:
            fit(copied)
        assert str(error.value).startswith(
            f"the newest checkpoint cannot be continued from: {said}"
        )
        assert str(error.value).endswith("; start again in another folder (--out)")


def test_a_newest_checkpoint_of_another_format_is_left_where_it_is(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted((copied / "checkpoints").iterdir())
    monkeypatch.setattr("gradshare.training.checkpoint.FORMAT_VERSION", 9)
    with pytest.raises(RunError) as error:
        fit(copied)
    assert "has checkpoint format 2, this gradshare reads 9; use gradshare" in str(error.value)
    assert sorted((copied / "checkpoints").iterdir()) == before
