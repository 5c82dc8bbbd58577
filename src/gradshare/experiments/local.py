"""Running several training runs on this machine, one process each, so many at a time."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from gradshare.errors import GradshareError, RunError
from gradshare.training.config import RunConfig
from gradshare.training.interruption import RunStoppedError, StopRequests
from gradshare.training.machine import cores, keep_freed_memory
from gradshare.training.run import Progress, RunResult, train
from gradshare.training.setup import choose_device

WatchAll = Callable[[str, Progress], None]
"""Told the name of a run and where it is."""

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A training run to be done.

    Attributes:
        config: what to run.
        folder: where to.
    """

    config: RunConfig
    folder: Path


def default_jobs(config: RunConfig, runs: int) -> int:
    """How many runs go at a time: one on an accelerator, else up to one more than there are
    cores, so that a last odd run does not leave a core idle.
    """
    if choose_device(config.device).type != "cpu":
        return 1
    return min(runs, cores() + 1)


def default_threads(config: RunConfig, jobs: int) -> int:
    """CPU threads of each process when `jobs` run at a time."""
    return config.threads or max(1, cores() // jobs)


def run_all(
    jobs: Mapping[str, Job], at_a_time: int, watch: WatchAll, *, resume: bool
) -> dict[str, RunResult]:
    """Train every run; the result by the run's name.

    Raises:
        GradshareError: what the first run to fail raised; the others are stopped and keep what
            they have saved.
        RunStoppedError: Ctrl-C or SIGTERM; every run has saved what it had.
    """
    context = multiprocessing.get_context("spawn")
    messages: Queue[tuple[str, Any]] = context.Queue()
    waiting = dict(jobs)
    running: dict[str, BaseProcess] = {}
    results: dict[str, RunResult] = {}
    gone: set[str] = set()
    failure: GradshareError | None = None
    with StopRequests() as stop:
        while waiting or running:
            if stop.signal is not None or failure is not None:
                waiting.clear()
                for process in running.values():
                    process.terminate()
            while waiting and len(running) < at_a_time:
                name = next(iter(waiting))
                job = waiting.pop(name)
                threads = default_threads(job.config, at_a_time)
                running[name] = context.Process(
                    target=_work, args=(name, job, threads, resume, messages), daemon=True
                )
                running[name].start()
            try:
                name, message = messages.get(timeout=POLL_SECONDS)
            except queue.Empty:
                # What a process said last may still be on its way when it is first found gone.
                for name in gone & running.keys():
                    code = running.pop(name).exitcode
                    if stop.signal is None and failure is None:
                        failure = RunError(
                            f"the process of run {name!r} ended without a result (exit status "
                            f"{code}); a negative status is a signal, and -9 often means that "
                            "memory ran out"
                        )
                gone = {name for name, process in running.items() if not process.is_alive()}
                continue
            if isinstance(message, Progress):
                watch(name, message)
                continue
            running.pop(name).join()
            if isinstance(message, RunResult):
                results[name] = message
            elif not isinstance(message, RunStoppedError):
                failure = failure or message
    if failure is not None:
        raise failure
    if stop.signal is not None:
        folders = ", ".join(str(job.folder) for job in jobs.values())
        raise RunStoppedError(f"stopped; everything so far is saved in {folders}", stop.signal)
    return results


def _work(name: str, job: Job, threads: int, resume: bool, messages: Any) -> None:
    """The body of one run's process."""
    # Ctrl-C reaches every process of the terminal: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(threads)

    def report(progress: Progress) -> None:
        messages.put((name, progress))

    try:
        messages.put((name, train(job.config, job.folder, report, resume=resume)))
    except GradshareError as error:
        messages.put((name, error))
