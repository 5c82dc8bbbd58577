"""Runs under `torchrun` on several machines, whose ranks are killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

import gradshare as gs
from gradshare.training.distributed import OneProcess
from gradshare.training.launch import group_name
from tests.training.killing import latest, require_same_tensors, timeless
from tests.training.ranks import ranks
from tests.training.small import fit_on, rows

PATIENCE = 200.0
KILLS = 2
EPOCHS = 6


def test_processes_that_are_started_again_agree_on_a_new_group_each_time() -> None:
    store = HashStore()
    # Left by processes that were killed before they met.
    for rank in range(2):
        store.set(f"gradshare/token/{rank}", "killed")
    found: list[str] = []
    for first in range(3):  # comes before the others

        def join(rank: int, first: int = first) -> str:
            time.sleep(0 if rank == first else 0.2)
            return group_name(store, rank, 3)

        with ThreadPoolExecutor(3) as pool:
            names = set(pool.map(join, range(3)))
        assert len(names) == 1
        found += names
    assert len(set(found)) == 3


@contextmanager
def machine(port: int, script: Path, number: int) -> Iterator[subprocess.Popen[str]]:
    """A launcher with one rank, as on one of two machines."""
    with script.with_name(f"said-{number}").open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--nproc-per-node", "1", "--max-restarts", str(KILLS), "--rdzv-backend", "c10d"),
                *("--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "one", str(script)),
            ],
            stdout=said,
            stderr=said,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_an_epoch(run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until one more epoch is completed."""
    end = time.monotonic() + PATIENCE
    epochs = epochs_of(run)
    while epochs_of(run) == epochs:
        assert process.poll() is None
        assert time.monotonic() < end, "the ranks wait for each other"
        time.sleep(0.05)


@pytest.mark.long
def test_a_rank_of_the_second_machine_is_killed_again_and_again_and_no_rank_waits_for_ever(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, time
            from pathlib import Path
            import gradshare as gs
            from tests.training.small import rows

            def slow(event):
                time.sleep(0.1)

            Path({str(tmp_path)!r}, f"rank-{{os.environ['RANK']}}-{{os.getpid()}}").touch()
            given = rows(task_batch=3, epochs={EPOCHS}, callbacks=[slow])
            gs.fit(**given, out={str(tmp_path / "run")!r}, resume="auto")
            """
        ),
        encoding="utf-8",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen = set[Path]()
    with machine(port, script, 0) as first, machine(port, script, 1) as second:
        for _ in range(KILLS):
            wait_for_an_epoch(tmp_path / "run", first)
            (killed,) = {*tmp_path.glob("rank-1-*")} - seen
            seen.add(killed)
            os.kill(int(killed.name.rpartition("-")[2]), signal.SIGKILL)
        assert [process.wait(PATIENCE) for process in (first, second)] == [0, 0]
    with ranks(2, tmp_path) as two:
        whole, _ = two(undisturbed, tmp_path / "whole")
    run = gs.fit(**rows(task_batch=3, epochs=EPOCHS), out=tmp_path / "run", resume="auto")
    assert timeless(run) == timeless(whole)
    assert run.test == whole.test
    require_same_tensors(latest(run.path), latest(whole.path))


def epochs_of(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text(encoding="utf-8").count("\n") if metrics.exists() else 0


def undisturbed(group: OneProcess, folder: Path) -> gs.Run:
    return fit_on(group, rows(task_batch=3, epochs=EPOCHS), folder)
