"""The identity of a run: everything that must be the same when it is continued."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradshare.errors import ConfigError, RunError
from gradshare.inner_loop import Tensors
from gradshare.inner_loop.rule import Chain, UpdateRule
from gradshare.methods import Learner
from gradshare.models.weights import digest
from gradshare.training.metrics import Metric
from gradshare.training.options import Options

COUNTS = ("epochs", "iterations", "task_batch", "val_tasks", "test_tasks", "seed", "ensemble")
MOST_FACTORS = 10**6


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
        simple = {n: v for n, v in vars(value).items() if isinstance(v, bool | int | float | str)}
        return f"{type(value).__name__}({', '.join(f'{n}={v!r}' for n, v in simple.items())})"
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
