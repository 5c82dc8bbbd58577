"""The canary: the loss of a fixed small batch, by which a resumed run notices that its code or its
data have changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gradshare.errors import RunError
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import prepared
from gradshare.training.divergence import not_finite
from gradshare.training.randomness import seed_generators
from gradshare.training.state import TrainState

# A saved and a recomputed loss differ by rounding at most, also on another machine.
TOLERANCE = {torch.float64: 1e-9}
FLOAT32_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Canary:
    """Computes a meta-step on fixed tasks that are not prepared: the outer loss, and the norm of
    its gradient, by which second order differs from first order.
    """

    learner: Learner
    source: TaskSource
    tasks: TaskBatch

    def values(self, state: TrainState) -> tuple[float, float] | None:
        """The loss at a state and the norm of its gradient; None if one is not finite."""
        if not_finite(state.meta) is not None:
            return None
        seed_generators(0)
        tasks = prepared(self.source, self.tasks)
        step = self.learner.outer_step(*state.model, tasks, iteration=state.status.iteration)
        gradients = torch.autograd.grad(
            step.objective.mean(), list(state.meta.values()), allow_unused=True
        )
        squares = [g.double().square().sum() for g in gradients if g is not None]
        found = step.losses.detach().mean().item(), torch.stack(squares).sum().sqrt().item()
        return found if all(map(math.isfinite, found)) else None

    def require_same(
        self, state: TrainState, then: Mapping[str, str], now: Mapping[str, str]
    ) -> None:
        """Raise RunError unless the values at a restored state are those that were saved with it,
        and name the files whose digests are others `now` than `then`.
        """
        found, saved = self.values(state), state.status.canary
        dtype = next(iter(state.meta.values())).dtype
        tolerance = TOLERANCE.get(dtype, FLOAT32_TOLERANCE)
        if found is None or saved is None:
            same = found is saved
        else:
            same = all(
                math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-3 * tolerance)
                for one, other in zip(found, saved, strict=True)
            )
        if not same:
            changed = ", ".join(
                path for path, digest in now.items() if then.get(path, digest) != digest
            )
            raise RunError(
                f"the learner computes {_shown(found)} on a fixed batch where it computed "
                f"{_shown(saved)} when the run was saved: its model, rule, loss or data have "
                f"changed since{f' ({changed} has changed)' if changed else ''}; continue with the "
                "code and the data that the run was started with, or start another run"
            )


def _shown(values: tuple[float, float] | None) -> str:
    if values is None:
        return "a loss that is not finite"
    return "a loss of {:.9g} with a gradient of norm {:.9g}".format(*values)
