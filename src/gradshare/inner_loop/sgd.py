"""Gradient descent with one fixed rate."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.inner_loop.rule import Step, Tensors, UpdateRule


class SGD(UpdateRule):
    """Multiply by a fixed rate: the inner step of MAML, and the last rule of its chain.

    Args:
        lr: the inner learning rate α.

    Raises:
        ConfigError: the rate is not a finite number of at least 0.
    """

    def __init__(self, lr: float) -> None:
        self.lr = require_rate(lr)

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """The update α ∇."""
        return {name: self.lr * gradient for name, gradient in gradients.items()}, carried, task

    def descend(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """θ - α ∇ in one pass."""
        # A subclass may have another `update`. `alpha` must be a number, and one that the
        # parameters' type can represent.
        overridden = type(self).update is not SGD.update
        if overridden or isinstance(self.lr, Tensor) or self.lr > torch.finfo(torch.float16).max:
            return super().descend(gradients, meta, carried, task, step)
        params = step.params.items()
        return {n: torch.add(t, gradients[n], alpha=-self.lr) for n, t in params}, carried, task


def require_rate(lr: float) -> float:
    """Return `lr`.

    Raises:
        ConfigError: it is not a finite number of at least 0.
    """
    number = isinstance(lr, Real | Tensor) and not isinstance(lr, bool)
    if not number or not 0 <= lr < math.inf:
        raise ConfigError(f"the inner learning rate is {lr!r}; give a finite number, at least 0")
    return lr
