"""The losses of a batch of tasks, from a loss of one task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradshare.errors import ConfigError, is_out_of_memory
from gradshare.methods.learner import Loss
from gradshare.tasks.batch import each_task, put_together


class TaskLosses:
    """Computes the losses of all tasks at once by `torch.vmap` if the loss allows it.

    Args:
        loss: of one task.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.vmaps = True  # as far as is known

    def __call__(self, outputs: Tensor, targets: Any, sizes: Any = None) -> Tensor:
        """(T, n, …) outputs and targets to (T,) losses.

        Args:
            outputs: of all tasks.
            targets: of all tasks.
            sizes: T numbers of real examples; None for all.

        Raises:
            ConfigError: the loss of a task is not a scalar tensor.
        """
        if self.vmaps and sizes is None and len(outputs) > 1:
            try:
                return torch.vmap(self._of_task)(outputs, targets)
            except RuntimeError as error:  # perhaps the loss's own, which the loop raises again
                if is_out_of_memory(error):
                    raise
                self.vmaps = False
        return put_together(each_task(self._of_task, outputs, targets, sizes))

    def _of_task(self, outputs: Tensor, targets: Any) -> Tensor:
        loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(
                "the loss of a task must be a tensor of shape (), and "
                f"{getattr(self.loss, '__name__', type(self.loss).__name__)} returned {found}; "
                "give one that takes the mean (reduction='mean')"
            )
        return loss
