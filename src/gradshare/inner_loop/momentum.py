"""Gradient descent with momentum."""

from __future__ import annotations

import torch

from gradshare.inner_loop.rule import Step, Tensors, UpdateRule


class Momentum(UpdateRule):
    """Replace the gradient by a velocity: v ← μ v + ∇, from v = 0 in each task.

    This is the momentum of `torch.optim.SGD`. The rates come from the next rule of a chain.

    Args:
        momentum: μ.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        self.momentum = momentum

    def start(self, params: Tensors) -> Tensors:
        """v = 0."""
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """The new velocity."""
        velocity = {name: self.momentum * task[name] + g for name, g in gradients.items()}
        return velocity, carried, velocity
