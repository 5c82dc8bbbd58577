"""The losses of a batch of tasks, from a loss of one task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.errors import ConfigError, is_out_of_memory
from gradshare.methods.learner import Loss
from gradshare.tasks.batch import Tree, each_task, put_together

IGNORED = -100  # by `torch.nn.functional.cross_entropy`


class TaskLosses:
    """Computes the losses of all tasks at once by `torch.vmap` if the loss allows it.

    Args:
        loss: of one task.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.vmaps = True  # until a call shows that it doesn't

    def __call__(
        self, outputs: Tensor, targets: Tree, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """(T, n, …) outputs and targets to (T,) losses.

        Args:
            outputs: (T, n, …).
            targets: (T, n, …), a tree of tensors.
            sizes: T numbers of real examples; None if there is no padding.

        Raises:
            ConfigError: the loss of a task is not a scalar tensor.
        """
        if self.loss is F.cross_entropy and sizes is None and _are_classes(targets, outputs):
            # As by vmap, in a tenth of its overhead.
            each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
            counted = (targets != IGNORED).sum(1)
            return each.view(targets.shape).sum(1) / counted
        if self.vmaps and sizes is None and len(outputs) > 1:
            try:
                return torch.vmap(self._of_task)(outputs, targets)
            except RuntimeError as error:  # perhaps the loss's own, which the loop raises again
                if is_out_of_memory(error):
                    raise
                self.vmaps = False
        return put_together(each_task(self._of_task, outputs, targets, sizes))

    def _of_task(self, outputs: Tensor, targets: Tree) -> Tensor:
        loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(
                "the loss of a task must be a tensor of shape (), and "
                f"{getattr(self.loss, '__name__', type(self.loss).__name__)} returned {found}; "
                "give one that takes the mean (reduction='mean')"
            )
        return loss


def _are_classes(targets: Tree, outputs: Tensor) -> TypeGuard[Tensor]:
    """Whether outputs (T, n, C) are scores and targets (T, n) class numbers."""
    return (
        isinstance(targets, Tensor)
        and targets.dtype == torch.int64
        and outputs.ndim == 3
        and targets.shape == outputs.shape[:2]
    )
