"""What a run keeps on disk, and how it ends when it cannot."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gradshare as gs
from gradshare.errors import RunError
from gradshare.training.options import Progress, Watch
from gradshare.training.records import ranked
from gradshare.training.run import Run
from tests.training.killing import records_in, require_same_end
from tests.training.small import Arguments, rows

DISK_BYTES = 2 << 20


def fit(path: Path, **changes: Any) -> Run:
    return gs.fit(**rows(**changes), out=path, resume="auto")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, which can be filled."""
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


def at_iteration(iteration: int, action: Callable[[], object]) -> Watch:
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


def test_a_full_disk_ends_the_run_and_costs_nothing(tmp_path: Path, disk: Path) -> None:
    whole = fit(tmp_path / "whole")
    folder = disk / "run"
    with pytest.raises(RunError) as error:
        fit(folder, progress=at_iteration(5, lambda: fill(disk)))
    message = str(error.value)
    assert message.startswith(str(folder))
    assert "cannot be written: No space left on device; free space there, or choose" in message
    (disk / "filler").unlink()
    assert not list(folder.rglob("*.unfinished"))
    require_same_end(whole, fit(folder))


def test_a_disk_that_becomes_read_only_ends_the_run_and_costs_nothing(
    tmp_path: Path, disk: Path
) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)

    whole = fit(tmp_path / "whole")
    folder = disk / "run"
    # The metrics are open for appending: a file system in use can be read-only to new files only.
    watch = at_iteration(5, lambda: (folder / "checkpoints").rename(disk / "aside"))
    with pytest.raises(RunError, match="cannot be written: No such file or directory"):
        fit(folder, progress=watch)
    (disk / "aside").rename(folder / "checkpoints")
    remount("ro")
    try:
        with pytest.raises(RunError) as error:
            fit(folder)
        assert str(error.value).startswith(f"{folder} cannot be written: Read-only file system; ")
    finally:
        remount("rw")
    require_same_end(whole, fit(folder))


SHORT: Arguments = {"epochs": 2, "iterations": 1, "val_tasks": 2, "test_tasks": 2, "ensemble": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(tmp_path_factory.mktemp("disk") / "whole", **SHORT)


@pytest.mark.parametrize("write", range(0, 24, 2))
def test_a_write_that_fails_anywhere_costs_nothing(
    write: int, tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = write
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    try:
        fit(tmp_path / "run", **SHORT)
    except RunError as error:
        assert "cannot be written: No space left on device; free space" in str(error)
    else:
        assert left >= 0
    monkeypatch.setattr(os, "fsync", fsync)
    require_same_end(whole, fit(tmp_path / "run", **SHORT))


@pytest.mark.parametrize("refused", ["open", "fsync"])
def test_a_disk_whose_folders_cannot_be_synced_is_trained_on(
    refused: str, tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file, fsync = os.open, os.fsync

    def opened(path: Any, *arguments: Any, **options: Any) -> int:  # as on Windows
        if refused == "open" and Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_file(path, *arguments, **options)

    def synced(descriptor: int) -> None:  # as on some network disks
        if refused == "fsync" and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)
    require_same_end(whole, fit(tmp_path / "run", **SHORT))


def test_a_run_keeps_its_last_two_moments_its_best_models_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshare.training.loop.SAVE_EVERY_SECONDS", -1)
    folder = tmp_path / "run"
    most = 0

    def look(progress: Progress) -> None:
        nonlocal most
        if progress.phase == "validate" or progress.done <= 3:
            return
        names = {path.name for path in (folder / "checkpoints").iterdir()}
        latest = {name for name in names if name.startswith("latest-")}
        assert len(latest) == 2
        best = ranked(records_in(folder), gs.Metric(max), "accuracy")[:5]
        assert names - latest == {f"epoch-{record.epoch:06d}.safetensors" for record in best}
        most = max(most, len(names))

    fit(folder, epochs=8, iterations=2, ensemble=5, progress=look)
    assert most == 7
    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "checkpoints", "run.json", "metrics.jsonl", "tensorboard")
    }
