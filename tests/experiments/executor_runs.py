"""What the tests of all executors have in common: small runs, and what they are compared with."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradshare.config import from_settings, train
from gradshare.experiments.arms import Finished, finished
from gradshare.experiments.executors.job import Job, Outcome, run_job
from gradshare.experiments.results import Arm
from gradshare.training.checkpoint import load_checkpoint
from gradshare.training.options import Progress, Watch

PATIENCE = 120


def job(tiny: dict[str, Any], folder: Path, **settings: Any) -> Job:
    return Job(from_settings({**tiny, **settings}), folder)


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


def mortal(job: Job, threads: int, watch: Watch) -> Outcome:
    """In the place of `run_job`: a first attempt kills its process in the third epoch."""
    first = not list(job.folder.glob("checkpoints/latest-*"))

    def fatal(progress: Progress) -> None:
        watch(progress)
        if first and progress.epoch == 3 and progress.done % job.config.iterations_per_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_job(job, threads, fatal)


def assert_as_if_trained_here(run: Finished, job: Job, elsewhere: Path) -> None:
    """A run is, times apart, bit for bit what one process makes of it."""
    expected = finished(train(job.config, elsewhere), job.config)
    assert (run.config, run.environment) == (expected.config, expected.environment)
    assert _timeless(run.arm) == _timeless(expected.arm)
    name = f"checkpoints/latest-{job.config.iterations:09d}.safetensors"
    left, right = (load_checkpoint(folder / name) for folder in (job.folder, elsewhere))
    for part in ("meta", "carried"):
        ours, theirs = getattr(left, part), getattr(right, part)
        assert ours.keys() == theirs.keys()
        for tensor, value in ours.items():
            assert torch.equal(value, theirs[tensor]), f"{part}/{tensor}"
    torch.testing.assert_close(left.optimizer, right.optimizer, rtol=0, atol=0)
    assert layout(job.folder) == layout(elsewhere)


def _timeless(arm: Arm) -> Arm:
    validation = tuple(point.model_copy(update={"seconds": None}) for point in arm.validation)
    return arm.model_copy(update={"validation": validation, "seconds": 0.0})


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
        for point in arm["validation"]:
            del point["seconds"]
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
