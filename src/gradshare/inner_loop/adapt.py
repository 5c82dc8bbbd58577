"""The inner loop: K gradient steps on the support sets of a batch of tasks, differentiably.

All tasks of a batch take step k together, because gradient sharing couples them there. They are
held as dictionaries of (T, …) tensors. How their losses are computed (a loop, vmap, several
processes) is up to the caller.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.inner_loop.attention import unfused_attention
from gradshare.inner_loop.flat_memory import (
    LOSSES,
    Groups,
    LossesOfChunk,
    gradients_of_chunk,
    recomputed,
)
from gradshare.inner_loop.memory_order import in_order_of
from gradshare.inner_loop.rule import Step, SumOverTasks, Tensors, UpdateRule

# With more inner steps than this, memory='recompute' keeps the parameters of every √K-th step only,
# and computes each step three times instead of twice.
MANY_STEPS = 16


@dataclass(frozen=True)
class Adaptation:
    """The result of the inner loop.

    Attributes:
        params: θ_{t,k} by k, (T, …) tensors: of every step, or of the first and last one only.
        carried: the rule's carried tensors, detached from this iteration's graph.
    """

    params: Mapping[int, Tensors]
    carried: Tensors


def adapt(
    support_losses: LossesOfChunk,
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
    each_step: bool = True,
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
        shared: returns the tensors that the losses of inner step k, from 0 to `steps` - 1, depend
            on besides `params`.
        chunks: the tasks that `support_losses` computes together; by default all.
        recompute: free each step's graph and build it again in the backward pass.
        each_step: return the parameters after each step, and not only the last ones.

    Raises:
        ConfigError: the rule returns other names or shapes than the gradients have; or it is
            called under `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "the inner loop takes gradients, which torch.inference_mode() does not allow; use "
            "torch.no_grad()"
        )
    second_order = second_order and torch.is_grad_enabled()
    recompute = recompute and second_order

    def with_gradients(k: int, before: Groups) -> Groups:
        """Add the task gradients and losses of inner step k."""
        gradients, losses = task_gradients(
            support_losses,
            before["params"],
            before[f"shared {k}"],
            chunks,
            second_order=second_order,
            recompute=recompute and len(chunks) > 1,
        )
        return {**before, "gradients": gradients, LOSSES: {"support": losses}}

    def moved(k: int, before: Groups) -> Groups:
        """What inner step k changes, from its gradients and losses."""
        params, gradients = before["params"], before["gradients"]
        if k == 0:  # they are one tensor for all tasks, in another order than the gradients
            params = {name: in_order_of(t, gradients[name]) for name, t in params.items()}
        losses = before[LOSSES]["support"]
        step = Step(min(k, trained_steps - 1), params, gradients, losses, sum_over_tasks)
        params, carried, task = rule.descend(
            gradients, before["meta"], before["carried"], before["task"], step
        )
        return {"params": params, "carried": carried, "task": task, LOSSES: before[LOSSES]}

    def one_step(k: int, before: Groups) -> Groups:
        """What there is after inner step k."""
        if not recompute:
            changed = moved(k, with_gradients(k, before))
        elif len(chunks) == 1:
            changed = recomputed(lambda before: moved(k, with_gradients(k, before)), before)
        else:  # the gradients are recomputed chunk by chunk, and kept for the rule
            changed = recomputed(functools.partial(moved, k), with_gradients(k, before))
        return {**before, **changed}

    def several_steps(numbers: range, before: Groups) -> Groups:
        """What there is after several inner steps."""
        for k in numbers:
            before = one_step(k, before)
        return before

    initial: dict[str, Tensor] = {}
    for name, tensor in params.items():
        if tensor.requires_grad or not second_order:
            # One parameter may start from another, as ProtoMAML's head from its body. As views they
            # are separate nodes of the graph: a gradient by one omits the path through the other.
            initial[name] = tensor.view_as(tensor)
        else:  # the outer loop does not learn it, but the inner loop adapts it
            initial[name] = tensor.detach().requires_grad_()
    task = rule.start(initial)
    state: Groups = {"params": initial, "meta": meta, "carried": carried, "task": task}
    trajectory: dict[int, Tensors] = {0: initial}
    stride = 1 if each_step or not recompute or steps <= MANY_STEPS else math.isqrt(steps - 1) + 1
    for first in range(0, steps, stride):
        numbers = range(first, min(first + stride, steps))
        function = functools.partial(several_steps, numbers)
        before = {**state, **{f"shared {k}": shared(k) for k in numbers}}
        after = recomputed(function, before) if stride > 1 else function(before)
        state = {name: after[name] for name in state}
        if each_step or numbers.stop == steps:
            trajectory[numbers.stop] = state["params"]
    # A tensor that the rule left alone stays the same object, by which the layout recognises it.
    left = {name: t.detach() if t.requires_grad else t for name, t in state["carried"].items()}
    return Adaptation(trajectory, left)


def task_gradients(
    losses: LossesOfChunk,
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

    def of_chunk(chunk: slice, inputs: Groups) -> Groups:
        params = inputs["params"]
        # The first pass of `recomputed` builds no graph.
        differentiable = second_order and torch.is_grad_enabled()
        if not differentiable:
            params = {name: t.detach().requires_grad_() for name, t in params.items()}
        attention = unfused_attention() if second_order else contextlib.nullcontext()
        with torch.enable_grad(), attention:
            values = losses(params, inputs["shared"], chunk)
            gradients = gradients_of_chunk(values, params, create_graph=differentiable)
        values = values if differentiable else values.detach()
        return {"gradients": dict(zip(params, gradients, strict=True)), LOSSES: {"support": values}}

    parts = []
    for chunk, own in zip(chunks, split_by_task(params, chunks), strict=True):
        function, inputs = functools.partial(of_chunk, chunk), {"params": own, "shared": shared}
        parts.append(recomputed(function, inputs) if recompute else function(inputs))
    gradients = {n: joined_tasks([part["gradients"][n] for part in parts]) for n in params}
    return gradients, joined_tasks([part[LOSSES]["support"] for part in parts])


def split_by_task(params: Tensors, chunks: Sequence[slice]) -> list[dict[str, Tensor]]:
    """The parameters of each chunk's tasks.

    One `torch.split` takes all chunks, since the backward pass of each `tensor[chunk]` would fill a
    tensor of all tasks.
    """
    if len(chunks) == 1:
        return [dict(params)]
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    apart = {name: torch.split(tensor, sizes) for name, tensor in params.items()}
    return [{name: parts[i] for name, parts in apart.items()} for i in range(len(chunks))]


def joined_tasks(parts: Sequence[Tensor]) -> Tensor:
    """The tensors of several chunks as one, (T, …)."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
