"""What a run keeps on disk, and how it ends when it cannot."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradshare.config import RunConfig
from gradshare.errors import RunError
from gradshare.training.folder import RunFolder
from gradshare.training.records import kept_epochs
from gradshare.training.run import Progress, RunResult, train
from tests.training.killing import require_same_end, timeless

DISK_BYTES = 2 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", place],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("only root may mount a file system to fill")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def at_iteration(iteration: int, action: Callable[[], object]) -> Callable[[Progress], None]:
    """Do something once, after an iteration."""
    done = False

    def watch(progress: Progress) -> None:
        nonlocal done
        if progress.phase == "train" and progress.done == iteration and not done:
            done = True
            action()

    return watch


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb") as file:
        while True:
            file.write(bytes(1 << 12))
            file.flush()


def test_a_full_disk_ends_the_run_and_costs_nothing(
    tiny: dict[str, Any], tmp_path: Path, disk: Path
) -> None:
    config = RunConfig(**tiny)
    whole = train(config, tmp_path / "whole")
    folder = disk / "run"
    with pytest.raises(RunError) as error:
        train(config, folder, at_iteration(5, lambda: fill(disk)))
    message = str(error.value)
    assert message.startswith(str(folder))
    assert "cannot be written: No space left on device; free the space or choose another" in message
    (disk / "filler").unlink()
    assert not list(folder.rglob("*.unfinished"))
    resumed = train(config, folder, resume=True)
    require_same_end(whole, tmp_path / "whole", resumed, folder)


def test_a_disk_that_becomes_read_only_ends_the_run_and_costs_nothing(
    tiny: dict[str, Any], tmp_path: Path, disk: Path
) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)

    config = RunConfig(**tiny)
    whole = train(config, tmp_path / "whole")
    folder = disk / "run"
    # The metrics are open for appending: a file system in use can be read-only to new files only.
    watch = at_iteration(5, lambda: (folder / "checkpoints").rename(disk / "aside"))
    with pytest.raises(RunError, match="cannot be written: No such file or directory"):
        train(config, folder, watch)
    (disk / "aside").rename(folder / "checkpoints")
    remount("ro")
    try:
        with pytest.raises(RunError) as error:
            train(config, folder, resume=True)
        assert str(error.value) == (
            f"the output folder {folder} cannot be written: Read-only file system; choose another "
            "with --out"
        )
    finally:
        remount("rw")
    resumed = train(config, folder, resume=True)
    require_same_end(whole, tmp_path / "whole", resumed, folder)


@pytest.fixture(scope="module")
def whole(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("disk") / "whole"
    return folder, train(short(data_root), folder)


def short(data_root: Path) -> RunConfig:
    return RunConfig(
        dataset="tiny",
        data_root=data_root,
        ways=2,
        queries=1,
        task_batch=1,
        inner_steps=1,
        filters=2,
        epochs=2,
        iterations_per_epoch=1,
        val_tasks=2,
        test_tasks=2,
        ensemble=1,
        device="cpu",
        threads=1,
    )


@pytest.mark.parametrize("write", range(0, 24, 2))
def test_a_write_that_fails_anywhere_costs_nothing(
    write: int,
    data_root: Path,
    tmp_path: Path,
    whole: tuple[Path, RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, folder, left = short(data_root), tmp_path / "run", write
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    try:
        train(config, folder)
    except RunError as error:
        assert "cannot be written: No space left on device; free the space" in str(error)
    else:
        assert left >= 0
    monkeypatch.setattr(os, "fsync", fsync)
    resumed = train(config, folder, resume=True)
    require_same_end(whole[1], whole[0], resumed, folder)


def test_a_run_keeps_its_last_two_moments_its_best_models_and_nothing_else(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshare.training.run.SAVE_EVERY_SECONDS", -1)
    folder = tmp_path / "run"
    config = RunConfig(**{**tiny, "epochs": 8, "iterations_per_epoch": 2, "ensemble": 5})
    seen: list[set[str]] = []

    def look(progress: Progress) -> None:
        if progress.phase != "validate" and progress.done > 3:
            seen.append({path.name for path in (folder / "checkpoints").iterdir()})
            latest = {name for name in seen[-1] if name.startswith("latest-")}
            assert len(latest) == 2
            best = kept_epochs(RunFolder(folder).history(), 5)
            assert seen[-1] - latest == {f"epoch-{epoch:06d}.safetensors" for epoch in best}

    result = train(config, folder, look)
    assert len(timeless(result)) == 8
    assert max(map(len, seen)) == 7
    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "checkpoints", "config.yaml", "inputs.json", "metrics.jsonl", "tensorboard")
    }
