"""Reptile (Nichol et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from gradshare.errors import ConfigError
from gradshare.inner_loop import (
    SGD,
    Chain,
    SumOverTasks,
    Tensors,
    UpdateRule,
    sum_over_local_tasks,
)
from gradshare.methods.learner import Adapted, Loss, OuterStep
from gradshare.methods.meta_learner import MetaLearner
from gradshare.methods.network import Precision
from gradshare.models import BatchNormMode
from gradshare.tasks.batch import TaskBatch, Tree, first_leaf


class Reptile(MetaLearner):
    """A meta-learner that moves the initialisation towards adapted parameters; see `reptile`."""

    def __init__(
        self, model: nn.Module, rule: UpdateRule, *, inner_lr: float, **options: Any
    ) -> None:
        super().__init__(model, rule, **options)
        if inner_lr == 0:
            raise ConfigError("inner_lr is 0, and Reptile's gradient is divided by it; give more")
        self.inner_lr = inner_lr

    def outer_step(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        iteration: int,
        sum_over_tasks: SumOverTasks = sum_over_local_tasks,
    ) -> OuterStep:
        """The objective ‖θ - φ_t‖² / (2 α), whose gradient is Reptile's; see `Learner`.

        The reported losses are of the queries, which the inner loop has adapted to.
        """
        adaptation = self._adapt(
            meta,
            carried,
            with_queries(tasks),
            steps=self.steps,
            second_order=False,
            sum_over_tasks=sum_over_tasks,
        )
        params = {name: t.detach() for name, t in adaptation.params[self.steps].items()}
        start = self.start(meta, tasks, training=True)
        differences = (start[name] - t for name, t in params.items())
        squares = torch.stack([d.square().reshape(len(d), -1).sum(1) for d in differences]).sum(0)
        with torch.no_grad():
            losses, outputs = self._query_losses(meta, Adapted(params, self.steps), tasks)
        return OuterStep(squares / (2 * self.inner_lr), losses, outputs, adaptation.carried)


def with_queries(tasks: TaskBatch) -> TaskBatch:
    """The same tasks, with the queries as further examples of the support set."""
    T, n, q = len(tasks), *(first_leaf(x).shape[1] for x in (tasks.support_x, tasks.query_x))
    sizes = list(zip(tasks.support_n or [n] * T, tasks.query_n or [q] * T, strict=True))

    def joined(support: Tree, queries: Tree) -> Tree:
        if isinstance(support, Mapping):
            return {key: joined(value, queries[key]) for key, value in support.items()}
        if isinstance(support, tuple):
            return tuple(joined(*parts) for parts in zip(support, queries, strict=True))
        pairs = zip(support, queries, sizes, strict=True)
        return pad_sequence([torch.cat([a[:s], b[:u]]) for a, b, (s, u) in pairs], True)

    totals = [s + u for s, u in sizes]
    return replace(
        tasks,
        support_x=joined(tasks.support_x, tasks.query_x),
        support_y=joined(tasks.support_y, tasks.query_y),
        support_n=totals if len(set(totals)) > 1 else None,
    )


def reptile(
    model: nn.Module,
    *,
    steps: int = 5,
    inner_lr: float = 0.1,
    rule: UpdateRule | None = None,
    loss: Loss = F.cross_entropy,
    batch_norm: BatchNormMode = "auto",
    precision: Precision = "float32",
) -> Reptile:
    """Reptile (Nichol et al., 2018): move the initialisation towards what K steps lead to.

    With the initialisation θ and the parameters φ_t after the K steps of task t, the outer
    optimiser gets this gradient by θ:

        (1/T) Σ_t (θ - φ_t) / α

    Reptile takes first derivatives only. So memory does not grow with K, and what a rule learns
    would get no gradient; for the same reason Reptile does not share gradients. In training the
    inner loop adapts to all examples of a task. The training loss and accuracy are of its queries,
    which it has adapted to. Validation and test adapt to the support set alone.

    All parameters are adapted, batch norm's γ and β too, as in the reference code. That code draws
    minibatches of a task's examples for its inner steps, and does not reset the inner Adam (with
    β₁ = 0) between tasks. Here each step takes all examples, and a rule such as `Adam(beta1=0)`
    starts anew in each task. The reference's outer step is SGD with a rate that falls linearly.

    Args:
        model: see `maml`.
        steps: K, the number of inner steps.
        inner_lr: α.
        rule: your own rule, before the multiplication by α.
        loss: the inner loss of one task.
        batch_norm: see `MetaLearner`.
        precision: see `MetaLearner`.

    Raises:
        ConfigError: inner_lr is not a finite number above 0.
    """
    return Reptile(
        model,
        Chain(rule=rule, sgd=SGD(inner_lr)),
        inner_lr=inner_lr,
        steps=steps,
        loss=loss,
        batch_norm=batch_norm,
        precision=precision,
        adapts=lambda _: True,
    )
