"""Runs on a local Ray cluster: the same as here, whatever becomes of their workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError, TaskCancelledError

from gradshare.config import from_settings
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.experiments.arms import Finished
from gradshare.experiments.compare import compare, jobs_of
from gradshare.experiments.executors import ray_cluster
from gradshare.experiments.executors.job import LostError, UnexpectedError
from gradshare.experiments.executors.local import LocalExecutor
from gradshare.experiments.executors.loop import Executor, run_all
from gradshare.experiments.executors.ray_cluster import OBJECT_STORE_BYTES, RayExecutor
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress
from tests.experiments.executor_runs import (
    assert_as_if_trained_here,
    ignore,
    job,
    layout,
    mortal,
    options,
    processes,
    timeless_results,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def workers() -> list[int]:
    return processes("ray::_train")


def executor(tiny: dict[str, Any], retries: int = 2) -> RayExecutor:
    return RayExecutor(from_settings(tiny), None, at_a_time=4, retries=retries)


def in_a_mortal_worker() -> Any:
    train = ray_cluster._train

    def body(*arguments: Any) -> Any:  # a closure: Ray sends its code, since no module has it
        train.__globals__["run_job"] = mortal
        return train(*arguments)

    return body


@pytest.mark.parametrize("shared", [True, False], ids=["shared disk", "no shared disk"])
def test_a_killed_worker_goes_on_from_its_checkpoint(
    shared: bool,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not shared:
        place = RayExecutor._place

        def on_another_disk(self: RayExecutor, job: Any) -> Any:
            seen = place(self, job)
            return ray_cluster._Place(seen.working_directory, seen.token, b"another disk's")

        monkeypatch.setattr(RayExecutor, "_place", on_another_disk)
    monkeypatch.setattr(ray_cluster, "_train", in_a_mortal_worker())
    work = job(tiny, tmp_path / "out" / "run", epochs=5)
    finished = run_all({"run": work}, executor(tiny), ignore, ignore)
    (warning,) = (record.message for record in caplog.records if record.levelno >= logging.WARNING)
    assert warning.startswith("the worker of run 'run' was lost: WorkerCrashedError: ")
    assert warning.endswith("; it goes on from its last checkpoint (retry 1 of 2)")
    assert (work.folder / ".lock").exists() == shared
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run"]
    assert_as_if_trained_here(finished["run"], work, tmp_path / "here")


def test_a_run_that_is_lost_again_and_again_is_given_up(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ray_cluster, "_train", die)
    with pytest.raises(RunError) as error:
        run_all({"run": job(tiny, tmp_path / "run")}, executor(tiny, 1), ignore, ignore)
    assert str(error.value).startswith("the worker of run 'run' was lost: WorkerCrashedError: ")
    assert str(error.value).endswith(
        "; it was retried 1 time without completing another epoch, and is saved to be continued "
        "with --resume auto"
    )


def test_what_a_user_must_mend_is_not_retried(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = {"run": job({**tiny, "data_root": tmp_path / "empty"}, tmp_path / "run")}
    with pytest.raises(DataError, match="dataset 'tiny'"):
        run_all(work, executor(tiny), ignore, ignore)
    assert not caplog.records


def test_a_defect_is_one_message_and_its_trace_in_the_folder(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("unforeseen")

    monkeypatch.setattr(ray_cluster, "_train", fail)
    work = {"run": job(tiny, tmp_path / "run")}
    with pytest.raises(RunError) as error:
        run_all(work, executor(tiny), ignore, ignore)
    assert str(error.value) == (
        "run 'run' failed: on a worker of Ray, ValueError: unforeseen; please report this with "
        f"{tmp_path / 'run' / 'error.txt'}"
    )
    assert "in fail" in (tmp_path / "run" / "error.txt").read_text(encoding="utf-8")


def test_a_stop_saves_what_runs_and_drops_what_waits(tiny: dict[str, Any], tmp_path: Path) -> None:
    done: dict[str, Finished] = {}
    asked: list[str] = []

    def stop(name: str, progress: Progress) -> None:
        if "short" in done and progress.epoch > 2 and not asked:
            asked.append(name)
            os.kill(os.getpid(), signal.SIGINT)

    work = {
        "short": job(tiny, tmp_path / "short", epochs=1),
        **{f"long {n}": job(tiny, tmp_path / f"long-{n}", epochs=10_000) for n in range(2)},
    }
    with pytest.raises(RunStoppedError) as error:
        run_all(work, executor(tiny), stop, done.__setitem__)
    assert str(error.value).startswith("stopped; everything so far is saved in ")
    assert list(done) == ["short"]
    assert RunFolder(work[asked[0]].folder).history()
    wait_until(lambda: not workers())
    assert not list(tmp_path.glob(".ray-*"))


def test_a_run_that_is_called_off_as_it_begins_has_not_failed(tiny: dict[str, Any]) -> None:
    """Its worker is then in its first question to the program, which ends in Ray's own error, or
    in one of Ray's code, which calls the handler of Ctrl-C even where there is none to call.
    """

    @ray.remote(max_retries=0)
    def asks() -> None:
        raise RayTaskError("tell", "", TaskCancelledError())  # type: ignore[no-untyped-call]

    @ray.remote(max_retries=0)
    def begins() -> None:
        raise TypeError("'Handlers' object is not callable")

    where = executor(tiny)
    where._called_off |= {"first", "second"}
    for name, task in (("first", asks.remote()), ("second", begins.remote())):
        outcome = where._outcome(name, task)
        assert isinstance(outcome, LostError)
        assert str(outcome) == f"run {name!r} was called off before it began"
    # Of one that was not, it is a defect.
    assert isinstance(where._outcome("third", begins.remote()), UnexpectedError)


def test_a_comparison_is_laid_out_as_on_this_machine(tiny: dict[str, Any], tmp_path: Path) -> None:
    def compared(out: str, where: Executor, *, resume: bool = False) -> None:
        jobs = jobs_of(from_settings(tiny), tmp_path / out, control=False, seeds=1, resume=resume)
        compare(jobs, executor=where, command="gradshare compare", watch=ignore)

    compared("ray", executor(tiny))
    # As if it had been stopped after its second epoch.
    (tmp_path / "ray/original/checkpoints/latest-000000009.safetensors").unlink()
    (tmp_path / "ray/original/results.json").unlink()
    compared("ray", executor(tiny), resume=True)
    compared("local", LocalExecutor(2, 1))
    assert layout(tmp_path / "ray") == layout(tmp_path / "local")
    for name in ("results.json", "original/results.json", "gradient-sharing/results.json"):
        left, right = (timeless_results(tmp_path / out / name) for out in ("ray", "local"))
        assert left == right


def test_ctrl_c_in_a_terminal_stops_the_command_and_its_cluster(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program = [sys.executable, "-m", "gradshare", "compare", "--executor", "ray"]
    process = subprocess.Popen(
        [*program, "--out", str(out), *options({**tiny, "epochs": 10_000})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    runs = [out / arm for arm in ("original", "gradient-sharing")]
    metrics = [run / "metrics.jsonl" for run in runs]
    wait_until(lambda: all(path.is_file() and path.stat().st_size for path in metrics))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, err
    assert "2 runs, on a Ray cluster of this machine as it has room, with 1 thread each" in said
    assert err == f"stopped; everything so far is saved in {', '.join(map(str, runs))}\n"
    assert all(RunFolder(run).history() for run in runs)
    assert sorted(path.name for path in out.iterdir()) == sorted(run.name for run in runs)
    wait_until(lambda: not workers())


def test_a_card_of_its_own_choice_is_refused(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        executor({**tiny, "device": "cuda:1"})
    assert str(error.value) == (
        "--device cuda:1 names one card, but Ray deals out the cards; use --device cuda"
    )
