"""Training runs on Ray: on a cluster of this machine's own, or on one at an address.

Each run is a Ray task, in a worker process that ends with it. Workers report to one actor, the
board, and learn there that they are to stop. A worker that does not see the folder of the run,
being on another machine without a shared disk, trains in a temporary one and sends what changes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

# Read when Ray is imported: nobody is told that it is used, and it does not hide the graphics
# cards from tasks that ask for none, which is what it announces to become its default.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from gradshare.errors import ConfigError, RunError
from gradshare.experiments.executors.job import Job, LostError, Outcome, UnexpectedError, run_job
from gradshare.experiments.executors.loop import Event
from gradshare.experiments.executors.mirror import Bundle, Mirror, apply
from gradshare.experiments.wording import counted
from gradshare.training.files import make_folder, write_atomically
from gradshare.training.interruption import RunStoppedError
from gradshare.training.machine import cores
from gradshare.training.options import Progress

POLL_SECONDS = 0.2
TELL_SECONDS = 0.5
CONNECT_SECONDS = 10
OBJECT_STORE_BYTES = 2**27  # of our own cluster: what travels is small


@dataclass(frozen=True)
class _Place:
    """Where the program runs, for workers to find out whether they see its files.

    Attributes:
        working_directory: what relative paths start from.
        token: a file that only those see who see the output folder.
        content: of that file.
    """

    working_directory: Path
    token: Path
    content: bytes

    def is_seen(self) -> bool:
        try:
            return self.token.read_bytes() == self.content and self.working_directory.is_dir()
        except OSError:
            return False


class RayExecutor:
    """Runs on Ray; see `Executor`.

    Args:
        config: what the runs have in common.
        address: of a cluster, as `ray.init` takes it; None for one of this machine alone, which
            is started for the purpose and shut down after.
        at_a_time: how many tasks it is given at a time.
        retries: see `Executor`.

    Raises:
        ConfigError: the configuration names a device that Ray is to choose, or asks this machine
            for more cores than it has.
    """

    here = False

    def __init__(self, config: Any, address: str | None, at_a_time: int, retries: int) -> None:
        if config.device.startswith("cuda:"):
            raise ConfigError(
                f"--device {config.device} names one card, but Ray deals out the cards; use "
                "--device cuda"
            )
        self._threads = config.threads or 1
        if address is None and self._threads > cores():
            raise ConfigError(
                f"--threads {self._threads}: this machine has {counted(cores(), 'core')}, so Ray "
                "would wait for ever; ask for fewer, or for another cluster with --ray-address"
            )
        self.at_a_time = at_a_time
        self.retries = retries
        self._device = config.device
        self._address = address
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, Any] = {}
        self._heard_of: set[str] = set()
        self._called_off: set[str] = set()
        self._leaving = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not ray.is_initialized():
            self._connect()
            self._leaving.callback(ray.shutdown)
        try:
            gpus = self._gpus()
            self._board: Any = ray.remote(_Board).options(num_cpus=0).remote()
            # One run a process: the next would find the memory of the one before.
            self._train = ray.remote(max_calls=1, max_retries=0)(_train).options(
                num_cpus=self._threads, num_gpus=gpus
            )
        except BaseException:
            self._leaving.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks.values():
            ray.cancel(task, force=True)
        self._leaving.close()

    def describe(self) -> str:
        """See `Executor`."""
        where = f"Ray at {self._address}" if self._address else "a Ray cluster of this machine"
        return f"on {where} as it has room, with {counted(self._threads, 'thread')} each"

    def start(self, jobs: Mapping[str, Job]) -> None:
        """See `Executor`."""
        for name, job in jobs.items():
            self._jobs[name] = job
            self._heard_of.discard(name)
            self._called_off.discard(name)
            # To continue from, for a worker that does not see the folder.
            saved = Mirror(job.folder).changes()
            place = self._place(job)
            self._tasks[name] = self._train.remote(
                name, job, place, saved, self._threads, self._board
            )

    def news(self) -> Iterator[Event]:
        """See `Executor`."""
        names = {task: name for name, task in self._tasks.items()}
        with _ray_is_there():
            done, _ = ray.wait(list(names), num_returns=1, timeout=POLL_SECONDS)
            # After waiting: what a task told before it was done comes before what it came to.
            told = ray.get(self._board.take.remote())
        for name, progress, changes in told:
            self._heard_of.add(name)
            apply(changes, self._jobs[name].folder)
            if progress is not None:
                yield name, progress
        for task in done:
            name = names[task]
            del self._tasks[name]
            yield name, self._outcome(name, task)

    def stop(self, names: Collection[str]) -> None:
        """See `Executor`."""
        with _ray_is_there():
            ray.get(self._board.stop.remote(frozenset(names)))
            for name in names:
                if name not in self._heard_of:  # it may wait for a machine for long
                    self._called_off.add(name)
                    ray.cancel(self._tasks[name])

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            options |= {
                "num_cpus": cores(),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        try:
            _require_an_answer(self._address)
            ray.init(address=self._address or "local", **options)
        except Exception as error:
            where = f"at {self._address} " if self._address else ""
            raise RunError(
                f"the Ray cluster {where}cannot be used: {_brief(error)}; see docs/clusters.md"
            ) from error

    def _gpus(self) -> int:
        """How many cards a run takes."""
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        there = resources.get("GPU", 0) > 0
        return int(self._device == "cuda" or (self._device == "auto" and there))

    def _place(self, job: Job) -> _Place:
        """Leave a token beside a run's folder."""
        content = uuid.uuid4().hex
        token = job.folder.absolute().parent / f".ray-{content}"
        make_folder(token.parent)
        write_atomically(token, content.encode())
        self._leaving.callback(token.unlink, missing_ok=True)
        return _Place(Path.cwd(), token, content.encode())

    def _outcome(self, name: str, task: Any) -> Outcome:
        try:
            outcome, changes = ray.get(task)
        except RayTaskError as error:
            # As it was to begin: by an error of Ray's own, or of what it trips over in its worker,
            # where Ctrl-C may be ignored, as it is in what a script starts with &.
            if name in self._called_off:
                return LostError(f"run {name!r} was called off before it began")
            return UnexpectedError(f"on a worker of Ray, {_brief(error.cause)}", str(error))
        except RayError as error:
            return LostError(f"the worker of run {name!r} was lost: {_brief(error)}")
        apply(changes, self._jobs[name].folder)
        result: Outcome = outcome
        return result


