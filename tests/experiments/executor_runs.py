"""What the tests of all executors have in common: small runs, and what they are compared with."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradshare.experiments.executors.job import Finished, Job
from gradshare.training.checkpoint import load_checkpoint
from gradshare.training.config import RunConfig
from gradshare.training.run import Progress, RunResult, train

PATIENCE = 120


def job(tiny: dict[str, Any], folder: Path, **settings: Any) -> Job:
    return Job(RunConfig(**{**tiny, **settings}), folder)


def ignore(name: str, what: Progress | Finished) -> None:
    pass


def processes(words: str) -> list[int]:
    """The processes with these words in their command lines."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if folder.name.isdecimal() and words in command:
            found.append(int(folder.name))
    return found


class Killer:
    """Watches runs, and kills the one process that trains when an epoch is done.

    Args:
        find: finds it.
        times: how often it is killed; each time waits for an epoch more.
    """

    def __init__(self, find: Callable[[], list[int]], times: int = 1) -> None:
        self.killed = 0
        self._find = find
        self._times = times
        self._next = 2

    def __call__(self, name: str, progress: Progress) -> None:
        if self.killed < self._times and progress.epoch >= self._next:
            (victim,) = self._find()
            os.kill(victim, signal.SIGKILL)
            end = time.monotonic() + PATIENCE
            while self._find() == [victim]:
                assert time.monotonic() < end
                time.sleep(0.05)
            self.killed += 1
            self._next = progress.epoch + 1


def assert_as_if_trained_here(finished: Finished, job: Job, elsewhere: Path) -> None:
    """A run is, times apart, bit for bit what one process makes of it."""
    expected = train(job.config, elsewhere)
    assert _timeless(finished.result) == _timeless(expected)
    name = f"checkpoints/latest-{job.config.iterations:09d}.safetensors"
    left, right = (load_checkpoint(f / name, torch.device("cpu")) for f in (job.folder, elsewhere))
    for part in ("learned", "state", "optimizer"):
        ours, theirs = getattr(left, part), getattr(right, part)
        assert ours.keys() == theirs.keys()
        for tensor, value in ours.items():
            assert torch.equal(value, theirs[tensor]), f"{part}/{tensor}"
    assert layout(job.folder) == layout(elsewhere)


def _timeless(result: RunResult) -> RunResult:
    history = [dataclasses.replace(record, seconds=0.0) for record in result.history]
    return dataclasses.replace(result, history=history, seconds=0.0)


def layout(folder: Path) -> set[str]:
    """The names of all files; of TensorBoard's, which have their times, that they are there."""
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {
        str(name.parent if name.parent.name == "tensorboard" else name)
        for name in names
        if name.name != ".lock"
    }


def timeless_results(path: Path) -> Any:
    """A results file without times, and without how it was asked for."""
    results = json.loads(path.read_text(encoding="utf-8"))
    del results["command"]
    for arm in results["arms"]:
        del arm["seconds"]
    return results


def options(settings: dict[str, Any]) -> list[str]:
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
