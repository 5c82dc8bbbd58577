"""Killing runs at random moments, for the test of a minute and the soak test of many."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gradshare.config import RunConfig
from gradshare.training import files, run
from gradshare.training.checkpoint import load_checkpoint
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.run import RunResult, train

CPU = torch.device("cpu")
REFUSED = 7  # of so many iterations, one


def kill_self(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def some_refused(config: RunConfig) -> Iterator[None]:
    """In a run that skips what is refused, give every seventh iteration an infinite image."""

    def poisoned(*arguments: Any, **options: Any) -> Any:
        if options["iteration"] % REFUSED == REFUSED - 1:
            arguments[4].query_x[0, 0] = float("inf")
        return outer_iteration(*arguments, **options)

    if config.on_divergence == "skip":
        run.outer_iteration = poisoned  # type: ignore[attr-defined]
    try:
        yield
    finally:
        run.outer_iteration = outer_iteration  # type: ignore[attr-defined]


def train_until_killed(config: RunConfig, folder: Path, seed: int) -> None:
    """The body of a process that kills itself: in even turns after a random time, in odd ones in
    the middle of writing a file, before or after it takes its final name."""
    torch.set_num_threads(1)
    choice = random.Random(seed)
    if seed % 2:
        writes = choice.randrange(12)
        fsync = os.fsync

        def fatal_fsync(descriptor: int) -> None:
            nonlocal writes
            writes -= 1
            if writes < 0:
                with contextlib.suppress(OSError):  # it may be a folder's
                    os.ftruncate(descriptor, choice.randrange(200))
                kill_self()
            fsync(descriptor)

        files.os.fsync = fatal_fsync  # type: ignore[attr-defined]
    else:
        threading.Timer(choice.uniform(0.05, 0.7), kill_self).start()
    with some_refused(config):
        train(config, folder, resume=True)


def kill_often(config: RunConfig, folder: Path, most: int, first_seed: int = 0) -> int:
    """Start a run and kill it, again and again, until it ends or was killed `most` times.

    Returns:
        How many times it was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gradshare.training.run", __name__])
    for turn in range(most):
        process = context.Process(
            target=train_until_killed, args=(config, folder, first_seed + turn)
        )
        process.start()
        process.join()
        if process.exitcode == 0:
            return turn
        assert process.exitcode == -signal.SIGKILL
    return most


def timeless(result: RunResult) -> list[dict[str, Any]]:
    """A run's records without their times, in a form that == compares: NaN as None."""
    records = [{**record.to_json(), "seconds": 0} for record in result.history]
    return [files.null_where_not_finite(record) for record in records]


def final(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    path = sorted((folder / "checkpoints").glob("latest-*"))[-1]
    saved = load_checkpoint(path, CPU)
    return {"learned": saved.learned, "state": saved.state, "optimizer": saved.optimizer}


def require_same_end(
    one: RunResult, one_folder: Path, other: RunResult, other_folder: Path
) -> None:
    """Metrics but for times, test accuracies, every final tensor and what is kept on disk."""
    assert timeless(one) == timeless(other)
    assert (one.test, one.diverged) == (other.test, other.diverged)
    ends = [final(folder) for folder in (one_folder, other_folder)]
    for part, tensors in ends[0].items():
        assert tensors.keys() == ends[1][part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, ends[1][part][name]), name
    names = [
        sorted(path.name for path in (folder / "checkpoints").iterdir())
        for folder in (one_folder, other_folder)
    ]
    assert names[0] == names[1]
