"""Running the runs of a comparison on an executor: some at a time, retried when lost, stopped when
asked.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from gradshare.comparison.plan import RUNS, Plan
from gradshare.comparison.worker import LIVE, Outcome, progress_file, progress_of, train_run
from gradshare.errors import GradshareError, RunError
from gradshare.executors import Call, LostWorkerError
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError, StopRequests
from gradshare.training.options import Progress

log = logging.getLogger(__name__)

PLAN = ".plan-"
POLL_SECONDS = 0.2
MOST_NAMED = 3

Key = tuple[str, int]
"""An arm and a seed."""

WatchAll = Callable[[str, Progress | None], None]
"""Called with the name of a run and how far it is; None while it is queued."""


@contextmanager
def offered(plan: Plan, folder: Path, *, threads: bool) -> Iterator[str]:
    """Let workers read a plan at the path that is returned, and remove it at the end.

    Each plan has a name of its own: workers of a program that was killed miss theirs, and stop.

    Args:
        plan: the plan.
        folder: of the comparison.
        threads: whether the workers are threads of this process, which need no file.

    Raises:
        ConfigError, RunError: it cannot be saved.
    """
    path = folder.absolute() / f"{PLAN}{uuid4().hex}.pkl"
    _withdraw(str(path))
    try:
        if threads:
            LIVE[str(path)] = plan
        else:
            plan.save(path)
        yield str(path)
    finally:
        _withdraw(str(path))


def _withdraw(path: str) -> None:
    """Remove a plan, those of programs that were killed, and how far runs are."""
    LIVE.pop(path, None)
    for pattern in (f"{PLAN}*", f"{RUNS}/*/.seed-*"):
        for file in Path(path).parent.glob(pattern):
            with contextlib.suppress(OSError):
                file.unlink()


class _Run(Call):
    """The call that trains a run."""

    def __init__(self, plan: Plan, path: str, key: Key, executor: Any) -> None:
        arm, seed = key
        name = arm if len(plan.seeds) == 1 else f"{arm} (seed {seed})"
        super().__init__(name, executor, train_run, path, arm, seed)
        self.place = plan.place(Path(path).parent, arm, seed)
        self.told: Progress | None = None
        self._lost = 0  # in a row, without completing an epoch
        self._epoch = 0

    def submitted(self) -> bool:
        self.told = None
        with contextlib.suppress(OSError):  # most have none
            progress_file(self.place).unlink()
        return super().submitted()

    @property
    def trained(self) -> bool:
        """Whether a process trains it, whatever the executor says."""
        return RunFolder(self.place).in_use

    def look(self, watch: WatchAll) -> None:
        """Read how far it is, and tell it if that is new."""
        progress = progress_of(self.place)
        if progress is not None and progress != self.told:
            self.told = progress
            watch(self.name, progress)

    def outcome(self) -> Outcome:
        """What became of it; one that was stopped was not stopped by this program."""
        try:
            kind, why = self.result()
        except LostWorkerError as error:
            kind, why = "stopped", str(error)
        return kind, f"its worker was lost: {why}" if kind == "stopped" else why

    def goes_on(self, retries: int, why: str) -> bool:
        """Count that it was lost, and return whether it is submitted again."""
        epoch = 0 if self.told is None else self.told.epoch
        self._lost = 1 if epoch > self._epoch else self._lost + 1
        self._epoch = max(self._epoch, epoch)
        if self._lost > retries:
            return False
        log.warning(
            "%s: %s; it goes on from its last checkpoint (retry %d of %d)",
            *(self.name, why, self._lost, retries),
        )
        return True


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
        executor, at_a_time, retries, watch: see `compare`.
        plan: of the comparison.
        path: of the plan, which workers can read.
        keys: the runs.
        stop: notes Ctrl-C and SIGTERM.

    Raises:
        RunError: some runs failed; the others have ended, and are saved.
        RunStoppedError: a request to stop came; each run has saved what it had.
    """
    waiting = [_Run(plan, path, key, executor) for key in keys]
    running: list[_Run] = []
    failures: dict[str, list[str]] = {}
    while waiting or running:
        if stop.signal is not None:
            _stop(path, running)
            raise RunStoppedError(
                f"stopped; everything so far is saved in {Path(path).parent}", stop.signal
            )
        for run in waiting[:]:
            if len(running) == at_a_time:
                break
            try:
                if not run.submitted():
                    continue
                running.append(run)
                watch(run.name, None)
            except GradshareError as error:
                failures.setdefault(str(error), []).append(run.name)
            waiting.remove(run)
        for run in running[:]:
            done = run.done()
            run.look(watch)
            if done:
                running.remove(run)
                kind, why = run.outcome()
                if kind == "stopped" and run.goes_on(retries, why):
                    waiting.append(run)
                elif kind != "done":
                    failures.setdefault(why, []).append(run.name)
        time.sleep(POLL_SECONDS)
    if failures:
        raise RunError(
            f"{'; '.join(f'{_some(names)} failed: {why}' for why, names in failures.items())}. The "
            f"other runs are saved in {Path(path).parent}; correct the cause and continue "
            "(resume='auto', --resume auto)"
        )


def _stop(path: str, runs: Sequence[_Run]) -> None:
    """Wait until the runs that are trained have saved what they have, and cancel the others.

    This is seen from the locks of their folders, since a scheduler may not answer.
    """
    _withdraw(path)
    trained = [run for run in runs if run.trained]
    loading = [run for run in runs if run not in trained and not run.cancel()]
    while any(run.trained for run in trained) or not all(run.done() for run in loading):
        time.sleep(POLL_SECONDS)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
