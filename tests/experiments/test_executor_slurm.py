"""Runs through submitit, on its executors that need no Slurm, and against stand-ins for Slurm's
programs."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradshare.config import from_settings
from gradshare.errors import ConfigError, DataError, GradshareError, RunError
from gradshare.experiments.arms import Finished
from gradshare.experiments.executors import slurm_array
from gradshare.experiments.executors.job import run_job
from gradshare.experiments.executors.loop import run_all
from gradshare.experiments.executors.slurm_array import (
    SETTINGS,
    SlurmExecutor,
    slurm_settings,
)
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress, Watch
from tests.experiments.executor_runs import (
    assert_as_if_trained_here,
    ignore,
    job,
    mortal,
    processes,
    wait_until,
)


def executor(
    tiny: dict[str, Any], out: Path, *pairs: str, cluster: str = "local", retries: int = 2
) -> SlurmExecutor:
    settings = slurm_settings([f"cluster={cluster}", "time=30", *pairs])
    return SlurmExecutor(from_settings(tiny), out, settings, at_a_time=2, retries=retries)


def tasks() -> list[int]:
    return processes("-m submitit.core._submit")


@pytest.fixture(autouse=True)
def log_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes what submitit's debug executor leaves open, which Python would warn of."""
    opened: list[logging.FileHandler] = []

    class Handler(logging.FileHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            opened.append(self)

    monkeypatch.setattr(logging, "FileHandler", Handler)
    yield
    for handler in opened:
        handler.close()


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_runs_are_as_if_trained_here(cluster: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = {name: job(tiny, out / name, sharing=name == "b") for name in ("a", "b")}
    done: dict[str, Finished] = {}
    told: list[tuple[str, int]] = []

    def watch(name: str, progress: Progress) -> None:
        told.append((name, progress.done))

    finished = run_all(work, executor(tiny, out, cluster=cluster), watch, done.__setitem__)
    assert finished == done
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    assert {("a", 9), ("b", 9)} <= set(told)
    for name, run in work.items():
        assert_as_if_trained_here(finished[name], run, tmp_path / "here" / name)


def with_run_job(replacement: Any) -> type[slurm_array._Task]:
    class Task(slurm_array._Task):  # in a function: submitit sends its code, no module has it
        def __call__(self) -> Any:
            super().__call__.__func__.__globals__["run_job"] = replacement  # type: ignore[attr-defined]
            return super().__call__()

    return Task


def test_a_killed_job_goes_on_from_its_checkpoint(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(slurm_array, "_Task", with_run_job(mortal))
    out = tmp_path / "out"
    work = job(tiny, out / "run", epochs=5)
    finished = run_all({"run": work}, executor(tiny, out), ignore, ignore)
    (warning,) = (record.message for record in caplog.records if record.levelno >= logging.WARNING)
    assert warning.startswith("the Slurm job ")
    assert " of run 'run' ended without a result (it is gone); its log is " in warning
    assert warning.endswith("_0_log.err; it goes on from its last checkpoint (retry 1 of 2)")
    assert_as_if_trained_here(finished["run"], work, tmp_path / "here")


def test_a_job_whose_time_is_up_queues_again_and_goes_on(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def out_of_time(job: Any, threads: int, watch: Watch) -> Any:
        first = not list(job.folder.glob("checkpoints/latest-*"))

        def warn(progress: Progress) -> None:
            if first and progress.epoch == 2:
                signal.raise_signal(signal.SIGUSR2)  # as Slurm sends it, --signal-delay-s before
            watch(progress)

        return run_job(job, threads, warn)

    monkeypatch.setattr(slurm_array, "_Task", with_run_job(out_of_time))
    out = tmp_path / "out"
    work = job(tiny, out / "run")
    log = ""

    def watch(name: str, progress: Progress) -> None:
        nonlocal log
        log = "".join(path.read_text() for path in (out / "slurm").glob("*_log.err"))

    finished = run_all({"run": work}, executor(tiny, out, retries=0), watch, ignore)
    assert "Caught signal SIGUSR2" in log
    assert not [record for record in caplog.records if record.name.startswith("gradshare")]
    assert_as_if_trained_here(finished["run"], work, tmp_path / "here")


def test_a_stop_saves_what_runs(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = {"run": job(tiny, out / "run", epochs=10_000)}

    def stop(name: str, progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStoppedError) as error:
        run_all(work, executor(tiny, out), stop, ignore)
    assert str(error.value) == f"stopped; everything so far is saved in {out / 'run'}"
    assert error.value.signal == signal.SIGTERM
    wait_until(lambda: not tasks())
    latest = sorted((out / "run" / "checkpoints").glob("latest-*"))
    assert latest
    assert RunFolder(out / "run").history()
    assert list((out / "slurm").glob("*_log.err"))


def test_the_logs_of_a_grid_are_kept_where_a_run_failed(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = {
        "good": job(tiny, out / "good"),
        "bad": job({**tiny, "data_root": tmp_path / "empty"}, out / "bad"),
    }
    failures: dict[str, GradshareError] = {}
    finished = run_all(
        work,
        executor(tiny, out),
        ignore,
        ignore,
        failed=failures.__setitem__,
    )
    assert (set(finished), set(failures)) == ({"good"}, {"bad"})
    assert list((out / "slurm").glob("*_log.err"))


def test_what_a_user_must_mend_is_not_retried(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = {"run": job({**tiny, "data_root": tmp_path / "empty"}, tmp_path / "run")}
    with pytest.raises(DataError, match="dataset 'tiny'"):
        run_all(work, executor(tiny, tmp_path, cluster="debug"), ignore, ignore)
    assert not [record for record in caplog.records if record.name.startswith("gradshare")]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for Slurm's programs, first in PATH; each notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(slurm_array, "GRACE_SECONDS", {"slurm": 0.0})
    monkeypatch.setattr(slurm_array, "QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(slurm_array, "POLL_SECONDS", 0.05)
    for name, does in {
        "srun": "",
        "sbatch": f"cat $1 > {folder}/batch; echo Submitted batch job 7",
        "squeue": f"cat {folder}/states",
        "scancel": f"sed -i s/RUNNING/CANCELLED/ {folder}/states",
    }.items():
        program(folder, name, does)
    return folder


def program(folder: Path, name: str, does: str) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\n{does}\n', encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_what_slurm_is_asked_for(tiny: dict[str, Any], tmp_path: Path, slurm: Path) -> None:
    out = tmp_path / "out"
    pairs = ("partition=gpu", "gpus-per-node=1", "mem=16G", "--reservation=night", "setup=ulimit")
    (slurm / "states").write_text("7_0 FAILED\n7_1 FAILED\n", encoding="utf-8")
    work = {name: job({**tiny, "threads": 3}, out / name) for name in ("a", "b")}
    there = executor({**tiny, "threads": 3}, out, *pairs, cluster="slurm", retries=0)
    with pytest.raises(RunError, match="it is FAILED"):
        run_all(work, there, ignore, ignore)
    batch = (slurm / "batch").read_text(encoding="utf-8").splitlines()
    for line in (
        "#SBATCH --array=0-1%2",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=30",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --cpus-per-task=3",
        "#SBATCH --mem=16G",
        "#SBATCH --reservation=night",
        "#SBATCH --signal=USR2@90",
        "ulimit",
    ):
        assert line in batch
    assert json.loads((out / "slurm" / "jobs.json").read_text()) == {"a": "7_0", "b": "7_1"}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("FAILED", "ended without a result (it is FAILED); its log is {log}"),
        (
            "CANCELLED",
            "was cancelled; everything so far is saved, continue with --resume auto",
        ),
    ],
)
def test_how_a_job_ended_is_said(
    state: str, message: str, tiny: dict[str, Any], tmp_path: Path, slurm: Path
) -> None:
    (slurm / "states").write_text(f"7 {state}\n", encoding="utf-8")
    work = {"run": job(tiny, tmp_path / "run")}
    there = executor(tiny, tmp_path, cluster="slurm", retries=0)
    with pytest.raises(RunError) as error:
        run_all(work, there, ignore, ignore)
    log = tmp_path / "slurm" / "7_0_log.err"
    assert str(error.value) == f"the Slurm job 7 of run 'run' {message.format(log=log)}"
    assert len((slurm / "sbatch.calls").read_text().splitlines()) == 1


def test_a_job_that_outlived_the_program_is_found_again(
    tiny: dict[str, Any], tmp_path: Path, slurm: Path
) -> None:
    class DiedError(Exception):
        pass

    def die(number: int, frame: object) -> None:
        raise DiedError

    work = {"run": job(tiny, tmp_path / "run")}
    (slurm / "states").write_text("7 RUNNING\n", encoding="utf-8")
    program(slurm, "scancel", "")
    with executor(tiny, tmp_path, cluster="slurm") as first:
        first.start(work)
        first._submitted.clear()  # as if it were killed, and could cancel nothing
        first._stopping = True
    again = executor(tiny, tmp_path, cluster="slurm")
    with again:
        again.start(work)
        assert [one.job_id for one in again._submitted.values()] == ["7"]
        again._submitted.clear()
        again._stopping = True
    assert len((slurm / "sbatch.calls").read_text().splitlines()) == 1

    other = {"run": job(tiny, tmp_path / "run", inner_lr=0.2)}
    with pytest.raises(RunError) as error, executor(tiny, tmp_path, cluster="slurm") as third:
        third.start(other)
    assert str(error.value) == (
        "the Slurm job 7 of an earlier command trains run 'run' with other settings; end it with "
        "`scancel 7`, or continue with its settings"
    )


def test_a_job_that_failed_of_itself_is_submitted_again(
    tiny: dict[str, Any], tmp_path: Path, slurm: Path
) -> None:
    work = {"run": job(tiny, tmp_path / "run")}
    (slurm / "states").write_text("7 FAILED\n", encoding="utf-8")
    program(slurm, "scancel", "")
    with executor(tiny, tmp_path, cluster="slurm") as first:
        first.start(work)
        result = first._submitted["run"].paths.result_pickle
        first._submitted.clear()  # as if the program were killed
        first._stopping = True
    # What submitit leaves where a node cannot so much as import what is to be run.
    result.write_bytes(pickle.dumps(("error", "ImportError: no module named 'gradshare'")))
    with executor(tiny, tmp_path, cluster="slurm") as again:
        again.start(work)
        assert len(again._submitted) == 1
        again._submitted.clear()
        again._stopping = True
    assert len((slurm / "sbatch.calls").read_text().splitlines()) == 2


def test_a_refused_submission_leaves_nothing(
    tiny: dict[str, Any], tmp_path: Path, slurm: Path
) -> None:
    program(slurm, "sbatch", "echo sbatch: error: invalid partition specified: gpuu >&2; exit 1")
    out = tmp_path / "out"
    with pytest.raises(RunError) as error:
        run_all(
            {"run": job(tiny, out / "run")},
            executor(tiny, out, cluster="slurm"),
            ignore,
            ignore,
        )
    assert str(error.value) == (
        "Slurm refused the jobs: sbatch: error: invalid partition specified: gpuu; change what you "
        "give with --slurm"
    )
    assert list(out.iterdir()) == []


def test_times_and_numbers_are_read() -> None:
    minutes = {
        "90": 90,
        "90:30": 91,
        "24:00:00": 1440,
        "0:30:01": 31,
        "2-0": 2880,
        "2-12": 3600,
        "1-01:30": 1530,
    }
    for text, expected in minutes.items():
        assert slurm_settings([f"time={text}"]) == {"time": expected}
    assert slurm_settings(["time=9", "setup=module load a", "setup=x", "cpus_per_task=4"]) == {
        "time": 9,
        "setup": ["module load a", "x"],
        "cpus-per-task": 4,
    }


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "--executor slurm needs a time limit for a run, like --slurm time=24:00:00; a run "
             "that reaches it saves, queues again and goes on"),
        (["gpu"], "--slurm gpu: give KEY=VALUE, like partition=gpu"),
        (["gpus=1"], "--slurm gpus=1: unknown key 'gpus'; did you mean 'gpus-per-node'? The keys "
                     f"are {', '.join(sorted(SETTINGS))}"),
        (["memory=1G"], "--slurm memory=1G: unknown key 'memory'; did you mean 'mem'? The keys "
                        f"are {', '.join(sorted(SETTINGS))}"),
        (["cpus=1"], "--slurm cpus=1: unknown key 'cpus'; did you mean 'cpus-per-task'? The keys "
                     f"are {', '.join(sorted(SETTINGS))}"),
        (["mem=lots"], "--slurm mem=lots: must be a number with a unit, like 16G"),
        (["time=soon"],
         "--slurm time=soon: must be a time like 90 (minutes), 24:00:00 or 2-12:00:00"),
        (["time=0"], "--slurm time=0: must be at least a minute"),
        (["cpus-per-task=0"], "--slurm cpus-per-task=0: must be a whole number from 1"),
        (["gpus-per-node=-1"], "--slurm gpus-per-node=-1: must be a whole number"),
        (["partition="], "--slurm partition=: must be one line of text"),
        (["exclusive=maybe"], "--slurm exclusive=maybe: must be yes or no"),
        (["cluster=mine"], "--slurm cluster=mine: must be slurm, local or debug"),
        (["time=9", "time=8"], "--slurm time=8: time is given twice; give it once"),
        (["time=1"], "--slurm time is 1 minute, and a run is told to save 90 seconds before its "
                     "end; give it more"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(pairs: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        slurm_settings(pairs)
    assert str(error.value) == message


def test_without_slurm_it_says_what_to_do(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        executor(tiny, tmp_path, cluster="slurm")
    assert str(error.value) == (
        "--executor slurm: there is no srun on this machine; run this on a login node of a Slurm "
        "cluster, or rehearse it here with --slurm cluster=local"
    )
