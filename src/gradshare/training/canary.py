"""The canary: the loss of a fixed small batch, by which a resumed run notices that its code or its
data have changed.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from pathlib import Path
from typing import Any

import torch

from gradshare.errors import RunError
from gradshare.inner_loop.rule import Chain
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch
from gradshare.training.divergence import not_finite
from gradshare.training.randomness import seed_generators
from gradshare.training.state import TrainState

# A saved and a recomputed loss differ by rounding at most, also on another machine.
TOLERANCE = {torch.float64: 1e-9}
FLOAT32_TOLERANCE = 1e-3


class Canary:
    """Computes the outer loss of a fixed batch at a state.

    Args:
        learner: the method.
        tasks: prepared tasks.
    """

    def __init__(self, learner: Learner, tasks: TaskBatch) -> None:
        self._learner = learner
        self._tasks = tasks
        self._known: tuple[int, float | None] | None = None

    @torch.no_grad()
    def loss(self, state: TrainState) -> float | None:
        """Its loss; None if it is not finite."""
        if self._known is None or self._known[0] != state.iteration:
            loss = math.nan
            if not_finite(state.meta) is None:
                seed_generators(0)
                step = self._learner.outer_step(
                    *state.model, self._tasks, iteration=state.iteration
                )
                loss = float(step.losses.mean())
            self._known = state.iteration, loss if math.isfinite(loss) else None
        return self._known[1]

    def require_same(self, state: TrainState, saved: float | None, changed: str) -> None:
        """Raise unless the loss is the one that was saved with a state.

        Args:
            state: as it was restored.
            saved: the loss.
            changed: which source files have changed, as the end of a sentence.

        Raises:
            RunError: it is another.
        """
        found = self.loss(state)
        dtype = next(iter(state.meta.values())).dtype
        tolerance = TOLERANCE.get(dtype, FLOAT32_TOLERANCE)
        same = (
            found is saved
            if found is None or saved is None
            else math.isclose(found, saved, rel_tol=tolerance, abs_tol=1e-3 * tolerance)
        )
        if not same:
            raise RunError(
                f"the learner computes a loss of {found} on a fixed batch where it computed "
                f"{saved} when the run was saved: its model, rule, loss or data have changed "
                f"since{changed}; continue with the code and the data that the run was started "
                "with, or start another run"
            )


def source_digests(learner: Any, *sources: Any) -> dict[str, str]:
    """SHA-256 of the source files of a learner's parts and of its sources of tasks, by path."""
    rule = getattr(learner, "rule", None)
    rules = rule.rules.values() if isinstance(rule, Chain) else [rule]
    parts = [learner, getattr(learner, "model", None), getattr(learner, "loss", None), *rules]
    digests = {}
    for part in (*parts, *sources):
        try:
            found = inspect.getsourcefile(part if hasattr(part, "__code__") else type(part))
            if found is not None:
                path = Path(found).resolve()
                digests[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        except (TypeError, OSError):
            continue  # built in, or typed at a prompt
    return digests


def changed_files(then: dict[str, str], now: dict[str, str]) -> str:
    """Which source files have changed, as the end of a sentence; empty if none has."""
    changed = [path for path, digest in now.items() if then.get(path, digest) != digest]
    return f" ({', '.join(changed)} has changed)" if changed else ""
