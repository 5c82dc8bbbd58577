"""What is made and checked of a run before its first iteration; nothing is written."""

from __future__ import annotations

import math
import uuid
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.methods import Learner
from gradshare.tasks import TaskSource
from gradshare.tasks.absent import preparation_of
from gradshare.tasks.source import fingerprint_of, of_largest_size, prepared, training_indices
from gradshare.training.checkpoint import on_device
from gradshare.training.checks import (
    initial_state,
    require_learner,
    require_source,
    require_together,
)
from gradshare.training.folder import KEPT_LATEST, RunFolder
from gradshare.training.identity import identity_of, source_digests
from gradshare.training.layout import Layout, choose_layout, tensor_bytes
from gradshare.training.metrics import Metric
from gradshare.training.options import Options
from gradshare.training.state import TrainState
from gradshare.training.supervised import require_startable

Sources = tuple[TaskSource, TaskSource, TaskSource | None]
"""Of training, validation and test tasks."""

# The parameter itself, its gradient and the optimiser's two moments.
COPIES_OF_META = 4
# A line of metrics.jsonl, which TensorBoard's file and each checkpoint hold too.
RECORD_BYTES = 2000


class PreparedRun(NamedTuple):
    """A run before any training. `contents` are those of `run.json`."""

    state: TrainState
    metrics: dict[str, Metric]
    score: str
    contents: dict[str, Any]


def prepare_run(
    learner: Learner,
    sources: Sources,
    options: Options,
    device: torch.device,
    continued: RunFolder | None = None,
) -> PreparedRun:
    """Check that everything fits together, and make the state before any training. A run that is
    continued keeps its layout.
    """
    require_learner(learner)
    train, validation, test = sources
    if options.start == "supervised":
        require_startable(getattr(learner, "model", None), train)
    named = {"train": train, "validation": validation}
    require_source("train", train, training_indices(options.seed, 0, 2))
    require_source("validation", validation, range(options.val_tasks))
    if test is not None:
        named["test"] = test
        require_source("test", test, range(options.test_tasks))
    fingerprints = {name: fingerprint_of(source) for name, source in named.items()}
    known = fingerprints["validation"]
    if test is validation or (known is not None and fingerprints.get("test") == known):
        raise ConfigError(
            "the test source has the tasks of the validation source, by which checkpoints are "
            "chosen; give a test source of its own, of other classes, groups or seed"
        )
    meta, carried = initial_state(learner)
    meta = {name: t.detach().to(device).requires_grad_() for name, t in meta.items()}
    carried = on_device(carried, device)
    metrics, score = require_together(learner, (meta, carried), named, options)
    optimizer = make_optimizer(options, meta)
    if continued is not None:
        layout = Layout(**continued.contents()["layout"])
    else:
        tasks = of_largest_size(train).batch(list(range(min(2, options.task_batch))))
        layout = choose_layout(
            learner,
            (meta, carried),
            prepared(train, tasks.to(device)),
            task_batch=options.task_batch,
            tasks=options.tasks,
            memory=options.memory,
        )
    contents = {
        "gradshare": version("gradshare"),
        "id": uuid.uuid4().hex,
        "identity": identity_of(learner, meta, optimizer, options, metrics, score, fingerprints),
        "layout": asdict(layout),
        **preparation_of(train),
        "files": source_digests(learner, *named.values()),
    }
    return PreparedRun(TrainState(meta, carried, optimizer), metrics, score, contents)


def make_optimizer(options: Options, meta: dict[str, Tensor]) -> torch.optim.Optimizer:
    """The outer optimiser. Meta-parameters with the same options are one group."""
    groups: dict[str, dict[str, Any]] = {}
    try:
        for name, tensor in meta.items():
            own = dict(options.groups(name)) if options.groups is not None else {}
            group = groups.setdefault(repr(sorted(own.items())), {**own, "params": []})
            group["params"].append(tensor)
        optimizer = options.optimizer(list(groups.values()))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the optimiser cannot be made: {error}; give optimizer a function that takes "
            "parameter groups, such as functools.partial(torch.optim.Adam, lr=1e-3), and groups a "
            "function that returns their options"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer returned a {type(optimizer).__name__}; return a torch optimiser"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("LBFGS evaluates the loss within its step; give another optimiser")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, tensor in meta.items() if id(tensor) not in held]
    if missing:
        raise ConfigError(
            f"the optimiser does not hold the meta-parameter {missing[0]!r}; build it from the "
            "parameter groups that the factory is given"
        )
    for group in optimizer.param_groups if options.schedule is not None else ():
        if "lr" not in group:
            raise ConfigError(
                f"{type(optimizer).__name__} has no learning rate 'lr' to be scheduled; leave "
                "`schedule` out, or give another optimiser"
            )
        group["initial_lr"] = group["lr"]
    return optimizer


def memory_needed(layout: Layout, options: Options, state: TrainState, processes: int = 1) -> int:
    """An estimate of the peak memory of one process of a run, in bytes."""
    share = math.ceil(options.task_batch / processes)
    outside = COPIES_OF_META * tensor_bytes(state.meta) + tensor_bytes(state.carried)
    return layout.bytes_of(share, options.task_batch) + outside


def saved_bytes(state: TrainState, options: Options) -> int:
    """The most bytes that a run's checkpoints and records take on the disk."""
    model = tensor_bytes(state.meta) + tensor_bytes(state.carried)
    latest = model + 2 * tensor_bytes(state.meta)
    # Of each kind there is one more while it is written.
    models = (options.ensemble + 1) * model + (KEPT_LATEST + 1) * latest
    return models + RECORD_BYTES * options.epochs * (KEPT_LATEST + 3)
