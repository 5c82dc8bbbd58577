"""Killing runs at random moments, and what two runs that are one must have in common."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

import gradshare as gs
from gradshare.training import files
from gradshare.training.checkpoint import Checkpoint, load_checkpoint
from gradshare.training.records import EpochRecord
from gradshare.training.run import Run
from tests.training.small import Arguments

RECORD = TypeAdapter(EpochRecord)

# Makes the arguments of a run. A function and not the arguments, since another process needs it.
Problem = Callable[..., Arguments]

# torch imports its compiler, which takes a second, when the first optimiser is made.
PRELOADED = ["gradshare.training.fit", "torch._dynamo", "tests.oracle", "tests.training.ranks"]


def kill_self(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fit_until_killed(problem: Problem, options: Arguments, folder: Path, seed: int) -> None:
    """Run until this process kills itself: with an even seed after a random time, with an odd one
    while it writes a file, before or after the file gets its final name.
    """
    torch.set_num_threads(1)
    given = problem(**options)
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
    gs.fit(**given, out=folder, resume="auto")


def in_a_process(function: Callable[..., None], *arguments: Any) -> int:
    """Call a function in a new process, and return its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def kill_often(
    problem: Problem, options: Arguments, folder: Path, most: int, first_seed: int = 0
) -> int:
    """Start a run and kill it, until it ends or was killed `most` times.

    Returns:
        How many times it was killed.
    """
    for turn in range(most):
        status = in_a_process(fit_until_killed, problem, options, folder, first_seed + turn)
        if status == 0:
            return turn
        assert status == -signal.SIGKILL
    return most


def records_in(folder: Path) -> list[EpochRecord]:
    """The records in a run's `metrics.jsonl`; the last line may be half written."""
    *lines, _ = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    return [RECORD.validate_python(json.loads(line)) for line in lines]


def timeless(run: Run) -> list[dict[str, Any]]:
    """A run's records without their times, in a form that == compares: NaN as None."""
    return [{**record.to_json(), "seconds": 0} for record in run.history]


def latest(folder: Path) -> Checkpoint:
    """The newest checkpoint of a run."""
    return load_checkpoint(sorted((folder / "checkpoints").glob("latest-*"))[-1])


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, the optimiser's too."""
    found: dict[str, Tensor] = {}

    def collect(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            found[path] = value
        elif isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                collect(item, f"{path}/{key}")

    for part in ("meta", "carried", "optimizer"):
        collect(getattr(checkpoint, part), part)
    return found


def require_same_tensors(one: Checkpoint, other: Checkpoint) -> None:
    """Bit for bit."""
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def require_same_end(one: Run, other: Run) -> None:
    """Metrics but for times, test values, every final tensor and what is kept on disk."""
    assert timeless(one) == timeless(other)
    assert (one.test, one.diverged) == (other.test, other.diverged)
    require_same_tensors(latest(one.path), latest(other.path))
    names = [sorted(p.name for p in (r.path / "checkpoints").iterdir()) for r in (one, other)]
    assert names[0] == names[1]
