"""Running named jobs on an executor: so many at a time, retried when lost, stopped when asked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from gradshare.errors import GradshareError, RunError
from gradshare.experiments.arms import Finished
from gradshare.experiments.executors.job import Job, LostError, Outcome, UnexpectedError
from gradshare.experiments.wording import counted
from gradshare.training.files import make_folder, write_atomically
from gradshare.training.interruption import RunStoppedError, StopRequests
from gradshare.training.options import Progress

log = logging.getLogger(__name__)

WatchAll = Callable[[str, Progress], None]
"""Told the name of a run and where it is."""

Record = Callable[[str, Finished], None]
"""Given the name of a run and what it came to."""

RecordFailure = Callable[[str, GradshareError], None]
"""Given the name of a run that failed and why."""

Event = tuple[str, Progress | Outcome]
"""News of a run by its name: where it is, or at last what became of it."""

ERROR = "error.txt"
MOST_NAMED = 3


class Executor(Protocol):
    """Somewhere to train runs. It is entered before the first is started, and left at the end.

    Attributes:
        at_a_time: how many runs it is given at a time.
        retries: how often in a row a run that was lost is started again, while it does not
            complete an epoch.
        here: whether runs are trained on this machine, with the devices that are seen here.
    """

    at_a_time: int
    retries: int
    here: bool

    def __enter__(self) -> Self:
        """Make ready.

        Raises:
            GradshareError: it cannot be reached.
        """
        ...

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""
        ...

    def describe(self) -> str:
        """How and where the runs go, as the end of a sentence that says how many."""
        ...

    def start(self, jobs: Mapping[str, Job]) -> None:
        """Begin to train runs, each from where its folder was saved last.

        Raises:
            GradshareError: they were refused.
        """
        ...

    def news(self) -> Iterable[Event]:
        """What has happened, at once or after a short while.

        The last news of a run is what became of it: a `LostError` if nobody knows.
        """
        ...

    def stop(self, names: Collection[str]) -> None:
        """Ask runs to save what they have and end."""
        ...


def run_all(
    jobs: Mapping[str, Job],
    executor: Executor,
    watch: WatchAll,
    record: Record,
    *,
    failed: RecordFailure | None = None,
) -> dict[str, Finished]:
    """Train every run, from where its folder was saved last; the result by the run's name.

    Args:
        jobs: the runs by name.
        executor: where.
        watch: told where each is.
        record: given each result as soon as it is there, so that what comes after cannot lose it.
        failed: given what a run raised, after which the others go on; None: they do not.

    Raises:
        GradshareError: what the first run to fail raised, unless `failed` was given it; the others
            are stopped and keep what they have saved.
        RunStoppedError: Ctrl-C or SIGTERM; every run has saved what it had.
    """
    with StopRequests() as stop, executor:
        runs = _Runs(jobs, executor, stop, watch, record, failed)
        while runs.unfinished:
            runs.start_or_stop()
            for name, news in executor.news():
                runs.hear(name, news)
        # Within, so that the executor learns how it ends.
        if runs.failure is not None:
            raise runs.failure
        if stop.signal is not None and runs.cut_short:
            folders = _where([job.folder for job in jobs.values()])
            raise RunStoppedError(f"stopped; everything so far is saved in {folders}", stop.signal)
    return runs.finished


class _Runs:
    """The state of `run_all`.

    Attributes:
        finished: the runs that are done.
        failure: why the others are not to go on; None if they are.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        executor: Executor,
        stop: StopRequests,
        watch: WatchAll,
        record: Record,
        failed: RecordFailure | None,
    ) -> None:
        self.finished: dict[str, Finished] = {}
        self.failure: GradshareError | None = None
        self._jobs = jobs
        self._executor = executor
        self._stop = stop
        self._watch = watch
        self._record = record
        self._failed = failed
        self._failures = 0
        self._waiting = list(jobs)
        self._running: set[str] = set()
        self._stopping: set[str] = set()
        self._attempts = _Attempts(executor.retries)

    @property
    def unfinished(self) -> bool:
        """Whether there is anything left to start, or to wait for."""
        return bool(self._waiting or self._running)

    @property
    def cut_short(self) -> bool:
        """Whether there are runs that nothing has become of."""
        return len(self.finished) + self._failures < len(self._jobs)

    @property
    def _ending(self) -> bool:
        return self._stop.signal is not None or self.failure is not None

    def start_or_stop(self) -> None:
        """Start what there is room for; ask every run to end if they are not to go on."""
        if self._ending:
            self._waiting.clear()
            if asked := self._running - self._stopping:
                self._executor.stop(asked)
                self._stopping |= asked
        elif names := self._waiting[: self._executor.at_a_time - len(self._running)]:
            self._waiting = [name for name in self._waiting if name not in names]
            self._executor.start({name: self._jobs[name] for name in names})
            self._running.update(names)

    def hear(self, name: str, news: Progress | Outcome) -> None:
        """Act on news of a run."""
        if isinstance(news, Progress):
            self._attempts.note(name, news)
            self._watch(name, news)
            return
        self._running.discard(name)
        if isinstance(news, Finished):
            try:
                self._record(name, news)
            except GradshareError as error:  # a full disk, perhaps: the others can still be saved
                self._fail(name, error)
            else:
                self.finished[name] = news
        elif not isinstance(news, RunStoppedError | LostError):
            self._fail(name, _described(name, self._jobs[name], news))
        elif not self._ending:  # somebody else than us ended it
            if self._attempts.another(name, news):
                self._waiting.append(name)
            else:
                self._fail(name, self._attempts.given_up(name, news))

    def _fail(self, name: str, error: GradshareError) -> None:
        if self._failed is not None:
            self._failures += 1
            self._failed(name, error)
        else:
            self.failure = self.failure or error


