"""What an executor's worker does of a comparison: try its arms, and train a run."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import torch

from gradshare.comparison.checks import Key, Tried, tried, unfinished
from gradshare.comparison.plan import Plan
from gradshare.errors import GradshareError, RunError
from gradshare.training.distributed import OneProcess
from gradshare.training.fit import fit_in
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.launch import threads
from gradshare.training.machine import keep_freed_memory
from gradshare.training.options import Progress
from gradshare.training.progress import ProgressFile

ERRORS = "errors.txt"
TRIAL = "arms"  # the trial writes its progress to ".arms.json"
POLL_SECONDS = 0.5
# A worker whose program was killed saves and ends, and may need this long.
LEAVE_SECONDS = 60

LIVE: dict[str, Plan] = {}
"""Plans of comparisons whose workers are threads of this process, by path."""

Outcome = tuple[Literal["done", "stopped", "failed"], Any]
"""What became of a call, and its result or the reason: errors do not travel well."""


def outcome_of(call: Callable[..., Any]) -> Callable[..., Outcome]:
    """Let a function return its outcome. Its first argument is the path of the plan."""

    @functools.wraps(call)
    def called(path: str, *args: Any) -> Outcome:
        try:
            return "done", call(path, *args)
        except RunStoppedError as error:
            return "stopped", str(error)
        except GradshareError as error:
            return "failed", str(error)
        except Exception as error:
            errors = Path(path).with_name(ERRORS)
            with contextlib.suppress(OSError), errors.open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            return "failed", f"{type(error).__name__}: {error} (see {errors})"

    return called


@outcome_of
def try_arms(path: str) -> tuple[Tried, list[Key]]:
    """Try the arms of a comparison on this machine, and find the runs that are not finished."""
    plan, folder = _plan(path), Path(path).parent
    tell, count = ProgressFile(folder / TRIAL), len(plan.arms)
    tell(Progress("try", 0, count, epoch=0, score=None))
    found = tried(plan)
    tell(Progress("try", count, count, epoch=0, score=None))
    return found, unfinished(plan, folder)


@outcome_of
def train_run(path: str, arm: str, seed: int) -> None:
    """Train a run of a comparison from where its folder was saved last, and test it. It stops when
    the plan is removed.
    """
    plan, processes = _plan(path), _Worker(path)
    place = plan.place(Path(path).parent, arm, seed)
    settings = plan.settings.get(arm)
    _await_the_last(place, processes)
    with threads(plan.threads or torch.get_num_threads()), _without_notes_on_models():
        fit_in(
            processes,
            plan.learner(arm, seed),
            plan.sources,
            plan.options_of(arm, seed),
            place,
            resume=True,
            watch=ProgressFile(place),
            settings=settings and {**settings, "seed": seed},
        )


@contextlib.contextmanager
def _without_notes_on_models() -> Iterator[None]:
    """Don't log again what was logged when the arms were tried."""
    logger = logging.getLogger("gradshare.methods.network")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _plan(path: str) -> Plan:
    if path in LIVE:
        return LIVE[path]
    keep_freed_memory()
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RunError(
            f"the machine {socket.gethostname()} cannot read {path} ({error.strerror}); compare in "
            "a folder that all machines share"
        ) from error
    plan: Plan = cloudpickle.loads(data)
    return plan


def _await_the_last(place: Path, processes: OneProcess) -> None:
    """Wait for a worker of a program that was killed, which stops when its plan is removed."""
    end = time.monotonic() + LEAVE_SECONDS
    while RunFolder(place).in_use and time.monotonic() < end and processes.asked is None:
        time.sleep(POLL_SECONDS)
    if processes.asked is not None:
        raise RunStoppedError("stopped before it began", processes.asked)


class _Worker(OneProcess):
    """The one process of a run, which is also asked to stop by the removal of the plan."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._looked = 0.0

    @property
    def asked(self) -> int | None:
        if self.stop.signal is None and time.monotonic() - self._looked > POLL_SECONDS:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError):  # a disk that does not answer now may answer later
                if self._path not in LIVE and not Path(self._path).exists():
                    self.stop.signal = signal.SIGTERM
        return self.stop.signal


def _again(*args: Any) -> Any:
    from submitit.helpers import DelayedSubmission  # noqa: PLC0415

    return DelayedSubmission(train_run, *args)


# Where submitit looks for what it queues again when the time of a job is up.
train_run.checkpoint = _again  # type: ignore[attr-defined]
