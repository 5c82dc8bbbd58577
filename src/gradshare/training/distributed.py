"""One run over several processes: who computes which tasks, and what goes between the processes.

Every process holds the same outer parameters, rules' state and optimiser, computes its share of
each task batch, and takes the same step. What must be the same on all is summed over them, gathered
from them, or sent by the first of them, which alone reads and writes the run's folder. The rest of
the program asks a `OneProcess`, which has nothing to exchange; a `ProcessGroup` is the same for
several. Where they come from is in `gradshare.training.launch`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gradshare.errors import ConfigError, GradshareError, RunError
from gradshare.inner_loop import Tensors, sum_over_local_tasks
from gradshare.models.weights import digest
from gradshare.training.interruption import SIGNALS, RunStoppedError, StopRequests

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Value = TypeVar("Value")
Row = TypeVar("Row")

# A process that is alive and silent for so long is given up: far longer than any other needs for
# one inner step of its share, or the first for writing a checkpoint.
TIMEOUT = timedelta(minutes=10)

FAILURE = "failure"  # the store's key for why a process ended the run


class OtherRankError(RunError):
    """Another process of the run has ended it, and this one has only heard of it."""


@dataclass(frozen=True)
class Share:
    """The tasks of a batch that one process computes.

    Attributes:
        tasks: the tasks that this one computes.
        counted: how many of them count: all, or none. Where there are fewer tasks than processes,
            one without a task computes another's, so that it takes part in every exchange, and
            counts it for nothing.
        whole: T, the tasks of the whole batch.
    """

    processes: OneProcess
    tasks: range
    counted: int
    whole: int

    def sum_over_tasks(self, tensors: Tensors) -> Tensors:
        """The differentiable sum of (T, …) tensors over the tasks of all processes (Eq. 1)."""
        # All tasks are not sliced: the gradient of a slice fills a tensor of their size.
        if not self.counted:
            tensors = {name: tensor[:0] for name, tensor in tensors.items()}
        return self.processes.sum_differentiably(sum_over_local_tasks(tensors))

    def part_of_mean(self, values: Tensor) -> Tensor:
        """What (T,) values of these tasks add to the mean over the whole batch."""
        return values[: self.counted].sum() / self.whole


class OneProcess:
    """A run in one process: it has every task, and exchanges nothing.

    Attributes:
        rank: which process this is, from 0.
        size: how many there are.
        local_rank: which one on this machine.
        local_size: how many there are on this machine.
        stop: notes the requests to stop that this process gets while the run goes on.
    """

    rank = local_rank = 0
    size = local_size = 1

    def __init__(self) -> None:
        self.stop = StopRequests()

    @property
    def asked(self) -> int | None:
        """The signal that asked the run to stop, or None. If there are several processes, a signal
        to one of them is known to all after the same exchange.
        """
        return self.stop.signal

    def share(self, tasks: range) -> Share:
        """What this process does of a task batch; the first process has the first of its tasks."""
        begin, end = (len(tasks) * rank // self.size for rank in (self.rank, self.rank + 1))
        own = tasks[begin:end]
        return Share(self, own or tasks[:1], len(own), len(tasks))

    def sum_differentiably(self, tensors: Tensors) -> Tensors:
        """Tensors summed over the processes, so that the sum can be differentiated."""
        return tensors

    def total(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Tensors summed over the processes, without a graph."""
        return tensors

    def gather(self, rows: list[Row]) -> list[Row]:
        """The rows of all processes, those of the first one first."""
        return rows

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, on all of them. Tensors in it must be on the CPU."""
        return make()

    def agree(self, do: Callable[[], Value]) -> Value:
        """Do something on every process that must succeed on all of them, or fails on all."""
        return do()

    def require_alike(self, own: Mapping[str, Any]) -> None:
        """Raise ConfigError unless every process gives the values that the first one gives."""

    def require_identical(self, tensors: Tensors) -> None:
        """Raise RunError unless every process has the same tensors, bit for bit."""


class ProcessGroup(OneProcess):
    """The form of `OneProcess` for several; each of them must call the same methods in turn.

    The end of the `with` block leaves the group, and tells the others of an error.

    Args:
        device: as in `gradshare.fit`.
        timeout: after how long a silent process is given up.
        patient: whether a second Ctrl-C is taken like the first.

    Raises:
        ConfigError: this process is in a process group already.
        OtherRankError: from any method, when another process has failed or is gone.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        local_rank: int,
        local_size: int,
        device: str,
        timeout: timedelta = TIMEOUT,
        patient: bool = False,
    ) -> None:
        if dist.is_initialized():
            raise ConfigError(
                "this process belongs to a process group of torch.distributed already, and a run "
                "over several processes needs its own; call destroy_process_group() first"
            )
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.stop = StopRequests(patient=patient)
        self._asked: int | None = None
        self._store = store
        # When this module is first imported, which an optimiser does, its functions keep the
        # group that exists then, and `close` would not close that one. So import it before.
        importlib.import_module("torch.distributed.nn")
        cuda = device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()
        with self._exchange():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=store,
                rank=rank,
                world_size=size,
                timeout=timeout,
            )

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if error is not None and not isinstance(error, OtherRankError | RunStoppedError):
            self.tell(error)
        dist.destroy_process_group()

    @property
    def asked(self) -> int | None:
        return self._asked

    def sum_differentiably(self, tensors: Tensors) -> Tensors:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
        total: Tensor = _SumOverProcesses.apply(flat, self)  # type: ignore[no-untyped-call]
        return dict(zip(tensors, _unflatten(total, list(tensors.values())), strict=True))

    def sum_vector(self, vector: Tensor) -> Tensor:
        """A vector summed over the processes; the bits are the same on all."""
        total = vector.detach().clone()
        with self._exchange():
            dist.all_reduce(total)
        return total

    def total(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        requests = tensors[0].new_tensor([self.stop.signal == number for number in SIGNALS])
        parts = [*tensors, requests]
        flat = torch.cat([part.reshape(-1) for part in parts])  # of the widest type among them
        *totals, requests = _unflatten(self.sum_vector(flat), parts)
        self._hear([n for n, asked in zip(SIGNALS, requests.tolist(), strict=True) if asked])
        return totals

    def gather(self, rows: list[Row]) -> list[Row]:
        everything = self._gather_one((rows, self.stop.signal))
        self._hear([number for _, number in everything if number is not None])
        return [row for part, _ in everything for row in part]

    def from_first(self, make: Callable[[], Value]) -> Value:
        sent: list[Any] = [self.agree(lambda: make() if self.rank == 0 else None)]
        with self._exchange():
            dist.broadcast_object_list(sent, src=0)
        value: Value = sent[0]
        return value

    def agree(self, do: Callable[[], Value]) -> Value:
        failure: GradshareError | None = None
        results: list[Value] = []
        try:
            results.append(do())
        except GradshareError as error:
            failure = error
        words = self._gather_one(None if failure is None else str(failure))
        for rank, reason in enumerate(words):
            if reason is not None:
                # What fails alike on all is said once.
                if failure is not None and (rank == self.rank or reason != str(failure)):
                    raise failure
                raise self._other(rank, reason)
        return results[0]

    def require_alike(self, own: Mapping[str, Any]) -> None:
        first = self._gather_one(own)[0]

        def compare() -> None:
            for name, value in own.items():
                if first[name] != value:
                    raise ConfigError(
                        f"{name} is {value!r:.100} here and {first[name]!r:.100} in the first "
                        "process; start all processes of a run alike, on the same data and kind of "
                        "device"
                    )

        self.agree(compare)

    def require_identical(self, tensors: Tensors) -> None:
        digests = self._gather_one(digest(dict(sorted(tensors.items()))))
        for rank, other in enumerate(digests):
            if other != digests[0]:
                raise RunError(
                    f"{self._name(rank)} no longer has the same parameters as the first process: "
                    "their processors round differently; run on processors of one kind, with the "
                    "same version of PyTorch and as many --threads each"
                )

    def tell(self, error: BaseException) -> None:
        """Say why this process ends the run, to those that will miss it."""
        if isinstance(error, GradshareError):
            words = str(error)
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            words = "it was asked to stop"
        else:
            words = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):
            self._store.set(FAILURE, f"{self._name(self.rank)} failed: {words}")

    def _gather_one(self, value: Value) -> list[Value]:
        values: list[Any] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(values, value)
        return values

    def _hear(self, asked: list[int]) -> None:
        if asked and self._asked is None:
            self._asked = asked[0]

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo's, NCCL's and the store's alike
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> OtherRankError:
        # The store may be gone with the process that had it.
        with contextlib.suppress(RuntimeError):
            if self._store.check([FAILURE]):
                return OtherRankError(self._store.get(FAILURE).decode())
        first_line = str(error).splitlines()[0].rpartition("] ")[2]
        return OtherRankError(
            f"another of the {self.size} processes of this run was lost, as rank {self.rank} "
            f"noticed: {first_line.partition('. ')[0]}"
        )

    def _other(self, rank: int, reason: str) -> OtherRankError:
        return OtherRankError(f"{self._name(rank)} failed: {reason}")

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self.size}"


class _SumOverProcesses(torch.autograd.Function):
    """A sum of vectors over processes. Every process's outer loss depends on it, so its derivative
    is again a sum over processes, of what arrives at each.
    """

    @staticmethod
    def forward(ctx: Any, vector: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return group.sum_vector(vector)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return _SumOverProcesses.apply(cotangent, ctx.group), None  # type: ignore[no-untyped-call]


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [p.view(t.shape).to(t.dtype) for p, t in zip(parts, like, strict=True)]
