"""Learned inner learning rates. Both scale what comes out of the rule before them (the paper's Δ)
and both start at the inner learning rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradshare.errors import require_count
from gradshare.inner_loop.rule import SumOverTasks, Tensors, require_rate


class MetaSGD:
    """Meta-SGD (Li et al., 2017): one rate for each scalar parameter, the same at every step.

    Learned: `alpha.NAME`, shaped like the parameter, unconstrained in sign, so that the outer
    loop learns the direction of a step as well as its length.

    Args:
        lr: where every entry of α starts. (Li et al. draw it from [0.005, 0.1]; Chang & Lipson
            start all at 0.1.)

    Raises:
        ConfigError: a rate below zero, or not finite.
    """

    def __init__(self, lr: float) -> None:
        require_rate(lr)
        self.lr = lr

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """α = lr everywhere."""
        return {f"alpha.{name}": torch.full_like(p, self.lr) for name, p in params.items()}, {}

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """α ∘ Δ."""
        return {name: learned[f"alpha.{name}"] * g for name, g in gradients.items()}, state


class LSLR:
    """MAML++'s per-layer per-step rates (Antoniou et al., 2018): one rate for each tensor, a
    layer's weight and bias apart, and each inner step.

    Learned: `rate.NAME` (K,).

    Args:
        steps: K, the number of inner steps.
        lr: where every rate starts.

    Raises:
        ConfigError: no steps, or a rate below zero, or not finite.
    """

    def __init__(self, steps: int, lr: float) -> None:
        require_count("steps", steps)
        require_rate(lr)
        self.steps = steps
        self.lr = lr

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """Every rate = lr."""
        return {f"rate.{n}": p.new_full((self.steps,), self.lr) for n, p in params.items()}, {}

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """This step's rate times Δ."""
        updates: dict[str, Tensor] = {
            name: learned[f"rate.{name}"][step] * g for name, g in gradients.items()
        }
        return updates, state
