"""`--workers` and `torchrun`, as their users meet them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import gradshare
from gradshare.cli import main
from gradshare.config import RunConfig, train
from gradshare.errors import ConfigError, RunError
from gradshare.training.distributed import OtherRankError
from gradshare.training.lock import is_locked
from gradshare.training.options import Progress
from gradshare.training.run import Run
from tests.cli.test_interruption import wait_for_epochs
from tests.cli.test_runs import options
from tests.training.killing import records_in

LONG = 10_000
SOURCES = str(Path(gradshare.__file__).parent)  # named by each line of a traceback of ours
HERE = "127.0.0.1"

# Seconds that a test waits for several processes to start or end on a machine with other work.
PATIENCE = 250

pytestmark = pytest.mark.long


def processes_below(parent: int) -> list[int]:
    """The processes that one has started, and those that they have."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for child in map(int, children) for pid in (child, *processes_below(child))]


def worker_of(parent: int) -> int:
    (worker,) = (
        pid
        for pid in processes_below(parent)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return worker


def rank_of(torchrun: int, rank: int) -> int:
    (pid,) = (
        pid
        for pid in processes_below(torchrun)
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    )
    return pid


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def whole(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Run]:
    """The settings of a run over two processes, and the run."""
    settings = {
        **{"dataset": "tiny", "data_root": str(data_root), "ways": 3, "queries": 4},
        **{"task_batch": 3, "inner_steps": 2, "filters": 4, "epochs": 9},
        **{"iterations_per_epoch": 3, "val_tasks": 3, "test_tasks": 8, "ensemble": 2},
        **{"device": "cpu", "threads": 1},
    }
    folder = tmp_path_factory.mktemp("whole") / "run"
    return settings, train(RunConfig(**{**settings, "workers": 2}), folder)


def assert_same_end(folder: Path, whole: tuple[dict[str, Any], Run]) -> None:
    settings, run = whole
    again = train(RunConfig(**settings), folder, resume=True)  # it is complete: nothing is done
    assert again.table() == run.table()
    assert again.test == run.test
    for ours, theirs in zip(again.models(2), run.models(2), strict=True):
        for part, other in zip(ours, theirs, strict=True):
            assert part.keys() == other.keys()
            assert all(torch.equal(tensor, other[name]) for name, tensor in part.items())


def test_a_killed_worker_ends_the_run_and_resumed_it_ends_where_it_would_have(
    whole: tuple[dict[str, Any], Run], tmp_path: Path
) -> None:
    config = RunConfig(**{**whole[0], "workers": 2})
    folder = tmp_path / "run"

    def kill(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == 14:
            os.kill(worker_of(os.getpid()), signal.SIGKILL)

    with pytest.raises(OtherRankError) as error:
        train(config, folder, watch=kill)
    words, _, end = str(error.value).partition("; everything up to iteration ")
    assert words.startswith("another of the 2 processes of this run was lost, as rank 0 noticed: ")
    # The kill may come before or after the worker's part of the next iteration.
    assert end in {
        f"{done} is saved in {folder}, continue it with --resume auto" for done in (14, 15, 16)
    }
    train(config, folder, resume=True)
    assert_same_end(folder, whole)


def test_workers_under_torchrun_and_more_workers_than_tasks_are_refused(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(**{**tiny, "workers": 3})
    assert str(error.value) == (
        "--workers 3 is more than the 2 tasks of a batch; use at most as many workers as "
        "--task-batch"
    )
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError) as error:
        train(RunConfig(**{**tiny, "workers": 2}), tmp_path / "run")
    assert str(error.value) == (
        "--workers 2 starts processes, and torchrun has started 4; leave one of them out"
    )
    with pytest.raises(RunError) as unmet:
        train(RunConfig(**tiny), tmp_path / "run")
    assert str(unmet.value) == (
        "the processes that torchrun started do not find each other: Error initializing "
        "torch.distributed using env:// rendezvous: environment variable MASTER_ADDR expected, but "
        "not set"
    )
    assert not (tmp_path / "run").exists()


def test_torchrun_is_for_train_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["gradshare", "compare", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err == (
        "error: torchrun has started 2 processes of `gradshare compare`, which runs in one; "
        "use torchrun with `gradshare train` only\n"
    )


def test_a_worker_that_cannot_begin_is_named(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys\nif 'spawn_main' in str(sys.orig_argv): os._exit(7)\n"
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(RunError) as error:
        train(RunConfig(**{**tiny, "workers": 2}), tmp_path / "run")
    assert str(error.value) == (
        "the process of rank 1 of 2 did not begin (exit status 7); its own error is above"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM to the worker", "SIGKILL"])
def test_a_run_with_workers_ends_as_one_and_leaves_no_process(
    how: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", "--workers", "2", "--out", str(out), *options({**tiny, "epochs": LONG})]
    with started("gradshare", *command) as process:
        wait_for_epochs([out], process)
        worker = worker_of(process.pid)
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        elif how == "SIGKILL":
            process.kill()
        else:
            os.kill(worker, signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    expected = {"Ctrl-C": 128 + signal.SIGINT, "SIGKILL": -signal.SIGKILL}
    assert process.returncode == expected.get(how, 128 + signal.SIGTERM)
    if how != "SIGKILL":
        assert err.startswith("stopped after iteration ")
        assert err.count("\n") == 1
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the worker is left over")
    assert records_in(out)


@pytest.mark.parametrize(
    ("threads", "variable", "expected"), [(0, None, 2), (0, "4", 4), (3, "4", 3)]
)
def test_workers_share_the_threads_unless_they_are_set(
    threads: int,
    variable: str | None,
    expected: int,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)

    def begin(*arguments: object) -> None:  # the others are told to take as many
        raise RunError(f"{torch.get_num_threads()} threads")

    monkeypatch.setattr("gradshare.config.runs.local_workers", begin)
    torch.set_num_threads(4)
    try:
        with pytest.raises(RunError, match=f"^{expected} threads$"):
            train(RunConfig(**{**tiny, "workers": 2, "threads": threads}), tmp_path / "run")
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


def torchrun(*arguments: str) -> list[str]:
    return ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]


def train_in(folder: Path, settings: dict[str, Any]) -> list[str]:
    words = ["--out", str(folder), "--resume", "auto", *options(settings)]
    return ["-m", "gradshare", "train", *words]


def test_a_rank_that_is_killed_ends_every_rank_and_the_same_command_continues_the_run(
    whole: tuple[dict[str, Any], Run], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # torchrun gives the ranks their command again.
    with started(*torchrun("--max-restarts", "1", *train_in(folder, whole[0]))) as process:
        wait_for_epochs([folder], process)
        os.kill(rank_of(process.pid, 1), signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, err
    assert said[0].startswith(
        "error: another of the 2 processes of this run was lost, as rank 0 noticed: "
    )
    assert said[0].endswith(f" is saved in {folder}, continue it with --resume auto")
    assert SOURCES not in err  # torchrun prints a traceback of its own; the program prints none
    assert out.count("Run: ") == 1
    assert_same_end(folder, whole)


def test_a_rank_that_waits_for_another_ends_at_sigterm(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It waits in C++, where a handler of Python's would have to wait too.
    with socket.socket() as free:
        free.bind((HERE, 0))
        port = free.getsockname()[1]
    variables = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": HERE, "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))

    def listens() -> bool:
        with socket.socket() as other:
            return other.connect_ex((HERE, port)) == 0

    command = ["gradshare", "train", "--out", str(tmp_path / "run"), *options(tiny)]
    with started(*command) as process:
        wait_until(listens, "it does not wait for the other rank")
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (-signal.SIGTERM, "", "")


def test_torchrun_passes_a_request_to_stop_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = {**tiny, "epochs": LONG}
    with started(*torchrun(*train_in(folder, settings))) as process:
        wait_for_epochs([folder], process)
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert sum(line.startswith("stopped after iteration ") for line in err.splitlines()) == 1
    assert SOURCES not in err
    assert records_in(folder)


def test_ranks_save_and_stop_when_their_launcher_is_killed(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with started(*torchrun(*train_in(folder, {**tiny, "epochs": LONG}))) as process:
        wait_for_epochs([folder], process)
        ranks = [rank_of(process.pid, rank) for rank in (0, 1)]
        process.kill()
        process.communicate(timeout=PATIENCE)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), "orphans train on")
    assert records_in(folder)
    assert not is_locked(folder)