class _Board:
    """An actor where workers leave messages and find out that they are to stop."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Progress | None, Bundle]] = []
        self._stopping: frozenset[str] = frozenset()

    def tell(self, name: str, progress: Progress | None, changes: Bundle) -> bool:
        """Leave a message; whether the run is to stop."""
        self._messages.append((name, progress, changes))
        return name in self._stopping

    def take(self) -> list[tuple[str, Progress | None, Bundle]]:
        """All messages since the last time."""
        messages, self._messages = self._messages, []
        return messages

    def stop(self, names: frozenset[str]) -> None:
        """Let runs know that they are to stop."""
        self._stopping |= names


NO_CHANGE = Bundle({}, frozenset())


def _train(
    name: str, job: Job, place: _Place, saved: Bundle, threads: int, board: Any
) -> tuple[Outcome, Bundle]:
    """The body of one run's worker; what it came to, and what changed in a folder not shared."""
    if ray.get(board.tell.remote(name, None, NO_CHANGE)):
        return RunStoppedError("stopped before it began", signal.SIGTERM), NO_CHANGE
    if place.is_seen():
        os.chdir(place.working_directory)
        return run_job(job, threads, _Reporter(name, board, None)), NO_CHANGE
    with tempfile.TemporaryDirectory(prefix="gradshare-") as scratch:
        # A relative --data-root means the same as where the program runs, if that can be.
        os.chdir(place.working_directory if place.working_directory.is_dir() else scratch)
        folder = Path(scratch) / "run"
        apply(saved, folder)
        mirror = Mirror(folder)
        mirror.changes()  # the other side has these
        outcome = run_job(replace(job, folder=folder), threads, _Reporter(name, board, mirror))
        return outcome, mirror.changes()


class _Reporter:
    """Tells the board where a run is, and stops it when asked to."""

    def __init__(self, name: str, board: Any, mirror: Mirror | None) -> None:
        self._name = name
        self._board = board
        self._mirror = mirror
        self._phase = ""
        self._told_at = 0.0

    def __call__(self, progress: Progress) -> None:
        news = progress.phase != self._phase or progress.done == progress.total
        if news or time.monotonic() - self._told_at > TELL_SECONDS:
            self._phase = progress.phase
            self._told_at = time.monotonic()
            self._tell(progress)

    def _tell(self, progress: Progress) -> None:
        changes = self._mirror.changes() if self._mirror else NO_CHANGE
        try:
            stop = ray.get(self._board.tell.remote(self._name, progress, changes))
        except RayError:
            stop = True  # who started this is gone
        if stop:
            # As a scheduler asks: the run saves what it has.
            signal.raise_signal(signal.SIGTERM)


def _require_an_answer(address: str | None) -> None:
    """Find out at once whether anybody is there: Ray itself takes minutes to give up.

    Raises:
        OSError: nobody is.
    """
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


@contextlib.contextmanager
def _ray_is_there() -> Iterator[None]:
    """Say it where it is not."""
    try:
        yield
    except RayError as error:
        raise RunError(
            f"Ray is gone: {_brief(error)}; everything so far is saved, continue with --resume auto"
        ) from error


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
