"""Programs that compare, and their workers, are stopped and killed: nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gradshare.executors import slurm_executor
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress
from tests.comparison.driver import EPOCHS, Slow
from tests.comparison.small import assert_same, leftovers, run_folders, small

PATIENCE = 240

# Ray has a handler of SIGTERM of its own. With the others both signals take the same path, except
# that a terminal sends SIGINT to every process that it started.
STOPPED_BY = {
    "local": [signal.SIGINT],
    "ray": [signal.SIGINT, signal.SIGTERM],
    "submitit": [signal.SIGTERM],
}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the driver's comparison comes to when nothing happens to it."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    small(out, executor=ThreadPoolExecutor(1), epochs=EPOCHS, seeds=1)
    return out


@contextmanager
def driver(
    out: Path, where: str, *, retries: int = 0, seconds: float = 0.3
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.comparison.driver", str(out), where),
            *(str(retries), str(seconds)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def workers(out: Path) -> list[int]:
    """The processes that have trained, and still live."""
    return [int(path.name) for path in out.with_name("workers").glob("*") if alive(int(path.name))]


def alive(process: int) -> bool:
    """Whether a process runs: one that has ended and was not waited for has no command line."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def wait_for(what: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said


@pytest.mark.parametrize("where", STOPPED_BY)
def test_a_program_that_is_stopped_and_then_loses_a_worker_comes_to_the_same_numbers(
    where: str, tmp_path: Path, undisturbed: Path
) -> None:
    out = tmp_path / "out"
    for number in STOPPED_BY[where]:
        with driver(out, where, seconds=1) as process:
            wait_for(lambda: len(workers(out)) == 2, process)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does
            else:
                process.send_signal(number)
            status, said = ended(process)
        assert said == f"stopped; everything so far is saved in {out}\n"
        assert status == 128 + number
        assert leftovers(out) == []
        assert any(list(run.glob("checkpoints/latest-*")) for run in run_folders(out))
        wait_for(lambda: not workers(out))
    with driver(out, where, retries=1) as process:
        wait_for(lambda: len(workers(out)) == 2, process)
        killed, other = workers(out)
        os.kill(killed, signal.SIGKILL)
        if where == "submitit":
            os.kill(other, signal.SIGUSR2)  # as Slurm sends it some time before the end
        status, said = ended(process)
    assert status == 0
    if where == "submitit":  # the job whose time is up is queued again, which is no retry
        assert len(list(out.with_name("workers").iterdir())) == 6
        assert said.count("it is started again") == 1
    assert "worker was lost" in said
    assert "; it is started again (retry 1 of 1)" in said
    assert leftovers(out) == []
    assert_same(out, undisturbed)


def test_a_program_that_trains_in_a_thread_is_stopped_and_comes_to_the_same_numbers(
    tmp_path: Path, undisturbed: Path
) -> None:
    out = tmp_path / "out"

    def stop(_: str, progress: Progress | None) -> None:
        if progress is not None and progress.phase == "train" and progress.done >= 3:
            signal.raise_signal(signal.SIGTERM)

    options: dict[str, Any] = {"executor": ThreadPoolExecutor(1), "epochs": EPOCHS, "seeds": 1}
    with pytest.raises(RunStoppedError) as stopped:
        small(out, progress=stop, callbacks=[Slow(tmp_path, 0.5)], **options)
    assert str(stopped.value) == f"stopped; everything so far is saved in {out}"
    assert leftovers(out) == []
    assert any(list(run.glob("checkpoints/latest-*")) for run in run_folders(out))
    small(out, resume="auto", **options)
    assert_same(out, undisturbed)


def test_workers_save_and_end_when_their_program_is_killed_and_a_restart_clears_what_is_left(
    tmp_path: Path, undisturbed: Path
) -> None:
    out = tmp_path / "out"
    with driver(out, "local", seconds=0.5) as process:
        wait_for(lambda: workers(out), process)
        process.kill()
        process.wait()
        assert leftovers(out)
        # At once: the new workers wait for the old ones, which find their plan gone.
        with driver(out, "local", seconds=0) as again:
            assert ended(again) == (0, "")
    assert not workers(out)
    assert leftovers(out) == []
    assert_same(out, undisturbed)


def test_a_slurm_that_is_busy_and_does_not_answer_loses_no_run_and_lets_a_program_stop(
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs, home = tmp_path / "jobs", tmp_path / "workers"
    for folder in (jobs, home):
        folder.mkdir()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, does in {
        "srun": 'shift 5; exec "$@"',  # without its options
        # The trial is job 0. The second run is refused once, as job 2.
        "sbatch": f"""number=$(ls {jobs} | wc -l)
            touch {jobs}/$number
            [ $number = 2 ] && {{ echo Socket timed out >&2; exit 1; }}
            cp "$1" {jobs}/$number  # as Slurm does: submitit renames it
            SLURM_JOB_ID=$number sh {jobs}/$number > /dev/null 2>&1 &
            echo Submitted batch job $number""",
        "sacct": "exit 1",
        "scancel": "exit 1",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    far: set[str] = set()

    def watch(name: str, progress: Progress | None) -> None:
        if progress is not None and progress.phase == "train" and progress.done >= 3:
            far.add(name)
            if len(far) == 2:
                signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "out"
    with pytest.raises(RunStoppedError):
        small(
            out,
            executor=slurm_executor(tmp_path / "slurm", "busy", {}),
            progress=watch,
            epochs=EPOCHS,
            seeds=1,
            callbacks=[Slow(home, 0.5)],
        )
    assert far == {"original", "sharing"}
    assert len(list(jobs.iterdir())) == 4
    assert any(m.startswith("sharing could not be submitted (") for m in caplog.messages)
    assert leftovers(out) == []
    small(out, executor=ThreadPoolExecutor(1), epochs=EPOCHS, seeds=1, resume="auto")
    assert_same(out, undisturbed)
