"""A new rule for the inner loop: one class.

    python examples/new_rule.py

What a rule returns is multiplied by `inner_lr` and subtracted from the parameters.
"""

from __future__ import annotations

import torch
from torch import nn

import gradshare as gs


class Momentum(gs.UpdateRule):
    """Momentum with one learned coefficient for each inner step."""

    def init(self, params: gs.Tensors, steps: int) -> tuple[gs.Tensors, gs.Tensors]:
        """β = 0.5, learned by the outer loop; nothing is carried from iteration to iteration."""
        return {"beta": torch.full((steps,), 0.5)}, {}

    def start(self, params: gs.Tensors) -> gs.Tensors:
        """Each task starts at rest."""
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def update(
        self,
        gradients: gs.Tensors,
        meta: gs.Tensors,
        carried: gs.Tensors,
        task: gs.Tensors,
        step: gs.Step,
    ) -> tuple[gs.Tensors, gs.Tensors, gs.Tensors]:
        """v ← β_k v + ∇, and the step is v."""
        velocity = {n: meta["beta"][step.k] * task[n] + g for n, g in gradients.items()}
        return velocity, carried, velocity


if __name__ == "__main__":
    gs.testing.check_rule(Momentum())  # shapes, no hidden state, finite at 0, loop equals vmap

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
    learner = gs.maml(net, steps=3, inner_lr=0.01, rule=Momentum(), loss=nn.functional.mse_loss)
    sinusoids = gs.Sinusoids()
    run = gs.fit(
        learner,
        sinusoids,
        sinusoids,
        epochs=3,
        iterations=100,
        task_batch=8,
        out="runs/momentum",
        resume="auto",
    )
    print(run.evaluate(sinusoids, tasks=200))
    meta, _ = run.tensors()
    print("learned momentum:", [round(beta, 3) for beta in meta["rule.beta"].tolist()])
