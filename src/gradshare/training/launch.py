"""Where a run's processes come from: `torchrun`, `--workers`, or nowhere, for a run in one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from gradshare.config import RunConfig
from gradshare.errors import ConfigError, RunError
from gradshare.training.distributed import TIMEOUT, OneProcess, OtherRankError, ProcessGroup
from gradshare.training.interruption import STATUS_MEANS, RunStoppedError

if dist.is_available():  # not in every build of PyTorch
    from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

WORKER_MODULE = "gradshare.training.worker"
LOCALHOST = "127.0.0.1"
POLL = timedelta(seconds=0.2)

# How long the system may take to say how a process ended, and how long a worker to end by itself.
FATE_SECONDS = 1.0
LEAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Assignment:
    """What a worker of `--workers` is told, as a line of its standard input.

    Attributes:
        rank: which process of the run it is.
        port: of the first process's store on this machine.
        config: the run's, as JSON.
    """

    rank: int
    port: int
    config: str


@contextmanager
def processes_of(config: RunConfig) -> Iterator[OneProcess]:
    """The processes of a run while it goes on, as the one that calls this.

    Under `torchrun` they are there, and each of them calls this. With `--workers` the others are
    started here, and are gone afterwards.

    Raises:
        ConfigError: the two are mixed, or this process cannot be one of several.
        RunError: the processes do not find each other.
    """
    size = torchrun_size()
    if size is not None and config.workers > 1:
        raise ConfigError(
            f"--workers {config.workers} starts processes, and torchrun has started {size}; leave "
            "one of them out"
        )
    if size is None and config.workers > 1:
        _require_free()
        with _workers(config) as group:
            yield group
    elif size is not None and size > 1:
        _require_free()
        with _member(_torchrun_group(config), config) as group:
            yield group
    else:
        with _threads(config.threads or torch.get_num_threads()):
            yield OneProcess()


def torchrun_size() -> int | None:
    """How many processes `torchrun` has started for this run; None without it.

    Raises:
        ConfigError: its variables are no numbers.
    """
    return _number("WORLD_SIZE") if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else None


def is_first() -> bool:
    """Whether this process of a run is the one that prints and writes its results."""
    return torchrun_size() is None or _number("RANK") == 0


def speaks_for_machine() -> bool:
    """Whether this process says what all of a run's processes on this machine know."""
    return torchrun_size() is None or _number("LOCAL_RANK", "0") == 0


@contextmanager
def worker(assignment: Assignment, config: RunConfig) -> Iterator[OneProcess]:
    """The processes of a run, as one that `processes_of` has started in another."""
    store = _store(assignment.port, config, first=False)
    store.set(_here(assignment.rank), "")
    with _member(_local_group(store, assignment.rank, config, {}), config) as group:
        yield group


def _require_free() -> None:
    if not dist.is_available():
        raise ConfigError(
            "this build of PyTorch has no torch.distributed; use another, or one process"
        )
    if dist.is_initialized():
        raise ConfigError(
            "this process belongs to a process group of torch.distributed already, and a run over "
            "several processes needs its own; call destroy_process_group() first"
        )


def _torchrun_group(config: RunConfig) -> ProcessGroup:
    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"the processes that torchrun started do not find each other: {error}"
        ) from error
    # After an elastic restart the store may still hold what the processes before it said.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return ProcessGroup(
        PrefixStore(f"gradshare/{attempt}", store),
        rank,
        size,
        local_rank=_number("LOCAL_RANK", "0"),
        local_size=_number("LOCAL_WORLD_SIZE", "1"),
        cuda=_may_use_cuda(config),
        patient=True,
    )


def _store(port: int, config: RunConfig, *, first: bool) -> TCPStore:
    """Where the processes of this machine meet; port 0 is any that is free."""
    return TCPStore(LOCALHOST, port, config.workers, first, TIMEOUT, wait_for_workers=not first)


@contextmanager
def _workers(config: RunConfig) -> Iterator[OneProcess]:
    """Start all processes of a run but this one, and see that none outlives it."""
    threads = config.threads or max(1, torch.get_num_threads() // config.workers)
    config = config.model_copy(update={"threads": threads})
    store = _store(0, config, first=True)
    started: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(1, config.workers):
            started[rank] = _start(Assignment(rank, store.port, config.model_dump_json()))
        _await(store, started)
        with _member(_local_group(store, 0, config, started), config) as group:
            yield group
        for process in started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_SECONDS)
    finally:
        for process in started.values():
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _start(assignment: Assignment) -> subprocess.Popen[bytes]:
    # Its own session, so that a terminal's Ctrl-C reaches the first process alone, which tells the
    # others. It ends when its standard input does, that is, when the first process is gone.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", WORKER_MODULE],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # how it ended is looked at while awaiting it
        process.stdin.write(json.dumps(asdict(assignment)).encode() + b"\n")
        process.stdin.flush()
    return process


def _await(store: Store, started: Mapping[int, subprocess.Popen[bytes]]) -> None:
    """Wait until every worker has come, or one has ended instead."""
    end = time.monotonic() + TIMEOUT.total_seconds()
    for rank, process in started.items():
        while not store.check([_here(rank)]):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL.total_seconds())
            if process.poll() is not None or time.monotonic() > end:
                raise RunError(
                    f"{_worker(rank, len(started) + 1)} did not begin (exit status "
                    f"{process.poll()}); what it said is above"
                )


@contextmanager
def _member(group: ProcessGroup, config: RunConfig) -> Iterator[OneProcess]:
    """Be one of a run's processes, with its share of this machine's threads."""
    with _threads(config.threads or max(1, torch.get_num_threads() // group.local_size)):
        try:
            yield group
        except (OtherRankError, RunStoppedError):
            raise
        except BaseException as error:
            group.tell(error)
            raise
        finally:
            group.close()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _local_group(
    store: Store,
    rank: int,
    config: RunConfig,
    started: Mapping[int, subprocess.Popen[bytes]],
) -> ProcessGroup:
    def fate() -> str | None:
        for other, process in started.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return (
                    f"{_worker(other, config.workers)} ended without a word (exit status "
                    f"{process.wait(FATE_SECONDS)}); {STATUS_MEANS}"
                )
        return None

    return ProcessGroup(
        store,
        rank,
        config.workers,
        local_rank=rank,
        local_size=config.workers,
        cuda=_may_use_cuda(config),
        fate=fate,
    )


def _may_use_cuda(config: RunConfig) -> bool:
    return config.device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()


def _here(rank: int) -> str:
    return f"here/{rank}"


def _worker(rank: int, size: int) -> str:
    return f"the process of rank {rank} of {size}"


def _number(variable: str, default: str | None = None) -> int:
    text = os.environ.get(variable, default)
    try:
        return int(text or "")
    except ValueError as error:
        raise ConfigError(
            f"the variable {variable} is {text!r}, and torchrun would set it to a number; unset "
            "RANK and WORLD_SIZE, or start with torchrun"
        ) from error
