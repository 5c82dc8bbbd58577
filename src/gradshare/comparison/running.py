"""The calls of a comparison: some at a time, repeated when lost, stopped when asked."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from gradshare.comparison.plan import RUNS, Plan, shown
from gradshare.comparison.worker import LIVE, TRIAL, Key, Outcome, Tried, train_run, try_arms
from gradshare.errors import GradshareError, RunError
from gradshare.executors import Call, LostWorkerError
from gradshare.training.interruption import RunStoppedError, StopRequests
from gradshare.training.lock import is_locked
from gradshare.training.options import Progress
from gradshare.training.progress import progress_of

log = logging.getLogger(__name__)

PLAN = ".plan-"
POLL_SECONDS = 0.2

WatchAll = Callable[[str, Progress | None], None]
"""Called with the name of a run and how far it is; None while it is queued."""


@dataclass(frozen=True)
class Runner:
    """Makes the calls of a comparison; see `compare`. `stop` notes Ctrl-C and SIGTERM."""

    folder: Path
    executor: Any
    at_a_time: int | None
    retries: int
    watch: WatchAll
    stop: StopRequests

    def try_arms(self, plan: Plan) -> tuple[Tried, list[Key]]:
        """What `try_arms` finds on a machine like those that train."""
        with self._offered(plan) as path:
            job = _Job("the trial of the arms", self.folder / TRIAL, self.executor, try_arms, path)
            ((kind, value),) = self._made([job], path).values()
        if kind != "done":
            raise RunError(f"{job.name} failed: {value}")
        return value  # type: ignore[no-any-return]

    def train(self, plan: Plan, keys: Sequence[Key]) -> None:
        """Train some runs, each from where its folder was saved last."""
        with self._offered(plan) as path:
            jobs = []
            for arm, seed in keys:
                name = arm if len(plan.seeds) == 1 else f"{arm} (seed {seed})"
                place = plan.place(self.folder, arm, seed)
                jobs.append(_Job(name, place, self.executor, train_run, path, arm, seed))
            outcomes = self._made(jobs, path)
        failures: dict[str, list[str]] = {}
        for name, (kind, why) in outcomes.items():
            if kind != "done":
                failures.setdefault(why, []).append(name)
        if failures:
            said = [f"{shown(', '.join(n), 200)} failed: {why}" for why, n in failures.items()]
            raise RunError(
                f"{'; '.join(said)}. The other runs are saved in {self.folder}; correct the cause "
                "and continue (resume='auto', --resume auto)"
            )

    @contextmanager
    def _offered(self, plan: Plan) -> Iterator[str]:
        """Let workers read a plan at the path that is returned, and remove it at the end.

        Each plan has a new name: workers of a program that was killed miss theirs, and stop.
        """
        path = str(self.folder.absolute() / f"{PLAN}{uuid4().hex}.pkl")
        self._withdraw(path)
        try:
            if isinstance(self.executor, ThreadPoolExecutor):  # its workers need no file
                LIVE[path] = plan
            else:
                plan.save(Path(path))
            yield path
        finally:
            self._withdraw(path)

    def _withdraw(self, path: str) -> None:
        """Remove a plan, those of programs that were killed, and how far runs are."""
        LIVE.pop(path, None)
        for pattern in (f"{PLAN}*", f".{TRIAL}.json*", f"{RUNS}/*/.seed-*"):
            for file in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    file.unlink()

    def _made(self, jobs: Sequence[_Job], path: str) -> dict[str, Outcome]:
        """Make some calls, and return what became of each by name."""
        waiting, running = list(jobs), list[_Job]()
        outcomes: dict[str, Outcome] = {}
        while waiting or running:
            if self.stop.signal is not None:
                self._stop(running, path)
                words = f"stopped; everything so far is saved in {self.folder}"
                raise RunStoppedError(words, self.stop.signal)
            for job in waiting[:]:
                if len(running) == self.at_a_time:
                    break
                try:
                    if not job.submitted():
                        continue
                    running.append(job)
                    self.watch(job.name, None)
                except GradshareError as error:
                    outcomes[job.name] = "failed", str(error)
                waiting.remove(job)
            for job in running[:]:
                done = job.done()
                job.look(self.watch)
                if done:
                    running.remove(job)
                    kind, value = outcomes[job.name] = job.outcome()
                    if kind == "stopped" and job.lost <= self.retries:
                        again = "%s: %s; it is started again (retry %d of %d)"
                        log.warning(again, job.name, value, job.lost, self.retries)
                        waiting.append(job)
            time.sleep(POLL_SECONDS)
        return outcomes

    def _stop(self, jobs: Sequence[_Job], path: str) -> None:
        """Wait until the runs that are trained have saved what they have, and cancel the others.

        This is seen from the locks of their folders, since a scheduler may not answer.
        """
        self._withdraw(path)
        trained = [job for job in jobs if job.trained()]
        loading = [job for job in jobs if job not in trained and not job.cancel()]
        while any(map(_Job.trained, trained)) or not all(map(_Job.done, loading)):
            time.sleep(POLL_SECONDS)


class _Job(Call):
    """A call for the run in a folder, which is repeated when its worker is lost; see `Call`."""

    def __init__(
        self, name: str, place: Path, executor: Any, function: Callable[..., Outcome], *args: Any
    ) -> None:
        super().__init__(name, executor, function, *args)
        self.place = place
        self._told: Progress | None = None
        self.lost = 0  # in a row, without completing an epoch
        self._epoch = 0

    def trained(self) -> bool:
        """Whether a process trains its run, whatever the executor says."""
        return is_locked(self.place)

    def look(self, watch: WatchAll) -> None:
        """Read how far it is, and tell it if that is new."""
        progress = progress_of(self.place)
        if progress is None or progress == self._told:
            return
        if progress.epoch > self._epoch:
            self._epoch, self.lost = progress.epoch, 0
        self._told = progress
        watch(self.name, progress)

    def outcome(self) -> Outcome:
        """What became of it; one that was stopped was not stopped by this program."""
        try:
            kind, value = self.result()
        except LostWorkerError as error:
            kind, value = "stopped", str(error)
        if kind == "stopped":
            value = f"its worker was lost: {value}"
            self.lost += 1
        return kind, value
