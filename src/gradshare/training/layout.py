"""The layout of a run's work on its machine.

A layout changes speed and memory, and results by rounding only. It depends on the learner, the
shapes of its tasks and the kind of device, never on measured time or free memory, so that the same
command gives the same numbers tomorrow. It is written into the run's folder before the first
iteration, and a resumed run reads it there.
"""

from __future__ import annotations

import copy
import math
import weakref
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradshare.inner_loop import Tensors, sum_over_local_tasks
from gradshare.inner_loop.adapt import MANY_STEPS
from gradshare.inner_loop.flat_memory import random_state, set_random_state
from gradshare.methods import Learner, MetaLearner
from gradshare.tasks import TaskBatch
from gradshare.tasks.batch import first_leaf

GIB = 1 << 30
# Graphs are kept if they need at most this much. On a CPU several runs share the machine.
KEPT_UP_TO = {"cpu": 4 * GIB, "cuda": 16 * GIB}
# On a CPU tasks are computed at once if the graph of one inner step of one task needs at most this.
SMALL = 16 << 20
# Tasks are computed in groups that need at most this much each: with graphs kept only tasks that
# share nothing can be; with graphs built again, memory is what was asked for.
AT_ONCE = {
    "keep": {"cpu": GIB // 2, "cuda": 8 * GIB},
    "recompute": {"cpu": GIB // 8, "cuda": 8 * GIB},
}

Tasks = Literal["auto", "loop", "vmap"]
Memory = Literal["auto", "keep", "recompute"]


@dataclass(frozen=True)
class Layout:
    """The layout of a run's work.

    Attributes:
        tasks: whether the tasks of a batch are computed one after the other or by `torch.vmap`.
        memory: whether the graph of each inner step is kept for the backward pass, or built again
            in it.
        bytes: an estimate of the peak memory of the graphs.
        separate: whether some tasks go through all inner steps and the backward pass before the
            next ones begin. Only for rules that share nothing between tasks.
        together: with "vmap", how many tasks are computed at once; None for all.
    """

    tasks: Literal["loop", "vmap"]
    memory: Literal["keep", "recompute"]
    bytes: int
    separate: bool = False
    together: int | None = None

    def applied(self, learner: Learner) -> Learner:
        """The learner in this layout; as it is, if it has no `laid_out`."""
        laid_out = getattr(learner, "laid_out", None)
        if laid_out is None:
            return learner
        return laid_out(  # type: ignore[no-any-return]
            tasks_at_a_time=self.together if self.tasks == "vmap" else 1,
            recompute=self.memory == "recompute",
            separate=self.separate,
        )

    def bytes_of(self, share: int, task_batch: int) -> int:
        """The estimate for a process that computes a share of the tasks of a batch."""
        at_once = task_batch
        if self.separate:
            at_once = 1 if self.tasks == "loop" else self.together or task_batch
        return self.bytes * min(share, at_once) // at_once

    def describe(self) -> str:
        """The layout in one line."""
        together = "tasks all" if self.together is None else f"{self.together} tasks"
        tasks = {"loop": "tasks one at a time (loop)", "vmap": f"{together} at once (vmap)"}
        memory = {
            "keep": "graphs kept (keep)",
            "recompute": "graphs built again in the backward pass (recompute)",
        }
        return f"{tasks[self.tasks]}, {memory[self.memory]}"


def choose_layout(
    learner: Learner,
    state: tuple[Tensors, Tensors],
    batch: TaskBatch,
    *,
    task_batch: int,
    tasks: Tasks,
    memory: Memory,
) -> Layout:
    """The layout that was asked for, and for each "auto" the best on this kind of device.

    Args:
        batch: prepared tasks, two of them unless T is 1.
    """
    if not isinstance(learner, MetaLearner):
        return Layout("loop", "keep", 0)
    device = next(iter(state[0].values())).device.type
    separate, vmaps = _tried(learner, state, batch, vmap=tasks != "loop")
    one = batch[:1].map(torch.clone)  # a slice would keep all of the batch's storage
    first, step = _saved(learner, state, one, recompute=False)
    kept = first + (learner.steps - 1) * step
    if memory == "auto":
        fits = kept * (1 if separate else task_batch) <= _limit(KEPT_UP_TO, device)
        memory = "keep" if fits else "recompute"
    if tasks == "auto":
        # On a CPU all tasks at once save the overhead of many small operations. Where operations
        # are large, it costs memory and saves nothing.
        tasks = "vmap" if step <= SMALL or device != "cpu" else "loop"
    together = task_batch if tasks == "vmap" and vmaps else 1
    if separate or memory == "recompute":
        needed = kept if memory == "keep" else first
        most = _limit(AT_ONCE[memory], device) // max(needed, 1)
        groups = math.ceil(together / max(most, 1))
        together = math.ceil(together / groups)  # of equal size, or nearly
    if not vmaps or (together == 1 and task_batch > 1):
        tasks = "loop"
    at_once = together if separate else task_batch
    at_a_time = together if 1 < together < task_batch else None
    if memory == "keep":
        return Layout(tasks, memory, at_once * kept, separate, at_a_time)
    # In the backward pass the graph of one step exists at a time.
    base, more = _saved(learner, state, one, recompute=True)
    steps = learner.steps
    if steps > MANY_STEPS and not learner.multi_step_iterations:
        steps = 2 * math.ceil(math.sqrt(steps))  # every √K-th, and those between two of them
    flat_bytes = at_once * (base + (steps - 1) * more)
    return Layout(tasks, memory, flat_bytes + together * max(step, first), separate, at_a_time)


def _limit(limits: dict[str, int], device: str) -> int:
    """The bytes for a kind of device; other accelerators are taken for GPUs."""
    return limits.get(device, limits["cuda"])


def _tried(
    learner: MetaLearner, state: tuple[Tensors, Tensors], batch: TaskBatch, *, vmap: bool
) -> tuple[bool, bool]:
    """Whether the tasks of a batch share nothing, and whether the model can be computed for several
    at once, in training and evaluation.
    """
    summed = False

    def sum_over_tasks(tensors: Tensors) -> Tensors:
        nonlocal summed
        summed = True
        return sum_over_local_tasks(tensors)

    meta, carried = state
    tried = learner.laid_out(tasks_at_a_time=None if vmap else 1, recompute=False)
    device = first_leaf(batch.support_x).device
    random = random_state(device)

    def losses(batch: TaskBatch) -> Tensor:
        set_random_state(random, device)
        return tried.outer_step(
            meta, carried, batch, iteration=0, sum_over_tasks=sum_over_tasks
        ).losses

    with torch.no_grad():
        found = losses(batch)
        # A rule may mix tasks without `sum_over_tasks`: by a mean over the first dimension.
        alike = batch.map(lambda t: t[:1].repeat_interleave(len(t), 0))
        mixed = len(batch) > 1 and not torch.allclose(found[0], losses(alike)[0], equal_nan=True)
        if vmap:
            tried.predict(meta, tried.adapt(meta, carried, batch), batch)
    separate = (
        not (summed or mixed or carried)
        # Another outer objective may compare the tasks of a batch.
        and type(learner).outer_step is MetaLearner.outer_step
    )
    same_sizes = batch.support_n is None and batch.query_n is None
    return separate, tried.network.vmaps and same_sizes


def _saved(
    learner: MetaLearner, state: tuple[Tensors, Tensors], task: TaskBatch, *, recompute: bool
) -> tuple[int, int]:
    """The bytes that autograd keeps for a meta-step on one task: with one inner step, and for each
    further one.
    """
    probe = copy.copy(learner.laid_out(tasks_at_a_time=1, recompute=recompute))
    # At the end of derivative-order annealing all is second order; the multi-step loss has the most
    # query passes at the start.
    iteration = 0 if probe.multi_step_iterations else probe.first_order_iterations
    if probe.multi_step_iterations:
        probe.first_order_iterations = 0
    found = []
    for steps in (1, min(2, learner.steps)):  # nothing is learned for steps beyond the last one
        probe.steps = steps
        held: weakref.WeakSet[_Held] = weakref.WeakSet()

        def pack(tensor: Tensor, held: weakref.WeakSet[_Held] = held) -> _Held:
            saved = _Held(tensor.detach())  # with its own node a graph would never be freed
            held.add(saved)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            step = probe.outer_step(*state, task, iteration=iteration)
        storages = (saved.tensor.untyped_storage() for saved in held)
        found.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))
        del step  # up to here it keeps the graph
    return found[0], max(found[1] - found[0], 0)


@dataclass(eq=False)
class _Held:
    """A tensor for as long as a graph has it."""

    tensor: Tensor


def tensor_bytes(tensors: Tensors) -> int:
    """The bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
