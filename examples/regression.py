"""Regression on a source of your own: any object with `batch(indices)`.

python examples/regression.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradshare as gs


class Lines:
    """Tasks of fitting a line from 5 points; its slope and height differ from task to task."""

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        """The tasks of the given indices: each is a function of its own index alone."""
        tasks = [self._task(np.random.default_rng([index, 0])) for index in indices]
        support_x, support_y, query_x, query_y = map(torch.stack, zip(*tasks, strict=True))
        return gs.TaskBatch(support_x, support_y, query_x, query_y)

    def _task(self, random: np.random.Generator) -> tuple[Tensor, ...]:
        slope, height = random.normal(size=2)
        x = torch.as_tensor(random.uniform(-1, 1, (15, 1)), dtype=torch.float32)
        y = slope * x + height
        return x[:5], y[:5], x[5:], y[5:]


def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric of one task."""
    return (outputs - targets).abs().mean()


if __name__ == "__main__":
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))
    run = gs.fit(
        gs.maml(mlp, steps=5, inner_lr=0.05, loss=F.mse_loss),
        Lines(),
        Lines(),
        epochs=4,
        iterations=100,
        task_batch=8,
        metrics={
            "mae": gs.Metric(mean_absolute_error, best="low"),
            "mse": gs.Metric(F.mse_loss, best="low"),
        },
        score="mae",
        out="runs/lines",
        resume="auto",
    )
    evaluation = run.evaluate(Lines(), tasks=300)
    print(evaluation)
    print("the worst tasks, by index:", evaluation.worst(3))

    line = run.adapt([[-1.0], [0.0], [1.0]], [[-1.0], [1.0], [3.0]])  # y = 2x + 1
    print("at 0.5, where 2 is right:", round(line([[0.5]]).item(), 2))
