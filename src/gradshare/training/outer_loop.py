"""One outer iteration: the meta-gradient of a task batch and a step of Adam (Eq. 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner
from gradshare.methods.meta_learner import MODEL
from gradshare.tasks import TaskBatch
from gradshare.training.distributed import OneProcess, Share


@dataclass(frozen=True)
class IterationResult:
    """What an outer iteration saw.

    Attributes:
        state: the rules' state after it.
        loss: the mean outer loss over the tasks of all processes.
        accuracy: of their queries after adaptation.
        refused: why the outer step was not taken, None if it was. A refused step leaves the outer
            parameters, the optimiser and the rules' state as they were.
    """

    state: Tensors
    loss: float
    accuracy: float
    refused: str | None = None


def make_optimizer(learned: Tensors, lr: float) -> torch.optim.Adam:
    """Adam with default hyperparameters over every outer parameter alike (Appendix A.3)."""
    return torch.optim.Adam(learned.values(), lr=lr)


def outer_iteration(
    learner: MetaLearner,
    learned: Tensors,
    state: Tensors,
    optimizer: torch.optim.Optimizer,
    tasks: TaskBatch,
    *,
    iteration: int,
    clamp_gradients: float | None,
    share: Share | None = None,
) -> IterationResult:
    """Take one outer step on a task batch, in place in `learned` and `optimizer`: the same one on
    every process that shares the batch.

    Args:
        learner: the method.
        learned: the outer parameters, leaves.
        state: the rules' state.
        optimizer: over `learned`.
        tasks: normalised images.
        iteration: how many iterations came before.
        clamp_gradients: clamps each entry of the model's gradient to ± this.
        share: whose `tasks` these are of a batch that several processes share; None for a whole
            batch.
    """
    share = share or OneProcess().share(range(len(tasks)))
    step = learner.outer_step(
        learned, state, tasks, iteration=iteration, sum_over_tasks=share.sum_over_tasks
    )
    loss = share.part_of_mean(step.losses)
    own_gradients = torch.autograd.grad(
        loss, list(learned.values()), allow_unused=True, materialize_grads=True
    )
    own_accuracy = share.part_of_mean(accuracies(step.outputs, tasks.query_y))
    *gradients, loss, right = share.processes.total([*own_gradients, loss.detach(), own_accuracy])
    loss_value, accuracy = loss.item(), right.item()
    not_finite = [
        name
        for name, gradient in zip(learned, gradients, strict=True)
        if not bool(gradient.isfinite().all())
    ]
    refused = None
    if not math.isfinite(loss_value):
        refused = f"the outer loss is {loss_value}"
    elif not_finite:
        refused = f"the outer gradient of {not_finite[0]} is not finite"
    if refused is not None:
        return IterationResult(state, loss_value, accuracy, refused)
    for (name, tensor), gradient in zip(learned.items(), gradients, strict=True):
        tensor.grad = gradient
        if clamp_gradients is not None and name.startswith(f"{MODEL}."):
            tensor.grad = gradient.clamp(-clamp_gradients, clamp_gradients)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return IterationResult(step.state, loss_value, accuracy)


def accuracies(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of each task's images that are classified right: (T, n, ways), (T, n) to (T,).

    Logits that are not finite name no class, and so are wrong.
    """
    right = (logits.argmax(-1) == targets) & logits.isfinite().all(-1)
    return right.double().mean(-1)


def cosine_annealed(start: float, end: float, done: float) -> float:
    """The learning rate after a share `done` of the run, from `start` to `end` along a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
