"""Meta-SGD's learned rates."""

from __future__ import annotations

import torch

from gradshare.inner_loop.rule import Step, Tensors, UpdateRule, gate_dtype
from gradshare.inner_loop.sgd import require_rate


class MetaSGD(UpdateRule):
    """Multiply by one learned rate for each scalar parameter (Li et al., 2017).

    The rates are the same at each step. Their sign is free, so that the outer loop learns the
    direction of a step as well as its length.

    Learned: `alpha.NAME`, shaped like the parameter.

    Args:
        lr: the initial value of each entry of α. (Li et al. draw it from [0.005, 0.1]; Chang &
            Lipson use 0.1 for all.)

    Raises:
        ConfigError: the rate is not a finite number of at least 0.
    """

    def __init__(self, lr: float) -> None:
        self.lr = require_rate(lr)

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """α = lr everywhere."""
        return {
            f"alpha.{name}": torch.full_like(p, self.lr, dtype=gate_dtype({name: p}))
            for name, p in params.items()
        }, {}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """α ∘ Δ."""
        rates = {name: meta[f"alpha.{name}"].to(g.dtype) for name, g in gradients.items()}
        return {name: rates[name] * g for name, g in gradients.items()}, carried, task
