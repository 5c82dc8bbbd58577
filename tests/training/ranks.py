"""Several processes that form one group, and functions that all of them call."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gradshare.training.distributed import ProcessGroup
from tests.training.killing import PRELOADED

Call = tuple[Callable[..., Any], tuple[Any, ...]]

# So long a test waits for what should take a second.
PATIENCE = 120.0


class Ranks:
    """Processes that call the same function, each with its `ProcessGroup` first."""

    def __init__(self, pipes: Sequence[Connection], processes: Sequence[BaseProcess]) -> None:
        self._pipes = pipes
        self._processes = processes

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returned or raised on each rank."""
        return self.of(range(len(self._pipes)), function, *arguments)

    def of(
        self, awaited: Iterable[int], function: Callable[..., Any], *arguments: Any
    ) -> list[Any]:
        """What the function, which every rank calls, returned or raised on some."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        pipes = [self._pipes[rank] for rank in awaited]
        for pipe in pipes:
            assert pipe.poll(PATIENCE), "a rank hangs"
        return [pipe.recv() for pipe in pipes]

    def kill(self) -> None:
        """End every rank at once."""
        for process in self._processes:
            process.kill()


@contextmanager
def ranks(size: int, folder: Path, timeout: float = PATIENCE) -> Iterator[Ranks]:
    """Start a group of processes; they end with the context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, processes = [], []
    for rank in range(size):
        pipe, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(rank, size, str(folder / "store"), theirs, timeout), daemon=True
        )
        process.start()
        theirs.close()
        ours.append(pipe)
        processes.append(process)
    try:
        yield Ranks(ours, processes)
    finally:
        for pipe in ours:
            pipe.close()
        for process in processes:
            process.join(PATIENCE)
            process.kill()


def _serve(rank: int, size: int, store: str, pipe: Connection, timeout: float) -> None:
    torch.set_num_threads(1)
    group = ProcessGroup(
        dist.FileStore(store, size),  # type: ignore[attr-defined]
        rank,
        size,
        local_rank=rank,
        local_size=size,
        device="cpu",
        timeout=timedelta(seconds=timeout),
    )
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(group, *arguments))
        except Exception as error:
            pipe.send(error)
