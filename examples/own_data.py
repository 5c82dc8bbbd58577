"""Your own data and network: from arrays to an accuracy on new classes.

    python examples/own_data.py

The "heartbeats" are drawn here, so that the example needs no download: 40 classes of signals with
two channels, 30 of each. Takes about half a minute on 2 CPU cores.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradshare as gs


class ConvNet1d(nn.Module):
    """A small network for signals; any torch module would do."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, width, 5, padding=2)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Conv1d(width, width, 5, padding=2)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, classes)

    def forward(self, signals: Tensor) -> Tensor:
        """(n, 2, length) signals to (n, classes) scores."""
        features = F.max_pool1d(F.relu(self.norm(self.first(signals))), 2)
        features = F.relu(self.second(features)).mean(-1)
        scores: Tensor = self.head(self.dropout(features))
        return scores


def draw_beats(classes: int = 40, each: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Noisy periodic signals (n, 2, 64); a class is a frequency, a shape and a phase shift."""
    random = np.random.default_rng(0)
    time = np.linspace(0, 2 * np.pi, 64)
    frequency = random.uniform(2, 9, (classes, 1, 1, 1))
    harmonic = random.uniform(0, 1, (classes, 1, 2, 1))
    start = random.uniform(0, 2 * np.pi, (classes, each, 1, 1))
    beats = np.sin(frequency * time + start) + harmonic * np.sin(2 * frequency * time + start)
    beats = beats + random.normal(0, 0.3, beats.shape)
    return beats.reshape(-1, 2, 64), np.repeat(np.arange(classes), each)


def beats(ways: int = 5, shots: int = 1, queries: int = 15) -> gs.Splits:
    """The tasks for the program: gradshare train --dataset examples/own_data.py:beats …"""
    tasks = gs.ClassTasks(*draw_beats(), ways=ways, shots=shots, queries=queries)
    return gs.Splits(*tasks.split_classes(0.6, 0.2, 0.2, seed=0))


if __name__ == "__main__":
    x, y = draw_beats()  # (n, channels, length), (n,)
    tasks = gs.ClassTasks(x, y, ways=5, shots=1, queries=15)
    train, validation, test = tasks.split_classes(0.6, 0.2, 0.2, seed=0)

    torch.manual_seed(0)
    learner = gs.maml(ConvNet1d(classes=5), steps=5, inner_lr=0.05, sharing=True)
    run = gs.fit(
        learner,
        train,
        validation,
        epochs=4,
        iterations=40,
        task_batch=4,
        val_tasks=60,
        out="runs/beats",
        resume="auto",  # a second start continues or returns the run
    )
    print(run.evaluate(test, tasks=200))
    print(run.evaluate(test.replace(shots=5), tasks=200, steps=10))  # more shots, more steps

    # One module for new classes: here the first five, from one example of each.
    net = run.adapt(x[: 5 * 30 : 30], y[: 5 * 30 : 30])
    print("predicted", net(x[1 : 5 * 30 : 30]).argmax(1).tolist(), "of", net.classes)
