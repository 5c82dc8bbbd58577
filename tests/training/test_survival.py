"""What a run survives: being killed at any moment, damaged checkpoints, a second process."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from gradshare.config import RunConfig
from gradshare.errors import RunError
from gradshare.training.checkpoint import load_checkpoint, save_checkpoint
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.run import Progress, train
from gradshare.training.setup import set_up
from tests.conftest import prepare_tiny
from tests.training.killing import REFUSED, kill_often, require_same_end, some_refused, timeless

CPU = torch.device("cpu")
KILLS = 24


@pytest.mark.long
def test_killed_any_number_of_times_it_ends_where_it_would_have(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(
        **{
            **tiny,
            "epochs": 200,
            "iterations_per_epoch": 2,
            "val_tasks": 3,
            "method": "maml++",
            "on_divergence": "skip",
        }
    )
    with some_refused(config):
        whole = train(config, tmp_path / "whole")
    assert sum(record.skipped for record in whole.history) == config.iterations // REFUSED
    assert kill_often(config, tmp_path / "killed", KILLS) >= 20
    with some_refused(config):
        survived = train(config, tmp_path / "killed", resume=True)
    require_same_end(whole, tmp_path / "whole", survived, tmp_path / "killed")


def test_a_complete_run_is_returned_as_it_is(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig(**tiny)
    first = train(config, tmp_path / "run")
    seen: list[Progress] = []
    again = train(config, tmp_path / "run", seen.append, resume=True)
    assert seen == []
    assert (again.history, again.test) == (first.history, first.test)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = RunConfig(**tiny)
    whole = train(config, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "latest-000000009.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        again = train(config, tmp_path / "run", resume=True)
    assert timeless(again) == timeless(whole)
    assert again.test == whole.test
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{newest} cannot be read as a checkpoint")
    assert warning.endswith("; falling back to the checkpoint before it")


def test_without_a_readable_checkpoint_it_says_so(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig(**tiny)
    train(config, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("latest-*"):
        path.write_bytes(b"")
    with pytest.raises(RunError) as error:
        train(config, tmp_path / "run", resume=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    nothing = f"no checkpoint in {checkpoints} can be read; start again with another --out"
    assert str(error.value) == nothing
    # What it set aside does not make it a run that was never begun.
    with pytest.raises(RunError) as error:
        train(config, tmp_path / "run", resume=True)
    assert str(error.value) == nothing
    assert len(RunFolder(tmp_path / "run").history()) == config.epochs


def test_a_run_whose_latest_checkpoints_are_gone_is_not_begun_again(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(**tiny)
    train(config, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.glob("latest-*"):
        path.unlink()
    kept = sorted(checkpoints.iterdir())
    with pytest.raises(RunError) as error:
        train(config, tmp_path / "run", resume=True)
    assert str(error.value) == (
        f"{checkpoints} has models of completed epochs, but no latest-*.safetensors to continue "
        "from; put these back, or start again with another --out"
    )
    assert sorted(checkpoints.iterdir()) == kept
    assert len(RunFolder(tmp_path / "run").history()) == config.epochs


def test_a_damaged_member_is_left_out_of_the_ensemble(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = RunConfig(**tiny)
    result = train(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    path = sorted((tmp_path / "run" / "checkpoints").glob("epoch-*"))[0]
    path.unlink()
    with caplog.at_level(logging.WARNING):
        like = set_up(config).learner.init()
        assert len(folder.best_models(result.history, 2, like)) == 1
    assert "is left out of the ensemble" in caplog.text


def test_two_processes_cannot_train_into_one_folder(tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(RunError) as error:
        train(RunConfig(**tiny), folder, resume=True)
    assert str(error.value) == (
        f"another process is training in {folder}; wait for it, or choose another folder with --out"
    )


def test_another_configuration_does_not_continue_a_run(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    train(RunConfig(**tiny), tmp_path / "run")
    with pytest.raises(RunError) as error:
        train(RunConfig(**{**tiny, "inner_lr": 0.2}), tmp_path / "run", resume=True)
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds a run with inner_lr 0.1, this one has 0.2; continue it with "
        "its own settings, or choose another folder with --out"
    )
    train(RunConfig(**{**tiny, "threads": 2}), tmp_path / "run", resume=True)


def test_a_run_is_not_continued_with_other_images(tiny: dict[str, Any], tmp_path: Path) -> None:
    config, folder = RunConfig(**tiny), tmp_path / "run"
    train(config, folder)
    stored = RunFolder(folder).inputs().sha256
    prepare_tiny(tmp_path / "other", train_classes=11)
    other = RunConfig(**{**tiny, "data_root": tmp_path / "other"})
    now = set_up(other).images_sha256
    assert stored == set_up(config).images_sha256 != now
    with pytest.raises(RunError) as error:
        train(other, folder, resume=True)
    assert str(error.value) == (
        f"the run in {folder} was started with images of SHA-256 {stored[:12]}…, the prepared "
        f"dataset now has {now[:12]}…; prepare the dataset as it was, name the folder that still "
        "holds it with --data-root, or start another run"
    )
    shutil.copytree(tiny["data_root"], tmp_path / "moved")
    train(RunConfig(**{**tiny, "data_root": tmp_path / "moved"}), folder, resume=True)


def test_a_run_of_an_earlier_version_is_continued_without_a_digest(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(**tiny)
    whole = train(config, tmp_path / "run")
    path = tmp_path / "run" / "inputs.json"
    inputs = json.loads(path.read_bytes())
    del inputs["sha256"]
    path.write_text(json.dumps(inputs), encoding="utf-8")
    assert RunFolder(tmp_path / "run").inputs().sha256 is None
    assert train(config, tmp_path / "run", resume=True).test == whole.test


def test_a_folder_that_vanishes_ends_the_run_with_a_message(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def vanish(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == 4 and folder.exists():
            folder.rename(tmp_path / "elsewhere")

    with pytest.raises(RunError, match="cannot be written: No such file or directory"):
        train(RunConfig(**tiny), folder, vanish)
    resumed = train(RunConfig(**tiny), tmp_path / "elsewhere", resume=True)
    assert len(resumed.history) == 3


def test_a_moment_is_saved_within_a_long_epoch(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshare.training.run.SAVE_EVERY_SECONDS", 0)
    seen: list[str] = []

    def look(progress: Progress) -> None:
        seen[:] = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("latest-*"))

    train(RunConfig(**{**tiny, "epochs": 1, "iterations_per_epoch": 6}), tmp_path / "run", look)
    assert seen[-1] == "latest-000000006.safetensors"
    assert seen[0] == "latest-000000005.safetensors"


def test_a_checkpoint_of_another_run_is_passed_over_and_named(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = RunConfig(**tiny)
    whole = train(config, tmp_path / "run")
    train(RunConfig(**{**tiny, "filters": 5}), tmp_path / "other")
    name = "checkpoints/latest-000000009.safetensors"
    (tmp_path / "other" / name).replace(tmp_path / "run" / name)
    with caplog.at_level(logging.WARNING):
        again = train(config, tmp_path / "run", resume=True)
    assert timeless(again) == timeless(whole)
    assert caplog.messages == [
        f"{tmp_path / 'run' / name} is of another run: model.blocks.0.conv.weight is torch.float32 "
        "(5, 1, 3, 3), this run has torch.float32 (4, 1, 3, 3); use the run's own; falling back to "
        "the checkpoint before it"
    ]


def test_progress_that_no_run_makes_is_named(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig(**tiny)
    train(config, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "latest-000000009.safetensors"
    saved = load_checkpoint(path, CPU)
    for change, said in (
        ({"iteration": "soon"}, "iteration: Input should be a valid integer"),
        ({"iteration": 10}, "iteration: it is 10, this run has 9"),
        ({"history": [{}]}, "history.0.epoch: Field required"),
    ):
        changed = {**saved.progress, "test": None, **change}
        save_checkpoint(path, dataclasses.replace(saved, progress=changed))
        with pytest.raises(RunError) as error:
            train(config, tmp_path / "run", resume=True)
        assert str(error.value).startswith(
            f"the newest checkpoint cannot be continued from: {said}"
        )


def test_a_run_stopped_while_it_validates_records_the_rate_that_it_trained_with(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    # Found by the soak test: the rate of the optimiser is set by an iteration, and a run that is
    # continued here validates before it takes one.
    config = RunConfig(**{**tiny, "cosine_annealing_to": 1e-5})
    whole = train(config, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.phase == "validate" and progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStoppedError):
        train(config, tmp_path / "run", stop)
    assert timeless(train(config, tmp_path / "run", resume=True)) == timeless(whole)


def test_a_newest_checkpoint_of_another_format_is_left_where_it_is(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(**tiny)
    train(config, tmp_path / "run")
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())
    monkeypatch.setattr("gradshare.training.checkpoint.FORMAT_VERSION", 9)
    with pytest.raises(RunError) as error:
        train(config, tmp_path / "run", resume=True)
    assert "has checkpoint format 1, this gradshare reads 9; use gradshare" in str(error.value)
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before


def test_a_damaged_checkpoint_is_set_aside_and_not_deleted(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(**tiny)
    train(config, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "latest-000000009.safetensors"
    newest.write_bytes(b"torn")
    train(config, tmp_path / "run", resume=True)
    assert newest.with_name(f"damaged-{newest.name}").read_bytes() == b"torn"
