"""`--workers N`: the other processes of a run, started on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from gradshare.errors import GradshareError, RunError
from gradshare.training.distributed import TIMEOUT, OneProcess, ProcessGroup
from gradshare.training.launch import may_use_cuda, member, require_free
from gradshare.training.machine import keep_freed_memory

LOCALHOST = "127.0.0.1"
ARRIVED = "arrived"  # the store's key for the number of other processes that have come
POLL_SECONDS = 0.2
# How long the other processes may take to end after the run has.
LEAVE_SECONDS = 10.0


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
    require_free()
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
        with member(_group(store, 0, size, device)) as group:
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


def _group(store: Any, rank: int, size: int, device: str) -> ProcessGroup:
    cuda = may_use_cuda(device)
    return ProcessGroup(store, rank, size, local_rank=rank, local_size=size, cuda=cuda)


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
        with member(_group(store, rank, size, device)) as group:
            work(group, *arguments)
    except GradshareError:
        sys.exit(1)


def _end_with_the_first_process() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
