"""MAML++'s learned rates."""

from __future__ import annotations

from gradshare.inner_loop.rule import Step, Tensors, UpdateRule, for_each_step
from gradshare.inner_loop.sgd import require_rate


class LSLR(UpdateRule):
    """Multiply by one learned rate for each tensor and inner step (Antoniou et al., 2018).

    The weight and the bias of a layer have separate rates.

    Learned: `rate.NAME` (K,).

    Args:
        lr: the initial value of each rate.

    Raises:
        ConfigError: the rate is not a finite number of at least 0.
    """

    def __init__(self, lr: float) -> None:
        self.lr = require_rate(lr)

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """Each rate = lr."""
        return {
            f"rate.{name}": for_each_step({name: p}, steps, self.lr) for name, p in params.items()
        }, {}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """This step's rate times Δ."""
        rates = {name: meta[f"rate.{name}"][step.k] for name in gradients}
        updates = {name: rates[name].to(g.dtype) * g for name, g in gradients.items()}
        return updates, carried, task
