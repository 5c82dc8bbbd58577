"""The inner loop: K gradient steps on the support sets of a batch of tasks, differentiably.

All tasks of a batch take step k together, because gradient sharing couples them there. They are
held as one tree of (T, …) tensors; how their losses are computed from it (a loop, vmap, several
processes) is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gradshare.errors import ConfigError
from gradshare.inner_loop.attention import twice_differentiable
from gradshare.inner_loop.flat_memory import (
    TaskLosses,
    gradients_of_chunk,
    recomputed_gradients,
)
from gradshare.inner_loop.rule import (
    SumOverTasks,
    Tensors,
    UpdateRule,
    require_steps,
    step_of,
)


@dataclass(frozen=True)
class Adaptation:
    """What the inner loop returns.

    Attributes:
        params: θ_{t,0}, …, θ_{t,K}: K + 1 trees of (T, …) tensors.
        state: the rule's new state, detached: no later iteration's graph reaches into this one's.
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
    shared: Callable[[int], Tensors] = lambda _: {},
    chunks: Sequence[slice] = (slice(None),),
    recompute: bool = False,
    buffers: Callable[[], Tensors] = dict,
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
        shared: what the losses of inner step k, from 0, depend on besides `params`.
        chunks: which tasks are handed to `support_losses` together; by default all.
        recompute: let each step's graph go and build it again in the backward pass; see
            `gradshare.inner_loop.flat_memory`.
        buffers: copies of what the losses may change in place, by the names under which they take
            it, as it was, among what is shared; for `recompute` alone.

    Raises:
        ConfigError: the rule is made for another number of steps, or returns what does not fit the
            gradients; or under `torch.inference_mode`.
    """
    require_steps(rule, steps)
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "the inner loop takes gradients, which torch.inference_mode() does not allow; use "
            "torch.no_grad()"
        )
    trajectory = [params]
    for step in range(steps):
        gradients = task_gradients(
            support_losses,
            params,
            shared(step),
            chunks,
            second_order=second_order,
            recompute=recompute,
            buffers=buffers,
        )
        updates, state = step_of(rule, gradients, learned, state, step, sum_over_tasks)
        params = {name: tensor - updates[name] for name, tensor in params.items()}
        trajectory.append(params)
    state = {name: t.detach() if t.requires_grad else t for name, t in state.items()}
    return Adaptation(trajectory, state)


def task_gradients(
    losses: TaskLosses,
    params: Tensors,
    shared: Tensors,
    chunks: Sequence[slice],
    *,
    second_order: bool,
    recompute: bool,
    buffers: Callable[[], Tensors] = dict,
) -> Tensors:
    """∇_{θ_{t,k-1}} L_t^train(θ_{t,k-1}) for all tasks t at once. Arguments as of `adapt`.

    Returns:
        The (T, …) gradients: differentiable if `second_order`, constants if not.
    """
    second_order = second_order and torch.is_grad_enabled()
    if second_order:
        losses = twice_differentiable(losses)
    if second_order and recompute:
        return recomputed_gradients(losses, params, shared, chunks, buffers)
    gradients = []
    with torch.enable_grad():
        for chunk in chunks:
            part = {name: tensor[chunk] for name, tensor in params.items()}
            # What the outer loop does not learn, such as a frozen layer, is adapted too.
            part = {
                name: t if second_order and t.requires_grad else t.detach().requires_grad_()
                for name, t in part.items()
            }
            values = losses(part, shared, chunk)
            gradients.append(gradients_of_chunk(values, part, create_graph=second_order))
    joined = (torch.cat(parts) for parts in zip(*gradients, strict=True))
    return dict(zip(params, joined, strict=True))
