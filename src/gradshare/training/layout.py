"""The layout of a run's work on its machine.

A layout changes speed and memory, and results by rounding only. It depends on the learner, the
shapes of its tasks and the kind of device, never on measured time or free memory, so that the same
command gives the same numbers tomorrow. It is written into the run's folder before the first
iteration, and a resumed run reads it there.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradshare.inner_loop import Tensors
from gradshare.methods import Learner, MetaLearner
from gradshare.tasks import TaskBatch

GIB = 1 << 30
# Graphs are kept if they need at most this much. On a CPU several runs share the machine.
KEPT_UP_TO = {"cpu": 4 * GIB, "cuda": 16 * GIB}

Tasks = Literal["auto", "loop", "vmap"]
Memory = Literal["auto", "keep", "recompute"]


@dataclass(frozen=True)
class Layout:
    """The layout of a run's work.

    Attributes:
        tasks: whether the tasks of a batch are computed one after the other or all at once.
        memory: whether the graph of each inner step is kept for the backward pass, or built again
            in it.
        bytes: an estimate of the peak memory of the graphs.
    """

    tasks: Literal["loop", "vmap"]
    memory: Literal["keep", "recompute"]
    bytes: int

    def applied(self, learner: Learner) -> Learner:
        """The learner in this layout; as it is, if it has no `laid_out`."""
        laid_out = getattr(learner, "laid_out", None)
        if laid_out is None:
            return learner
        return laid_out(  # type: ignore[no-any-return]
            tasks_at_a_time=None if self.tasks == "vmap" else 1,
            recompute=self.memory == "recompute",
        )

    def describe(self) -> str:
        """The layout in one line."""
        tasks = {"loop": "tasks one at a time (loop)", "vmap": "tasks all at once (vmap)"}
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
        learner: the method.
        state: its meta-parameters and carried tensors.
        batch: prepared tasks, at least two if T is.
        task_batch: T.
        tasks: as for `fit`.
        memory: as for `fit`.
    """
    if not isinstance(learner, MetaLearner):
        return Layout("loop", "keep", 0)
    device = next(iter(state[0].values())).device.type
    one = batch[:1].map(torch.clone)  # a slice would keep all of the batch's storage
    kept = _peak(learner, state, one, task_batch, recompute=False)
    if memory == "auto":
        fits = kept <= KEPT_UP_TO.get(device, KEPT_UP_TO["cuda"])
        memory = "keep" if fits else "recompute"
    if tasks == "auto":
        # Where graphs are kept, all tasks at once are faster on small inputs and no slower on large
        # ones. Where they are not, one task at a time keeps memory flat in the task batch, while on
        # a GPU many small kernels would cost more than that saves.
        flat = memory == "recompute" and device == "cpu"
        tasks = "loop" if flat else "vmap"
    if tasks == "vmap" and not _vmaps(learner, state, batch):
        tasks = "loop"
    if memory == "recompute":
        together = 1 if tasks == "loop" else task_batch
        kept = _peak(learner, state, one, task_batch, recompute=True, together=together)
    return Layout(tasks, memory, kept)


def _vmaps(learner: MetaLearner, state: tuple[Tensors, Tensors], batch: TaskBatch) -> bool:
    """Whether the model can be computed for several tasks at once, in training and evaluation."""
    together = learner.laid_out(tasks_at_a_time=None, recompute=False)
    with torch.no_grad():
        together.outer_step(*state, batch, iteration=0)
        together.predict(state[0], together.adapt(*state, batch), batch)
    return together.network.vmaps and batch.support_n is None and batch.query_n is None


def _peak(
    learner: MetaLearner,
    state: tuple[Tensors, Tensors],
    task: TaskBatch,
    task_batch: int,
    *,
    recompute: bool,
    together: int = 1,
) -> int:
    """The bytes of the graphs of a meta-step, extrapolated from one task and one and two inner
    steps. Where graphs are recomputed, that of one step of `together` tasks comes on top.
    """
    # What is learned for each step does not exist beyond the last one.
    measured = (1, min(2, learner.steps))
    one, two = (_saved(learner, state, task, steps, recompute=recompute) for steps in measured)
    each_step = max(two - one, 0)
    everything = task_batch * (one + (learner.steps - 1) * each_step)
    if recompute:
        kept = [_saved(learner, state, task, steps, recompute=False) for steps in measured]
        everything += together * max(kept[1] - kept[0], kept[0])
    return everything


def _saved(
    learner: MetaLearner,
    state: tuple[Tensors, Tensors],
    task: TaskBatch,
    steps: int,
    *,
    recompute: bool,
) -> int:
    """The bytes that autograd keeps for the backward pass of a step on one task."""
    probe = copy.copy(learner.laid_out(tasks_at_a_time=1, recompute=recompute))
    probe.steps = steps
    # At the end of derivative-order annealing all is second order; the multi-step loss has the most
    # query passes at the start.
    iteration = 0 if probe.multi_step_loss is not None else probe.first_order_iterations
    if probe.multi_step_loss is not None:
        probe.first_order_iterations = 0
    held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Held:
        saved = _Held(tensor)
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        step = probe.outer_step(*state, task, iteration=iteration)
    storages = {s.tensor.untyped_storage().data_ptr(): s.tensor.untyped_storage() for s in held}
    del step  # up to here it keeps the graph
    return sum(storage.nbytes() for storage in storages.values())


@dataclass(eq=False)
class _Held:
    """A tensor for as long as a graph has it."""

    tensor: Tensor


def tensor_bytes(tensors: Tensors) -> int:
    """The bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
