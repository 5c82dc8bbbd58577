"""A user's own dataset, model, method, rule, losses and metrics, as import paths name them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradshare as gs
from gradshare.inner_loop import Step, Tensors


def signals(ways: int, shots: int, queries: int, noise: float = 0.5) -> gs.Splits:
    """Classes of noisy signals of two channels."""
    random = np.random.default_rng(0)
    patterns = random.normal(size=(20, 1, 2, 12))
    x = (patterns + noise * random.normal(size=(20, 8, 2, 12))).reshape(-1, 2, 12)
    tasks = gs.ClassTasks(x, np.repeat(np.arange(20), 8), ways=ways, shots=shots, queries=queries)
    return gs.Splits(*tasks.split_classes(0.5, 0.25, 0.25))


def pictures(ways: int) -> gs.Splits:
    """Random pictures of two channels."""
    x = np.random.default_rng(0).normal(size=(40, 2, 16, 16))
    tasks = gs.ClassTasks(x, np.arange(40) % 4, ways=ways, shots=1, queries=2)
    return gs.Splits(tasks, tasks, tasks)


def sines(shots: int) -> gs.Splits:
    """Regression, without a test."""
    return gs.Splits(gs.Sinusoids(shots=shots), gs.Sinusoids(shots=shots))


def nothing() -> int:
    """Not a dataset."""
    return 3


def broken() -> gs.Splits:
    """A dataset whose sources are none."""
    return gs.Splits(3, 3)  # type: ignore[arg-type]


class Net(nn.Module):
    """A network for signals."""

    def __init__(self, classes: int, channels: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, 3)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        scores: Tensor = self.head(torch.relu(self.conv(x)).mean(-1))
        return scores


class Curve(nn.Module):
    """A network for sines."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """A value for each point."""
        values: Tensor = self.layers(x)
        return values


class Momentum(gs.UpdateRule):
    """A heavy ball."""

    def __init__(self, beta: float = 0.5) -> None:
        self.beta = beta

    def start(self, params: Tensors) -> Tensors:
        """No momentum yet."""
        return {name: torch.zeros_like(tensor) for name, tensor in params.items()}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Add the momentum."""
        task = {name: self.beta * task[name] + g for name, g in gradients.items()}
        return task, carried, task


def plain(model: nn.Module, steps: int, loss: Any, **options: Any) -> gs.MetaLearner:
    """A method that knows nothing of sharing, with an inner rate of its own."""
    return gs.maml(model, steps=steps, inner_lr=0.05, loss=loss, **options)


def doubled(outputs: Tensor, targets: Tensor, factor: float = 2.0) -> Tensor:
    """A loss that is a function."""
    return factor * F.cross_entropy(outputs, targets)


class Scaled:
    """A loss that is a class."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one task."""
        return self.factor * F.cross_entropy(outputs, targets)


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that is a function: the share of errors."""
    return (outputs.argmax(1) != targets).float().mean()


errors = gs.Metric(wrong, best="low", unit="%")
