"""Where a run's processes come from: `torchrun`, `--workers N`, or nowhere, for a run in one."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from gradshare.errors import GradshareError, RunError
from gradshare.training.distributed import TIMEOUT, OneProcess, ProcessGroup
from gradshare.training.machine import keep_freed_memory

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LOOK_SECONDS = 1.0
MEET_SECONDS = 0.05
LOCALHOST = "127.0.0.1"
ARRIVED = "arrived"  # the store's key for the number of other processes that have come
POLL_SECONDS = 0.2
# How long the other processes may take to end after the run has.
LEAVE_SECONDS = 10.0


def torchrun_size() -> int | None:
    """How many processes `torchrun` has started for this run; None without it."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else None


def is_first() -> bool:
    """Whether this process of a run is the one that prints and writes its results."""
    return torchrun_size() is None or int(os.environ["RANK"]) == 0


@contextmanager
def torchrun_processes(device: str) -> Iterator[OneProcess]:
    """The group of processes that `torchrun` started; a single process without `torchrun`."""
    size = torchrun_size()
    if size is None or size == 1:
        yield OneProcess()
        return
    with _torchrun_group(device) as group:
        watch = threading.Thread(target=_stop_without_launcher, args=(group,), daemon=True)
        watch.start()
        yield group


def _stop_without_launcher(group: OneProcess) -> None:
    """Ask for a stop when torchrun is gone: killed, it leaves its processes behind."""
    launcher = os.getppid()
    while os.getppid() == launcher:
        time.sleep(LOOK_SECONDS)
    group.stop.signal = group.stop.signal or signal.SIGTERM


def group_name(store: Store, rank: int, size: int) -> str:
    """Agree with the other processes on a name for a group that no group had before.

    The store outlives the processes: it still holds what earlier runs of the program wrote, and,
    after an elastic restart, what the killed processes wrote. `TORCHELASTIC_RESTART_COUNT` does not
    tell restarts apart, since the launcher of each machine counts only its own.

    Each process writes a new token, and joins the group that is named after all tokens. A name with
    the token of a killed process is not joined by its successor, so all wait until it changes.
    """
    store.set(f"gradshare/token/{rank}", uuid4().hex)
    tokens = [f"gradshare/token/{other}" for other in range(size)]
    end = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < end:
        joined = b"".join(store.get(token) for token in tokens)
        name = f"gradshare/group/{hashlib.sha256(joined).hexdigest()}"
        store.set(f"{name}/{rank}", "")
        if store.check([f"{name}/{other}" for other in range(size)]):
            return name
        time.sleep(MEET_SECONDS)
    raise RuntimeError(f"not all {size} came within {TIMEOUT}")


def _torchrun_group(device: str) -> ProcessGroup:
    from torch.distributed import (  # type: ignore[attr-defined]  # noqa: PLC0415
        PrefixStore,
        rendezvous,
    )

    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        group = group_name(store, rank, size)
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"the processes that torchrun started do not find each other: {error}"
        ) from error
    return ProcessGroup(
        PrefixStore(group, store),
        rank,
        size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        device=device,
        patient=True,
    )


@contextmanager
def local_workers(
    size: int, device: str, work: Callable[..., Any], *arguments: Any
) -> Iterator[OneProcess]:
    """Be the first process of a run, and start the others; none of them outlives this one.

    They are started by `multiprocessing` ("spawn"), so a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        size: processes of the run, this one included. They compute with as many threads as it.
        device: as in `gradshare.fit`.
        work: called by each of the others with its `OneProcess` and `arguments`; pickled by name.
    """
    store = _store(0, size, first=True)
    context = multiprocessing.get_context("spawn")
    place = (store.port, size, device, torch.get_num_threads())
    others = [
        context.Process(target=_take_part, args=(rank, *place, work, arguments), daemon=True)
        for rank in range(1, size)
    ]
    try:
        with _interrupts_ignored():
            for process in others:
                process.start()
        _await(store, others)
        with ProcessGroup(store, 0, size, local_rank=0, local_size=size, device=device) as group:
            yield group
        for process in others:
            process.join(LEAVE_SECONDS)
    finally:
        for process in others:
            if process.pid is not None:
                process.kill()
                process.join()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start processes that ignore the Ctrl-C of a terminal: the first process tells them of it."""
    if threading.current_thread() is not threading.main_thread():  # which alone may change it
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _store(port: int, size: int, *, first: bool) -> Any:
    """The store where the processes of this machine meet; port 0 is any free one."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415

    return TCPStore(LOCALHOST, port, size, first, TIMEOUT, wait_for_workers=not first)


def _await(store: Any, others: Sequence[BaseProcess]) -> None:
    """Wait until every other process has come; RunError if one has ended instead."""
    while store.add(ARRIVED, 0) < len(others):
        time.sleep(POLL_SECONDS)
        for rank, process in enumerate(others, start=1):
            if process.exitcode is not None:
                raise RunError(
                    f"the process of rank {rank} of {len(others) + 1} did not begin (exit status "
                    f"{process.exitcode}); its own error is above"
                )


def _take_part(
    rank: int,
    port: int,
    size: int,
    device: str,
    threads: int,
    work: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    """Be one of the other processes. The first one reports their errors."""
    threading.Thread(target=_end_with_the_first_process, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)
    store = _store(port, size, first=False)
    store.add(ARRIVED, 1)
    try:
        with ProcessGroup(
            store, rank, size, local_rank=rank, local_size=size, device=device
        ) as group:
            work(group, *arguments)
    except GradshareError:
        sys.exit(1)


def _end_with_the_first_process() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with a number of threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
