"""The proximal term of iMAML."""

from __future__ import annotations

from gradshare.inner_loop.rule import Step, Tensors, UpdateRule


class Proximal(UpdateRule):
    """Add the gradient of λ/2 ‖θ - θ₀‖², where θ₀ are the parameters from which a task starts.

    Rajeswaran et al., 2019, Eq. 3.

    Args:
        strength: λ.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def start(self, params: Tensors) -> Tensors:
        """θ₀."""
        return params

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """∇ + λ (θ - θ₀)."""
        updates = {
            name: g + self.strength * (step.params[name] - task[name])
            for name, g in gradients.items()
        }
        return updates, carried, task
