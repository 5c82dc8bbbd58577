"""Training runs on this machine, one process each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

import torch

from gradshare.experiments.executors.job import Job, LostError, run_job
from gradshare.experiments.executors.loop import Event
from gradshare.experiments.wording import counted
from gradshare.training.device import choose_device
from gradshare.training.interruption import STATUS_MEANS
from gradshare.training.machine import cores
from gradshare.training.options import Progress

POLL_SECONDS = 0.2


def default_jobs(config: Any) -> int:
    """How many runs go at a time at most: one on an accelerator, else one more than there are
    cores, so that a last odd run does not leave a core idle; fewer if each has several processes.
    """
    if choose_device(config.device).type != "cpu":
        return 1
    if config.workers > 1:
        return max(1, cores() // int(config.workers))
    return cores() + 1


def default_threads(config: Any, jobs: int) -> int:
    """CPU threads of each process when `jobs` run at a time."""
    if not config.threads and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()  # which is what the variable says
    return int(config.threads or max(1, cores() // jobs))


@dataclass(frozen=True)
class _Process:
    process: BaseProcess
    # One pipe each: a process that is killed while it writes cannot block the others.
    messages: Connection


class LocalExecutor:
    """Runs on this machine; see `Executor`.

    Args:
        at_a_time: how many go side by side.
        threads: of each.
        retries: see `Executor`.
    """

    here = True

    def __init__(self, at_a_time: int, threads: int, retries: int = 0) -> None:
        self.at_a_time = at_a_time
        self.retries = retries
        self._threads = threads
        self._running: dict[str, _Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._running.values():
            running.process.kill()

    def describe(self) -> str:
        """See `Executor`."""
        return f"{self.at_a_time} at a time with {counted(self._threads, 'thread')} each"

    def start(self, jobs: Mapping[str, Job]) -> None:
        """See `Executor`."""
        context = multiprocessing.get_context("spawn")
        for name, job in jobs.items():
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(job, self._threads, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the pipe ends with the process
            self._running[name] = _Process(process, ours)

    def news(self) -> Iterator[Event]:
        """See `Executor`."""
        spoken = wait([running.messages for running in self._running.values()], POLL_SECONDS)
        for name, running in list(self._running.items()):
            if running.messages not in spoken:
                continue
            try:
                message = running.messages.recv()
            except (EOFError, OSError):
                message = None
            if isinstance(message, Progress):
                yield name, message
                continue
            del self._running[name]
            running.messages.close()
            running.process.join()
            yield (
                name,
                message
                or LostError(
                    f"the process of run {name!r} ended without a result (exit status "
                    f"{running.process.exitcode}); {STATUS_MEANS}"
                ),
            )

    def stop(self, names: Collection[str]) -> None:
        """See `Executor`."""
        for name in names:
            self._running[name].process.terminate()


def _work(job: Job, threads: int, messages: Connection) -> None:
    """The body of one run's process."""
    # Ctrl-C reaches every process of the terminal: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def report(progress: Progress) -> None:
        try:
            messages.send(progress)
        except BrokenPipeError:  # the parent was killed, and cannot ask for a stop any more
            signal.raise_signal(signal.SIGTERM)

    outcome = run_job(job, threads, report)
    # From here on a signal could only cut the message in two.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):
        messages.send(outcome)
