"""The inner loop: K gradient steps on the support sets of a batch of tasks, differentiably.

All tasks of a batch take step k together, because gradient sharing couples them there. They are
held as dictionaries of (T, …) tensors. How their losses are computed (a loop, vmap, several
processes) is up to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.inner_loop.attention import twice_differentiable
from gradshare.inner_loop.flat_memory import (
    TaskLosses,
    gradients_of_chunk,
    recomputed_gradients,
)
from gradshare.inner_loop.rule import Step, SumOverTasks, Tensors, UpdateRule, checked_update


@dataclass(frozen=True)
class Adaptation:
    """The result of the inner loop.

    Attributes:
        params: θ_{t,0}, …, θ_{t,K}: K + 1 dictionaries of (T, …) tensors.
        carried: the rule's carried tensors, detached from this iteration's graph.
    """

    params: list[Tensors]
    carried: Tensors


def adapt(
    support_losses: TaskLosses,
    params: Tensors,
    rule: UpdateRule,
    meta: Tensors,
    carried: Tensors,
    *,
    steps: int,
    trained_steps: int,
    second_order: bool,
    sum_over_tasks: SumOverTasks | None,
    shared: Callable[[int], Tensors] = lambda _: {},
    chunks: Sequence[slice] = (slice(None),),
    recompute: bool = False,
) -> Adaptation:
    """Adapt each task of a batch with `steps` updates of a rule (the loop over k of Algorithms
    1 and 2).

    Args:
        support_losses: returns the (t,) losses of some tasks, differentiably. It is called with
            their (t, …) parameters, the tensors that all tasks share, and the slice of the batch.
        params: (T, …) the parameters from which the tasks start.
        rule: turns task gradients into updates.
        meta: the rule's learned tensors.
        carried: the rule's carried tensors.
        steps: K, the steps to take.
        trained_steps: the number of steps that the rule was made for. Later steps use the tensors
            of the last of them.
        second_order: whether the outer loop differentiates task gradients. If not, they are
            constants (first-order MAML; m, λ and learned rates still learn).
        sum_over_tasks: given while meta-training, None while meta-testing; see `Step`.
        shared: the tensors that the losses of inner step k, from 0, depend on besides `params`.
        chunks: the tasks that `support_losses` computes together; by default all.
        recompute: free each step's graph and build it again in the backward pass.

    Raises:
        ConfigError: the rule returns other names or shapes than the gradients have; or it is
            called under `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "the inner loop takes gradients, which torch.inference_mode() does not allow; use "
            "torch.no_grad()"
        )
    # One parameter may start from another, as ProtoMAML's head from its body. As views they are
    # separate nodes of the graph, so that a gradient by one leaves out the path through the other.
    params = {name: tensor.view_as(tensor) for name, tensor in params.items()}
    trajectory: list[Tensors] = [params]
    task = rule.start(params)
    for k in range(steps):
        index = min(k, trained_steps - 1)
        gradients, losses = task_gradients(
            support_losses,
            params,
            shared(index),
            chunks,
            second_order=second_order,
            recompute=recompute,
        )
        step = Step(index, params, gradients, losses, sum_over_tasks)
        updates, carried, task = checked_update(rule, gradients, meta, carried, task, step)
        params = {name: tensor - updates[name] for name, tensor in params.items()}
        trajectory.append(params)
    carried = {name: t.detach() if t.requires_grad else t for name, t in carried.items()}
    return Adaptation(trajectory, carried)


def task_gradients(
    losses: TaskLosses,
    params: Tensors,
    shared: Tensors,
    chunks: Sequence[slice],
    *,
    second_order: bool,
    recompute: bool,
) -> tuple[Tensors, Tensor]:
    """∇_{θ_{t,k-1}} L_t^train(θ_{t,k-1}) of all tasks t at once. Arguments as for `adapt`.

    Returns:
        The (T, …) gradients and the losses (T,): differentiable if `second_order`, else constants.
    """
    second_order = second_order and torch.is_grad_enabled()
    if second_order:
        losses = twice_differentiable(losses)
    if second_order and recompute:
        return recomputed_gradients(losses, params, shared, chunks)
    gradients, values = [], []
    with torch.enable_grad():
        for chunk in chunks:
            part = {name: tensor[chunk] for name, tensor in params.items()}
            # A parameter that the outer loop does not learn, such as a frozen one, is adapted too.
            part = {
                name: t if second_order and t.requires_grad else t.detach().requires_grad_()
                for name, t in part.items()
            }
            value = losses(part, shared, chunk)
            gradients.append(gradients_of_chunk(value, part, create_graph=second_order))
            values.append(value if second_order else value.detach())
    joined = (torch.cat(parts) for parts in zip(*gradients, strict=True))
    return dict(zip(params, joined, strict=True)), torch.cat(values)
