"""The inner loop: K gradient steps on the support sets of a batch of tasks, differentiably.

All tasks of a batch take step k together, because gradient sharing couples them there. They are
held as one tree of (T, …) tensors; how the T losses are computed from it (a loop, vmap, several
processes) is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradshare.inner_loop.rule import SumOverTasks, Tensors, UpdateRule

TaskLosses = Callable[[Tensors, int], Tensor]
"""(T, …) parameters and the inner step, from 0, to the (T,) support losses of the tasks."""


@dataclass(frozen=True)
class Adaptation:
    """What the inner loop returns.

    Attributes:
        params: θ_{t,0}, …, θ_{t,K}: K + 1 trees of (T, …) tensors.
        state: the rule's new state.
    """

    params: list[Tensors]
    state: Tensors


def adapt(
    support_losses: TaskLosses,
    params: Tensors,
    rule: UpdateRule,
    learned: Tensors,
    state: Tensors,
    *,
    steps: int,
    second_order: bool,
    sum_over_tasks: SumOverTasks | None,
) -> Adaptation:
    """Adapt every task of a batch with `steps` updates of a rule (the loop over k of Algorithms
    1 and 2).

    Args:
        support_losses: the tasks' losses; differentiable.
        params: (T, …) where the tasks start: the initialisation, once for each task.
        rule: turns task gradients into updates.
        learned: the rule's outer parameters.
        state: the rule's state.
        steps: K.
        second_order: whether task gradients are differentiated by the outer loop, or are
            constants to it (first-order MAML; m, λ and learned rates still learn).
        sum_over_tasks: given while meta-training, None while meta-testing; see `UpdateRule`.
    """
    trajectory = [params]
    for step in range(steps):
        gradients = task_gradients(support_losses, params, step, second_order=second_order)
        updates, state = rule.update(gradients, learned, state, step, sum_over_tasks)
        params = {name: tensor - updates[name] for name, tensor in params.items()}
        trajectory.append(params)
    return Adaptation(trajectory, state)


def task_gradients(
    support_losses: TaskLosses, params: Tensors, step: int, *, second_order: bool
) -> Tensors:
    """∇_{θ_{t,k-1}} L_t^train(θ_{t,k-1}) for all tasks t at once.

    Each task's loss depends on its own slice of `params` only, so the gradient of their sum is
    the stack of the tasks' gradients. A parameter that the loss does not use has gradient zero.

    Returns:
        The (T, …) gradients: with a graph if `second_order`, constants if not.
    """
    with torch.enable_grad():
        if not second_order:
            params = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        losses = support_losses(params, step)
        gradients = torch.autograd.grad(
            losses.sum(),
            list(params.values()),
            create_graph=second_order,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(params, gradients, strict=True))
