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
from gradshare.inner_loop.rule import Chain, UpdateRule
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import prepared
from gradshare.training.divergence import not_finite
from gradshare.training.randomness import seed_generators
from gradshare.training.state import TrainState

# A saved and a recomputed loss differ by rounding at most, also on another machine.
TOLERANCE = {torch.float64: 1e-9}
FLOAT32_TOLERANCE = 1e-3


class Canary:
    """Computes a meta-step on a fixed batch at a state: the outer loss, and the norm of its
    gradient, which tells second order from first.

    Args:
        learner: the method.
        source: whose `prepare` runs.
        tasks: on the device, not prepared.
    """

    def __init__(self, learner: Learner, source: TaskSource, tasks: TaskBatch) -> None:
        self._learner = learner
        self._source = source
        self._tasks = tasks
        self._known: tuple[int, list[float] | None] | None = None

    def values(self, state: TrainState) -> list[float] | None:
        """The loss and the norm of its gradient; None if one is not finite."""
        if self._known is None or self._known[0] != state.iteration:
            found = self._values(state) if not_finite(state.meta) is None else [math.nan]
            finite = all(math.isfinite(value) for value in found)
            self._known = state.iteration, found if finite else None
        return self._known[1]

    def _values(self, state: TrainState) -> list[float]:
        seed_generators(0)
        tasks = prepared(self._source, self._tasks)
        step = self._learner.outer_step(*state.model, tasks, iteration=state.iteration)
        gradients = torch.autograd.grad(
            step.objective.mean(), list(state.meta.values()), allow_unused=True
        )
        squares = [g.double().square().sum() for g in gradients if g is not None]
        return [step.losses.detach().mean().item(), math.sqrt(float(torch.stack(squares).sum()))]

    def require_same(self, state: TrainState, saved: list[float] | None, changed: str) -> None:
        """Raise unless the values are those that were saved with a state.

        Args:
            state: as it was restored.
            saved: the values.
            changed: which source files have changed, as the end of a sentence.

        Raises:
            RunError: it is another.
        """
        found = self.values(state)
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
            raise RunError(
                f"the learner computes {_shown(found)} on a fixed batch where it computed "
                f"{_shown(saved)} when the run was saved: its model, rule, loss or data have "
                f"changed since{changed}; continue with the code and the data that the run was "
                "started with, or start another run"
            )


def _shown(values: list[float] | None) -> str:
    if values is None:
        return "a loss that is not finite"
    return f"a loss of {values[0]:.9g} with a gradient of norm {values[1]:.9g}"


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


def description(learner: Any) -> dict[str, str]:
    """What a learner is made of besides tensors: its type, inner steps, order, rules and rates.

    Two learners with the same tensors can differ in these.
    """
    found = {"method": type(learner).__name__}
    for name in ("steps", "second_order", "first_order_iterations", "inductive", "rule"):
        value = getattr(learner, name, None)
        if value is not None:
            found[name] = _described(value)
    return found


def _described(value: Any) -> str:
    if isinstance(value, Chain):
        return ", ".join(f"{name}={_described(rule)}" for name, rule in value.rules.items())
    if isinstance(value, UpdateRule):
        simple = {n: v for n, v in vars(value).items() if isinstance(v, bool | int | float | str)}
        return f"{type(value).__name__}({', '.join(f'{n}={v!r}' for n, v in simple.items())})"
    return repr(value)
