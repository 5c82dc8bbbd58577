"""`--workers N`: the processes of one run, started on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradshare.errors import ConfigError, GradshareError, RunError
from gradshare.training.distributed import TIMEOUT, OneProcess, ProcessGroup
from gradshare.training.interruption import STATUS_MEANS
from gradshare.training.launch import (
    may_use_cuda,
    member,
    require_free,
    threads,
    torchrun_processes,
    torchrun_size,
)
from gradshare.training.machine import keep_freed_memory

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LOCALHOST = "127.0.0.1"
POLL = timedelta(seconds=0.2)

# How long the system may take to say how a process ended, and how long a worker to end by itself.
FATE_SECONDS = 1.0
LEAVE_SECONDS = 10.0


@contextmanager
def processes_of(settings: Mapping[str, Any]) -> Iterator[OneProcess]:
    """The processes of a run, seen from the one that calls this.

    Under `torchrun` they exist, and each of them calls this. With `workers` the others are started
    here, and end afterwards.

    Args:
        settings: of the run, as JSON: `workers`, `threads` and `device` are read here, and the
            workers get all of them.

    Raises:
        ConfigError: the two are mixed, or this process cannot be one of several.
        RunError: the processes do not find each other.
    """
    size, workers = torchrun_size(), settings["workers"]
    if size is not None and workers > 1:
        raise ConfigError(
            f"--workers {workers} starts processes, and torchrun has started {size}; leave one of "
            "them out"
        )
    own = settings["threads"] or torch.get_num_threads()
    if workers == 1:
        with threads(own), torchrun_processes(settings["device"]) as processes:
            yield processes
        return
    require_free()
    if not settings["threads"] and "OMP_NUM_THREADS" not in os.environ:
        own = max(1, own // workers)
    with threads(own), _workers({**settings, "threads": own}) as group:
        yield group


@contextmanager
def _workers(settings: Mapping[str, Any]) -> Iterator[OneProcess]:
    """Start all processes of a run but this one, and see that none outlives it."""
    size = settings["workers"]
    store = _store(0, size, first=True)
    started: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for rank in range(1, size):
            started[rank] = _start({"rank": rank, "port": store.port, "settings": dict(settings)})
        _await(store, started)
        with member(_local_group(store, 0, settings, started)) as group:
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


def _store(port: int, size: int, *, first: bool) -> Any:
    """Where the processes of this machine meet; port 0 is any that is free."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415

    return TCPStore(LOCALHOST, port, size, first, TIMEOUT, wait_for_workers=not first)


def _start(assignment: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    # Its own session, so that a terminal's Ctrl-C reaches the first process alone, which tells the
    # others. It ends when its standard input does, that is, when the first process is gone.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gradshare.workers"],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # how it ended is looked at while awaiting it
        process.stdin.write(json.dumps(assignment).encode() + b"\n")
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


def _local_group(
    store: Store,
    rank: int,
    settings: Mapping[str, Any],
    started: Mapping[int, subprocess.Popen[bytes]],
) -> ProcessGroup:
    size = settings["workers"]

    def fate() -> str | None:
        for other, process in started.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return (
                    f"{_worker(other, size)} ended without a word (exit status "
                    f"{process.wait(FATE_SECONDS)}); {STATUS_MEANS}"
                )
        return None

    return ProcessGroup(
        store,
        rank,
        size,
        local_rank=rank,
        local_size=size,
        cuda=may_use_cuda(settings["device"]),
        fate=fate,
    )


def _here(rank: int) -> str:
    return f"here/{rank}"


def _worker(rank: int, size: int) -> str:
    return f"the process of rank {rank} of {size}"


def main() -> None:
    """Take part in a run; what goes wrong is for its first process to say."""
    from gradshare.config import RunConfig, train_in  # noqa: PLC0415

    assignment = json.loads(sys.stdin.buffer.readline())
    settings, rank = assignment["settings"], assignment["rank"]
    threading.Thread(target=_end_with_the_first_process, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(settings["threads"])
    store = _store(assignment["port"], settings["workers"], first=False)
    store.set(_here(rank), "")
    try:
        with member(_local_group(store, rank, settings, {})) as processes:
            # The first process alone reads and writes the run's folder.
            train_in(processes, RunConfig(**settings), Path(), resume=False)
    except GradshareError:
        sys.exit(1)


def _end_with_the_first_process() -> None:
    # Not sys.stdin, whose lock this thread would still hold when the interpreter ends.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
