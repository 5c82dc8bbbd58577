"""Runs side by side: what becomes of the others when one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from gradshare.errors import GradshareError, RunError
from gradshare.experiments.arms import Finished
from gradshare.experiments.executors.job import Job, UnexpectedError
from gradshare.experiments.executors.local import LocalExecutor
from gradshare.experiments.executors.loop import Event, run_all
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress
from tests.experiments.executor_runs import (
    PATIENCE,
    assert_as_if_trained_here,
    ignore,
    job,
    options,
    wait_until,
)


def jobs(tiny: dict[str, Any], folder: Path, **epochs: int) -> dict[str, Job]:
    return {name: job(tiny, folder / name, epochs=count) for name, count in epochs.items()}


def children() -> list[int]:
    """The processes that train; one that has ended and was not waited for has no command line."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    commands = {
        child: Path(f"/proc/{child}/cmdline").read_bytes() for child in map(int, listed.split())
    }
    return [
        child for child, words in commands.items() if words and b"resource_tracker" not in words
    ]


def test_a_killed_process_is_named_and_the_others_keep_what_they_have(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    done: dict[str, Finished] = {}
    victim: list[int] = []

    def kill(name: str, progress: Progress) -> None:
        if name == "victim" and progress.epoch > 2 and "short" in done and not victim:
            victim.extend(children())
            os.kill(victim[0], signal.SIGKILL)

    with pytest.raises(RunError) as error:
        run_all(
            jobs(tiny, tmp_path, short=1, victim=10_000),
            LocalExecutor(2, 1),
            kill,
            done.__setitem__,
        )
    assert str(error.value) == (
        "the process of run 'victim' ended without a result (exit status -9); a negative status "
        "is a signal, and -9 often means that memory ran out"
    )
    assert list(done) == ["short"]
    assert RunFolder(tmp_path / "victim").history()


def test_one_runs_error_stops_the_others(tiny: dict[str, Any], tmp_path: Path) -> None:
    def occupy(name: str, progress: Progress) -> None:
        refused = tmp_path / "refused"
        if name == "long" and not refused.exists():
            refused.mkdir()
            (refused / "thesis.txt").write_text("years", encoding="utf-8")

    # One epoch that does not end: only a run that is stopped saves anything of it.
    long = job(tiny, tmp_path / "long", epochs=1, iterations_per_epoch=10_000)
    first, last = (jobs(tiny, tmp_path, **{name: 1}) for name in ("short", "refused"))
    work = {**first, "long": long, **last}
    with pytest.raises(RunError, match=r"already holds 'thesis\.txt'"):
        run_all(work, LocalExecutor(2, 1), occupy, ignore)
    with FileLock(long.folder / ".lock", timeout=0):  # its process has ended
        assert list((long.folder / "checkpoints").glob("latest-*"))


def test_a_stop_after_one_run_is_done_keeps_its_result(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    done: dict[str, Finished] = {}
    asked: list[bool] = []

    def stop(name: str, progress: Progress) -> None:
        if "short" in done and name == "long" and progress.epoch > 2 and not asked:
            asked.append(True)  # a second time would interrupt at once
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunStoppedError) as error:
        run_all(
            jobs(tiny, tmp_path, short=1, long=10_000),
            LocalExecutor(2, 1),
            stop,
            done.__setitem__,
        )
    assert str(error.value).startswith("stopped; everything so far is saved in ")
    assert list(done) == ["short"]
    assert RunFolder(tmp_path / "long").history()


def test_a_killed_process_can_be_retried(tiny: dict[str, Any], tmp_path: Path) -> None:
    victim: list[int] = []

    def kill(name: str, progress: Progress) -> None:
        if progress.epoch > 2 and not victim:
            victim.extend(children())
            os.kill(victim[0], signal.SIGKILL)

    work = job(tiny, tmp_path / "run", epochs=30)
    executor = LocalExecutor(1, 1, retries=1)
    finished = run_all({"run": work}, executor, kill, ignore)
    assert victim
    assert_as_if_trained_here(finished["run"], work, tmp_path / "here")


def test_runs_save_and_end_when_the_program_is_killed(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = [sys.executable, "-m", "gradshare", "compare", "--out", str(out)]
    process = subprocess.Popen(
        [*program, *options({**tiny, "epochs": 10_000})],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    runs = [out / "original", out / "gradient-sharing"]
    metrics = [run / "metrics.jsonl" for run in runs]
    wait_until(lambda: all(path.is_file() and path.stat().st_size for path in metrics))
    process.kill()
    for run in runs:
        with FileLock(run / ".lock", timeout=PATIENCE):
            assert RunFolder(run).history()
    assert b"Traceback" not in process.communicate(timeout=PATIENCE)[1]


class Defective(LocalExecutor):
    """Every run of it meets a defect."""

    def start(self, jobs: Mapping[str, Job]) -> None:
        self.names = list(jobs)

    def news(self) -> Iterator[Event]:
        for name in self.names:
            yield name, UnexpectedError("ValueError: unforeseen", "in fail, line 1")


def test_a_defect_whose_trace_has_no_place_is_told_with_it_and_the_others_go_on(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    work = {name: job(tiny, tmp_path / "file" / name) for name in ("one", "two")}
    told: list[str] = []

    def failed(name: str, error: GradshareError) -> None:
        told.append(str(error))

    run_all(work, Defective(2, 1), ignore, ignore, failed=failed)
    assert len(told) == 2
    assert told[0].startswith(
        "run 'one' failed: ValueError: unforeseen; please report this with its trace, for which "
        f"there is no place ({tmp_path / 'file' / 'one'}: the folder cannot be made: "
    )
    assert told[0].endswith("):\nin fail, line 1")
