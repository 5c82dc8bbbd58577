"""One outer iteration: the outer gradient of a task batch and a step of the optimiser (Eq. 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradshare.inner_loop import Tensors
from gradshare.methods import Learner, OuterStep
from gradshare.methods.learner import joined
from gradshare.tasks import TaskBatch
from gradshare.training.distributed import OneProcess, Share
from gradshare.training.metrics import LOSS, Metric


@dataclass(frozen=True)
class IterationResult:
    """The result of an outer iteration.

    Attributes:
        carried: the rules' carried tensors after it.
        metrics: the mean of each metric over the tasks of all processes, the outer loss among them.
        refused: why the outer step was not taken; None if it was. A refused step leaves the
            meta-parameters, the optimiser and the carried tensors as they were.
    """

    carried: Tensors
    metrics: dict[str, float]
    refused: str | None = None


def outer_iteration(
    learner: Learner,
    meta: Tensors,
    carried: Tensors,
    optimizer: torch.optim.Optimizer,
    tasks: TaskBatch,
    *,
    iteration: int,
    metrics: Mapping[str, Metric],
    clamp_gradients: float | None = None,
    clip_norm: float | None = None,
    share: Share | None = None,
) -> IterationResult:
    """Take one outer step on prepared tasks, in place in `meta` and `optimizer`: the same step in
    each process that shares the batch.

    Args:
        iteration: the number of iterations before this one.
        metrics: measured on the queries, besides the outer loss.
        clamp_gradients: clamp each entry of the model's gradient to ± this (the reference code: 10
            on mini-ImageNet). The gradients of what rules learn are never clamped.
        clip_norm: scale the whole gradient down to this norm if it is longer.
        share: this process's share of a batch, which `tasks` are; None for a whole batch.
    """
    share = share or OneProcess().share(range(len(tasks)))
    own_gradients, objective, step = outer_gradient(
        learner, meta, carried, tasks, iteration=iteration, share=share
    )
    measured = {LOSS: step.losses}
    for name, metric in metrics.items():
        if name != LOSS:
            measured[name] = metric.values(step.outputs, tasks.query_y, tasks.query_n)
    means = [share.part_of_mean(values).to(objective) for values in measured.values()]
    *gradients, total, sums = share.processes.total([*own_gradients, objective, torch.stack(means)])
    finite = torch.stack([gradient.isfinite().all() for gradient in gradients])
    # One wait for the device.
    loss, *values = torch.cat([total[None], sums, finite.to(sums.dtype)]).tolist()
    found, all_finite = dict(zip(measured, values, strict=False)), values[len(measured) :]
    refused = None
    if not math.isfinite(loss):
        refused = f"the outer loss is {loss}"
    elif not all(all_finite):
        name = list(meta)[all_finite.index(0.0)]
        refused = f"the outer gradient of {name} is not finite"
    if refused is not None:
        return IterationResult(carried, found, refused)
    of_model = getattr(learner, "is_model_parameter", None)
    for (name, tensor), gradient in zip(meta.items(), gradients, strict=True):
        tensor.grad = gradient
        if clamp_gradients is not None and (of_model is None or of_model(name)):
            tensor.grad = gradient.clamp(-clamp_gradients, clamp_gradients)
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(meta.values(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return IterationResult(step.carried, found)


def outer_gradient(
    learner: Learner,
    meta: Tensors,
    carried: Tensors,
    tasks: TaskBatch,
    *,
    iteration: int,
    share: Share,
) -> tuple[Sequence[Tensor], Tensor, OuterStep]:
    """What a process adds to the outer gradient and to the mean objective.

    Where tasks share nothing, the graph of each part of the batch is freed before the next one is
    built. Arguments as for `outer_iteration`.

    Returns:
        The gradients of the meta-parameters, the objective, and the outer step without its graph.
    """
    gradients: Sequence[Tensor] = []
    terms: list[Tensor] = []
    steps: list[OuterStep] = []
    for part in learner.parts(tasks) if hasattr(learner, "parts") else [slice(None)]:
        step = learner.outer_step(
            meta, carried, tasks[part], iteration=iteration, sum_over_tasks=share.sum_over_tasks
        )
        term = share.part_of_mean(step.objective)
        found = torch.autograd.grad(
            term, list(meta.values()), allow_unused=True, materialize_grads=True
        )
        gradients = [a + b for a, b in zip(gradients, found, strict=True)] if steps else found
        terms.append(term.detach())
        steps.append(replace(step, objective=step.objective.detach(), losses=step.losses.detach()))
    return gradients, torch.stack(terms).sum(), joined(steps)
