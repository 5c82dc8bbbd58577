"""Running the runs of a comparison on an executor: some at a time, retried when lost, stopped when
asked.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from gradshare.comparison.plan import RUNS, Plan
from gradshare.comparison.worker import LIVE, Outcome, progress_file, progress_of, train_run
from gradshare.errors import GradshareError, RunError
from gradshare.executors import Call, LostWorkerError
from gradshare.training.files import make_folder, write_atomically
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError, StopRequests
from gradshare.training.options import Progress

log = logging.getLogger(__name__)

PLAN = ".plan-"
"""How the name of a plan's file begins. Each has a name of its own: a worker of a program that was
killed does not find its plan again when another program goes on.
"""

POLL_SECONDS = 0.2
MOST_NAMED = 3
AGAIN = "again"

Key = tuple[str, int]
"""An arm and a seed."""

WatchAll = Callable[[str, Progress | None], None]
"""Called with the name of a run and where it is; None while it is queued."""


@contextmanager
def offered(plan: Plan, folder: Path, *, threads: bool) -> Iterator[str]:
    """Let workers read a plan, and remove it at the end, which stops them.

    Args:
        plan: the plan.
        folder: of the comparison.
        threads: whether the workers are threads of this process, which read no file.

    Returns:
        The plan's path, for `train_run`.

    Raises:
        ConfigError, RunError: it cannot be saved.
    """
    clear(folder)
    path = folder.absolute() / f"{PLAN}{uuid4().hex}.pkl"
    try:
        if threads:
            LIVE[str(path)] = plan
        else:
            plan.save(path)
        yield str(path)
    finally:
        withdraw(str(path))
        clear(folder)


def withdraw(path: str) -> None:
    """Remove a plan, so that its runs save what they have and stop."""
    LIVE.pop(path, None)
    with contextlib.suppress(OSError):
        Path(path).unlink()


def clear(folder: Path) -> None:
    """Remove what a comparison leaves that was killed."""
    for pattern in (f"{PLAN}*", f"{RUNS}/*/.seed-*"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


@dataclass(eq=False)
class _Run:
    """A run that is not done.

    Attributes:
        place: its folder.
        call: on the executor.
        told: where it is; None before it began.
        epoch: the epoch in which it was lost last.
        lost: how often in a row it was lost without completing an epoch.
    """

    place: Path
    call: Call
    told: Progress | None = None
    epoch: int = 0
    lost: int = 0

    def look(self, watch: WatchAll) -> None:
        """Read where the run is, and tell it if it is new."""
        progress = progress_of(self.place)
        if progress is not None and progress != self.told:
            self.told = progress
            watch(self.call.name, progress)

    def goes_on(self, retries: int, why: object) -> bool:
        """Count that the run was lost, and return whether it is submitted again."""
        epoch = 0 if self.told is None else self.told.epoch
        self.lost = 1 if epoch > self.epoch else self.lost + 1
        self.epoch = max(self.epoch, epoch)
        if self.lost <= retries:
            log.warning(
                "the worker of %s was lost (%s); the run goes on from its last checkpoint "
                "(retry %d of %d)",
                *(self.call.name, why, self.lost, retries),
            )
        return self.lost <= retries


def run_all(
    executor: Any,
    plan: Plan,
    path: str,
    keys: Sequence[Key],
    *,
    at_a_time: int,
    retries: int,
    watch: WatchAll,
    stop: StopRequests,
) -> None:
    """Train some runs, each from where its folder was saved last.

    Args:
        executor: has `submit(function, *args)` that returns a future.
        plan: of the comparison.
        path: of the plan, which workers can read.
        keys: the runs.
        at_a_time: how many are submitted at a time.
        retries: how often in a row a run that is lost is submitted again, while it does not
            complete an epoch.
        watch: told where each run is.
        stop: notes Ctrl-C and SIGTERM.

    Raises:
        RunError: some runs failed; the others have ended, and are saved.
        RunStoppedError: a request to stop came; each run has saved what it had.
    """
    folder = Path(path).parent
    waiting = [
        _Run(plan.place(folder, *key), Call(_name(plan, key), executor, train_run, path, *key))
        for key in keys
    ]
    running: list[_Run] = []
    failures: dict[str, list[str]] = {}
    while waiting or running:
        if stop.signal is not None:
            withdraw(path)
            _await_end(running)
            raise RunStoppedError(f"stopped; everything so far is saved in {folder}", stop.signal)
        for run in waiting[:]:
            if len(running) == at_a_time:
                break
            progress_file(run.place).unlink(missing_ok=True)
            try:
                if run.call.submitted():
                    waiting.remove(run)
                    running.append(run)
                    run.told = None
                    watch(run.call.name, None)
            except GradshareError as error:
                waiting.remove(run)
                failures.setdefault(str(error), []).append(run.call.name)
        for run in running[:]:
            run.look(watch)
            if run.call.done():
                running.remove(run)
                why = _failure(run, retries)
                if why == AGAIN:
                    waiting.append(run)
                elif why is not None:
                    failures.setdefault(why, []).append(run.call.name)
        time.sleep(POLL_SECONDS)
    if failures:
        told = "; ".join(f"{_some(names)} failed: {why}" for why, names in failures.items())
        raise RunError(
            f"{told}. The other runs are saved in {folder}; correct the cause and continue "
            "(resume='auto', --resume auto)"
        )


def _failure(run: _Run, retries: int) -> str | None:
    """Why a run that has ended is not done; None if it is, `AGAIN` if it is submitted again."""
    try:
        outcome: Outcome = run.call.result()
    except LostWorkerError as error:
        outcome = Outcome("stopped", str(error))
    match outcome.kind:
        case "done":
            return None
        case "refused":
            return outcome.message
        case "failed":
            return f"{outcome.message}{_traced(run, outcome.trace)}"
        case "stopped":
            if run.goes_on(retries, outcome.message):
                return AGAIN
            times = f" {run.lost} times without completing an epoch" if retries else ""
            return f"its worker was lost{times}: {outcome.message}"


def _await_end(runs: Sequence[_Run]) -> None:
    """Cancel the runs that have not begun, and wait until the others have saved what they have.

    This is seen from their folders, since a scheduler may not answer.
    """
    begun = [run for run in runs if progress_of(run.place) is not None]
    for run in runs:
        if run not in begun:
            run.call.cancel()
    while any(RunFolder(run.place).in_use for run in begun):
        time.sleep(POLL_SECONDS)


def _traced(run: _Run, trace: str) -> str:
    """Write the trace of a defect beside its run's folder, and say where; or the trace itself."""
    path = run.place.with_name(f"{run.place.name}.error.txt")
    try:
        make_folder(path.parent)
        write_atomically(path, trace.encode())
    except RunError:  # a full disk, perhaps
        return f"\n{trace}"
    return f" (see {path})"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _name(plan: Plan, key: Key) -> str:
    arm, seed = key
    return arm if len(plan.seeds) == 1 else f"{arm} (seed {seed})"
