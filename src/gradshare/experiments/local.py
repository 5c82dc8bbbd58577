"""Running several training runs on this machine, one process each, so many at a time."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import traceback
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

Record = Callable[[str, RunResult], None]
"""Given the name of a run and what it came to."""

POLL_SECONDS = 0.2
ERROR = "error.txt"


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
    cores, so that a last odd run does not leave a core idle; fewer if each has several processes.
    """
    if choose_device(config.device).type != "cpu":
        return 1
    if config.workers > 1:
        return max(1, min(runs, cores() // config.workers))
    return min(runs, cores() + 1)


def default_threads(config: RunConfig, jobs: int) -> int:
    """CPU threads of each process when `jobs` run at a time."""
    return config.threads or max(1, cores() // jobs)


def run_all(
    jobs: Mapping[str, Job], at_a_time: int, watch: WatchAll, record: Record, *, resume: bool
) -> dict[str, RunResult]:
    """Train every run; the result by the run's name.

    Args:
        jobs: the runs by name.
        at_a_time: how many go side by side.
        watch: told where each is.
        record: given each result as soon as it is there, so that what comes after cannot lose it.
        resume: see `gradshare.training.run.train`.

    Raises:
        GradshareError: what the first run to fail raised; the others are stopped and keep what
            they have saved.
        RunStoppedError: Ctrl-C or SIGTERM; every run has saved what it had.
    """
    context = multiprocessing.get_context("spawn")
    messages: Queue[tuple[str, Any]] = context.Queue()
    waiting = dict(jobs)
    running: dict[str, BaseProcess] = {}
    stopping: set[str] = set()
    gone: set[str] = set()
    results: dict[str, RunResult] = {}
    failure: GradshareError | None = None
    try:
        with StopRequests() as stop:
            while waiting or running:
                if stop.signal is not None or failure is not None:
                    waiting.clear()
                    for name in running.keys() - stopping:
                        running[name].terminate()
                        stopping.add(name)
                while waiting and len(running) < at_a_time:
                    name = next(iter(waiting))
                    job = waiting.pop(name)
                    threads = default_threads(job.config, at_a_time)
                    running[name] = context.Process(
                        target=_work, args=(name, job, threads, resume, messages), daemon=True
                    )
                    running[name].start()
                received = _receive(messages, running, gone)
                if received is None:
                    continue
                name, message = received
                if isinstance(message, Progress):
                    watch(name, message)
                    continue
                running.pop(name).join()
                if isinstance(message, RunResult):
                    results[name] = message
                    record(name, message)
                elif name not in stopping or not isinstance(message, RunStoppedError | _LostError):
                    failure = failure or message
    finally:
        for process in running.values():
            process.kill()
    if failure is not None:
        raise failure
    if stop.signal is not None and len(results) < len(jobs):
        folders = ", ".join(str(job.folder) for job in jobs.values())
        raise RunStoppedError(f"stopped; everything so far is saved in {folders}", stop.signal)
    return results


class _LostError(RunError):
    """A process that ended without saying how."""


def _receive(
    messages: Queue[tuple[str, Any]], running: Mapping[str, BaseProcess], gone: set[str]
) -> tuple[str, Any] | None:
    """The next message of any run, or the error of one whose process ended without a last one."""
    try:
        return messages.get(timeout=POLL_SECONDS)
    except queue.Empty:
        pass
    for name, process in running.items():
        if name in gone:
            return name, _LostError(
                f"the process of run {name!r} ended without a result (exit status "
                f"{process.exitcode}); a negative status is a signal, and -9 often means that "
                "memory ran out"
            )
        # What a process said last may still be on its way when it is first found gone.
        if not process.is_alive():
            gone.add(name)
    return None


def _work(name: str, job: Job, threads: int, resume: bool, messages: Any) -> None:
    """The body of one run's process."""
    # Ctrl-C reaches every process of the terminal: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(threads)

    def report(progress: Progress) -> None:
        messages.put((name, progress))

    message: RunResult | GradshareError
    try:
        message = train(job.config, job.folder, report, resume=resume)
    except GradshareError as error:
        message = error
    except Exception as error:
        (job.folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
        message = RunError(
            f"run {name!r} failed: {type(error).__name__}: {error}; please report this with "
            f"{job.folder / ERROR}"
        )
    # From here on a signal could only cut the message in two.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    messages.put((name, message))
