"""What `gradshare.fit` can train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError, DataError
from gradshare.inner_loop import SumOverTasks, Tensors, sum_over_local_tasks
from gradshare.tasks import TaskBatch

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) of one task to a scalar."""


@dataclass(frozen=True)
class OuterStep:
    """The outer objective of one task batch.

    Attributes:
        objective: (T,) values whose mean over tasks is differentiated.
        losses: (T,) values that are reported; often the same.
        outputs: (T, queries, …) the model's outputs for the queries after the last inner step,
            detached.
        carried: the rule's new carried tensors, detached; dropped if the outer step is refused.
    """

    objective: Tensor
    losses: Tensor
    outputs: Tensor
    carried: Tensors


ABSENT = -1e9
"""The output for a class that a task lacks, but others of its batch have. It is never predicted."""


def joined(parts: Sequence[OuterStep]) -> OuterStep:
    """Join the outer steps of parts of a batch whose tasks share nothing."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.outputs.shape[-1] for part in parts)
    outputs = [F.pad(y, (0, width - y.shape[-1]), value=ABSENT) for y in (p.outputs for p in parts)]
    return OuterStep(
        torch.cat([part.objective for part in parts]),
        torch.cat([part.losses for part in parts]),
        torch.cat(outputs),
        parts[-1].carried,
    )


class Learner(Protocol):
    """A learner for `gradshare.fit`. It keeps nothing that changes: the meta-parameters and the
    carried tensors are passed and returned.

    It may have more: `loss` (from one task's outputs and targets to a scalar; the default metric),
    `report(meta)` (learned quantities by name, with a value for each inner step), `laid_out(…)`,
    `parts(tasks)` and `is_model_parameter(name)` (see `MetaLearner`; without the last one
    `clamp_gradients` clamps all meta-parameters).
    """

    def init(self) -> tuple[dict[str, Tensor], Tensors]:
        """The meta-parameters, as leaves that require gradients, and the carried tensors, before
        any training.
        """
        ...

    def outer_step(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        iteration: int,
        sum_over_tasks: SumOverTasks = sum_over_local_tasks,
    ) -> OuterStep:
        """The outer objective of a task batch, differentiable in the meta-parameters."""
        ...

    def adapt(
        self, meta: Tensors, carried: Tensors, tasks: TaskBatch, *, steps: int | None = None
    ) -> Any:
        """Adapt to the support sets of tasks, each independently of the others.

        Called under `torch.no_grad()`: compute gradients within `torch.enable_grad()`.
        """
        ...

    def predict(self, meta: Tensors, adapted: Any, tasks: TaskBatch) -> Tensor:
        """The (T, queries, …) outputs for the queries, from what `adapt` returned."""
        ...


@dataclass(frozen=True)
class Adapted:
    """Adapted tasks: their parameters (T, …), and the number of inner steps that were taken."""

    params: Tensors
    updates: int


def require_state(
    shapes: Sequence[Mapping[str, torch.Size]], meta: Tensors, carried: Tensors
) -> None:
    """Raise ConfigError unless a learner's state has the names and shapes that its `init` gives it.

    Of longer tensors the first steps would be used, and others be broadcast, without an error.

    Args:
        shapes: of the meta-parameters and of the carried tensors; empty before `init` was called.
        meta: the meta-parameters.
        carried: the carried tensors.
    """
    kinds = ("meta-parameter", "carried tensor")
    for kind, tensors, wanted in zip(kinds, (meta, carried), shapes, strict=False):
        for name, shape in wanted.items():
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            if found != shape:
                raise ConfigError(
                    f"the {kind} {name!r} is {found}, this learner has one of {tuple(shape)}; give "
                    "what this learner's `init` returned, or a checkpoint of the same method and "
                    "model"
                )


def require_labels(loss: Loss, tasks: TaskBatch) -> None:
    """Raise DataError if cross entropy ignores all support examples of a task, since the task would
    not be adapted.
    """
    if loss is not F.cross_entropy and not isinstance(loss, nn.CrossEntropyLoss):
        return
    y = tasks.support_y
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_cuda:  # which would be waited for
        return
    label = getattr(loss, "ignore_index", -100)
    ignored = y == label
    if tasks.support_n is not None:
        padding = torch.arange(y.shape[1]) >= torch.tensor(tasks.support_n)[:, None]
        ignored |= padding.view(*padding.shape, *(1,) * (y.ndim - 2))
    empty = ignored.flatten(1).all(1)
    if empty.any():
        raise DataError(
            f"all support labels of task {int(empty.int().argmax()) + 1} are {label}, which cross "
            "entropy ignores; label at least one example"
        )
