"""The sinusoid regression of the MAML paper (Finn et al., 2017, section 5.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.drawing import generator


@dataclass(frozen=True)
class Sinusoids:
    """Regression tasks y = a·sin(x - p), with a in [0.1, 5], p in [0, π] and x in [-5, 5], all
    uniform. Inputs and targets are float32 (T, n, 1).

    Attributes:
        shots: support points of a task.
        queries: query points of a task.
        seed: of the tasks, at least 0. A source of another seed has other tasks.
    """

    shots: int = 10
    queries: int = 10
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """The settings."""
        return repr(self)

    def replace(self, **changes: int) -> Sinusoids:
        """The same with other settings."""
        return dataclasses.replace(self, **changes)

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """The tasks of the given indices."""
        tasks = [self._points(generator(index, self.seed)) for index in indices]
        x, y = torch.from_numpy(np.stack(tasks, axis=1).astype(np.float32))  # (T, n, 1) each
        shots = self.shots
        return TaskBatch(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def _points(self, random: np.random.Generator) -> npt.NDArray[np.float64]:
        amplitude, phase = random.uniform(0.1, 5), random.uniform(0, np.pi)
        x = random.uniform(-5, 5, (self.shots + self.queries, 1))
        return np.stack([x, amplitude * np.sin(x - phase)])
