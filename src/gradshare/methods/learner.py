"""What `gradshare.fit` can train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

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


class Learner(Protocol):
    """A learner for `gradshare.fit`. It keeps nothing that changes: the meta-parameters and the
    carried tensors are passed and returned.

    It may have more: `loss` (from one task's outputs and targets to a scalar; the default metric),
    `report(meta)` (learned quantities by name, with a value for each inner step), `laid_out(…)` and
    `is_model_parameter(name)` (see `MetaLearner`; without the latter `clamp_gradients` clamps all
    meta-parameters).
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
