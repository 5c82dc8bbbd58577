"""What must be the same when a run is continued: its identity, and what its code computes."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradshare.errors import ConfigError, RunError
from gradshare.inner_loop import Tensors
from gradshare.inner_loop.rule import Chain, UpdateRule
from gradshare.methods import Learner
from gradshare.models.weights import digest
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import prepared
from gradshare.training.divergence import not_finite
from gradshare.training.metrics import Metric
from gradshare.training.options import Options
from gradshare.training.randomness import seed_generators
from gradshare.training.state import TrainState

COUNTS = ("epochs", "iterations", "task_batch", "val_tasks", "test_tasks", "seed", "ensemble")
MOST_FACTORS = 10**6
# A saved and a recomputed loss differ by rounding at most, also on another machine.
FLOAT64_TOLERANCE, FLOAT32_TOLERANCE = 1e-9, 1e-3


def identity_of(
    learner: Learner,
    meta: Tensors,
    optimizer: torch.optim.Optimizer,
    options: Options,
    metrics: Mapping[str, Metric],
    score: str,
    fingerprints: Mapping[str, str | None],
) -> dict[str, Any]:
    """The identity of a run, as JSON. `fingerprints` are those of the sources, by name."""
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return {
        **{name: getattr(options, name) for name in COUNTS},
        "metrics": {name: metric.best for name, metric in metrics.items()},
        "score": score,
        "optimizer": f"{type(optimizer).__name__} {groups}",
        "clamp_gradients": options.clamp_gradients,
        "clip_norm": options.clip_norm,
        **({} if options.start == "random" else {"start": options.start}),
        **({} if options.start_iterations == 300 else {"start steps": options.start_iterations}),
        "meta-parameters": shapes_digest(meta),
        "schedule": schedule_digest(options, options.total),
        **{f"{name} source": fingerprint for name, fingerprint in fingerprints.items()},
        **description(learner),
    }


def schedule_digest(options: Options, total: int) -> str:
    """A digest of the schedule's factors up to an iteration; of a long run not of each one."""
    every = max(1, total // MOST_FACTORS)
    factors = [options.factor(iteration) for iteration in range(0, total, every)]
    for index, factor in enumerate(factors):
        if not 0 <= factor < math.inf:
            raise ConfigError(
                f"schedule gives {factor} at iteration {index * every}; give factors of at least 0"
            )
    return hashlib.sha256(json.dumps(factors).encode()).hexdigest()


def shapes_digest(meta: Tensors) -> str:
    """A digest of the names, types and shapes of meta-parameters."""
    shapes = {name: [str(t.dtype), *t.shape] for name, t in meta.items()}
    return hashlib.sha256(repr(shapes).encode()).hexdigest()


def description(learner: Learner) -> dict[str, str]:
    """A learner's type, inner steps, order, rules and rates, which its tensors do not show, and a
    digest of what of its model is frozen, which no checkpoint holds.
    """
    found = {"method": type(learner).__name__}
    model = getattr(learner, "model", None)
    if isinstance(model, nn.Module):
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        if len(trainable) < len(list(model.parameters())):
            fixed = {n: t for n, t in model.state_dict().items() if n not in trainable}
            found["frozen parameters"] = digest(fixed)
    for name in ("steps", "second_order", "first_order_iterations", "inductive", "rule"):
        value = getattr(learner, name, None)
        if value is not None:
            found[name] = _described(value)
    return found


def _described(value: Any) -> str:
    if isinstance(value, Chain):
        return ", ".join(f"{name}={_described(rule)}" for name, rule in value.rules.items())
    if isinstance(value, UpdateRule):
        shown = [
            f"{name}={v!r}"
            for name, v in vars(value).items()
            if isinstance(v, bool | int | float | str) and not name.startswith("_")
        ]
        return f"{type(value).__name__}({', '.join(shown)})"
    return repr(value)


def require_same_run(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], options: Options
) -> None:
    """Raise RunError unless the run in a folder, of the identity `old`, can be continued by one of
    the identity `new` and these options.
    """
    for name in dict.fromkeys([*old, *new]):
        one, other = old.get(name), new.get(name)
        if one != other and name not in ("epochs", "schedule"):
            before, now = _difference(repr(one), repr(other))
            differs = f"with {name} {before}, this one has {now}"
            if name.endswith(("source", "parameters")):  # digests, which say nothing to a reader
                differs = f"that differs in its {name}"
            raise RunError(
                f"{folder} holds a run {differs}; continue it as it was, or choose another "
                "folder (--out)"
            )
    if new["epochs"] < old["epochs"]:
        raise RunError(
            f"{folder} holds a run of {old['epochs']} epochs, and {new['epochs']} were asked for; "
            "ask for as many or more"
        )
    if schedule_digest(options, old["epochs"] * options.iterations) != old["schedule"]:
        raise RunError(
            f"the schedule gives other learning rates than those that the run in {folder} was "
            "trained with; a run is extended only if its schedule does not depend on its length"
        )


def _difference(one: str, other: str, most: int = 60) -> list[str]:
    """Two texts, each cut to at most about `most` characters around the first difference."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    start = max(0, next(differ, 0) - most // 2)
    before = "…" if start else ""
    return [
        f"{before}{text[start : start + most]}{'…' if len(text) > start + most else ''}"
        for text in (one, other)
    ]


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


@dataclass(frozen=True)
class Canary:
    """The outer loss of fixed tasks and the norm of its gradient, by which a resumed run notices
    that its code or its data have changed. The norm tells second order from first order.

    Attributes:
        tasks: of the source, not prepared.
    """

    learner: Learner
    source: TaskSource
    tasks: TaskBatch

    def values(self, state: TrainState) -> tuple[float, float] | None:
        """The loss at a state and the norm of its gradient; None if one is not finite."""
        if not_finite(state.meta) is not None:
            return None
        seed_generators(0, next(iter(state.meta.values())).device)
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
        double = next(iter(state.meta.values())).dtype == torch.float64
        tolerance = FLOAT64_TOLERANCE if double else FLOAT32_TOLERANCE
        if found is None or saved is None:
            same = found is saved
        else:
            same = all(
                math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-3 * tolerance)
                for one, other in zip(found, saved, strict=True)
            )
        if not same:
            changed = ", ".join(path for path in now if then.get(path, now[path]) != now[path])
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