class _Attempts:
    """Counts how often in a row each run was lost without completing an epoch in between."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._lost: dict[str, int] = {}
        self._epoch: dict[str, int] = {}
        self._epoch_when_lost: dict[str, int] = {}

    def note(self, name: str, progress: Progress) -> None:
        self._epoch[name] = progress.epoch
        if progress.epoch > self._epoch_when_lost.get(name, progress.epoch):
            del self._epoch_when_lost[name]
            self._lost[name] = 0

    def another(self, name: str, error: GradshareError) -> bool:
        """Whether a run that was just lost is to be started again."""
        lost = self._lost.get(name, 0)
        if lost == self._retries:
            return False
        self._lost[name] = lost + 1
        if name in self._epoch:
            self._epoch_when_lost[name] = self._epoch[name]
        log.warning(
            "%s; it goes on from its last checkpoint (retry %d of %d)",
            error,
            lost + 1,
            self._retries,
        )
        return True

    def given_up(self, name: str, error: GradshareError) -> GradshareError:
        lost = self._lost.get(name, 0)
        if not lost:
            return error
        return RunError(
            f"{error}; it was retried {counted(lost, 'time')} without completing another "
            "epoch, and is saved to be continued with --resume auto"
        )


def _where(folders: Sequence[Path]) -> str:
    """Folders in a message, which names a few and of many the one above them."""
    if len(folders) <= MOST_NAMED:
        return ", ".join(map(str, folders))
    return os.path.commonpath(folders)


def _described(name: str, job: Job, error: GradshareError) -> GradshareError:
    """What to show for a run's error; the trace of a defect goes into its folder."""
    if not isinstance(error, UnexpectedError):
        return error
    told = f"run {name!r} failed: {error}; please report this with"
    try:
        make_folder(job.folder)
        write_atomically(job.folder / ERROR, error.trace.encode())
    except RunError as unwritable:  # a full disk, perhaps: the others can still go on
        return RunError(
            f"{told} its trace, for which there is no place ({unwritable}):\n{error.trace}"
        )
    return RunError(f"{told} {job.folder / ERROR}")
