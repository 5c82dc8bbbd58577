"""Where a run's processes come from: `torchrun`, or nowhere, for a run in one."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
import torch.distributed as dist

from gradshare.errors import ConfigError, RunError
from gradshare.training.distributed import TIMEOUT, OneProcess, OtherRankError, ProcessGroup
from gradshare.training.interruption import RunStoppedError

if dist.is_available():  # not in every build of PyTorch
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LOOK_SECONDS = 1.0
MEET_SECONDS = 0.05


@contextmanager
def torchrun_processes(device: str) -> Iterator[OneProcess]:
    """The group of processes that `torchrun` started; a single process without `torchrun`."""
    size = torchrun_size()
    if size is None or size == 1:
        yield OneProcess()
        return
    require_free()
    with member(_torchrun_group(device)) as group:
        watch = threading.Thread(target=_stop_without_launcher, args=(group,), daemon=True)
        watch.start()
        yield group


def _stop_without_launcher(group: OneProcess) -> None:
    """Ask for a stop when torchrun is gone: killed, it leaves its processes behind."""
    launcher = os.getppid()
    while os.getppid() == launcher:
        time.sleep(LOOK_SECONDS)
    group.stop.signal = group.stop.signal or signal.SIGTERM


def torchrun_size() -> int | None:
    """How many processes `torchrun` has started for this run; None without it."""
    return _number("WORLD_SIZE") if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else None


def is_first() -> bool:
    """Whether this process of a run is the one that prints and writes its results."""
    return torchrun_size() is None or _number("RANK") == 0


def speaks_for_machine() -> bool:
    """Whether this process says what all of a run's processes on this machine know."""
    return torchrun_size() is None or _number("LOCAL_RANK", "0") == 0


def require_free() -> None:
    """Raise ConfigError if this process cannot be one of several."""
    if not dist.is_available():
        raise ConfigError(
            "this build of PyTorch has no torch.distributed; use another, or one process"
        )
    if dist.is_initialized():
        raise ConfigError(
            "this process belongs to a process group of torch.distributed already, and a run over "
            "several processes needs its own; call destroy_process_group() first"
        )


@contextmanager
def member(group: ProcessGroup) -> Iterator[OneProcess]:
    """Be one of a run's processes, and tell the others if this one fails."""
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
def threads(count: int) -> Iterator[None]:
    """Compute with a number of threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def may_use_cuda(device: str) -> bool:
    """Whether a process may exchange tensors that are on a GPU."""
    return device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()


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
        local_rank=_number("LOCAL_RANK", "0"),
        local_size=_number("LOCAL_WORLD_SIZE", "1"),
        cuda=may_use_cuda(device),
        patient=True,
    )


def _number(variable: str, default: str | None = None) -> int:
    text = os.environ.get(variable, default)
    try:
        return int(text or "")
    except ValueError as error:
        raise ConfigError(
            f"the variable {variable} is {text!r}, and torchrun would set it to a number; unset "
            "RANK and WORLD_SIZE, or start with torchrun"
        ) from error
