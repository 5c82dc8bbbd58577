"""Checks of a learner, its sources and metrics before a run: one dry run of each part."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError, DataError, GradshareError, is_out_of_memory
from gradshare.inner_loop import Tensors
from gradshare.methods import Learner, MetaLearner
from gradshare.methods.head import METHODS_OF_ANY_WAYS, AnyWays
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import PARTS, leaves, task_of
from gradshare.tasks.source import prepared, require_pure
from gradshare.training.divergence import not_finite_part
from gradshare.training.metrics import Metric, default_metrics, require_metrics
from gradshare.training.options import Options

METHODS = ("init", "outer_step", "adapt", "predict")
NO_CHECKPOINTS = (
    "the model computes parts again in the backward pass (torch.utils.checkpoint), where it no "
    "longer has the parameters of the task; leave that out, and give memory='recompute' (--memory "
    "recompute)"
)


def require_learner(learner: object) -> None:
    """Raise ConfigError unless `learner` has the four methods of a `Learner`."""
    if isinstance(learner, type) or not all(callable(getattr(learner, n, None)) for n in METHODS):
        kind = type(learner).__name__
        if isinstance(learner, type):
            kind = f"the class {learner.__name__}"
        raise ConfigError(
            f"the learner is {kind}; give an object with the methods "
            f"{', '.join(METHODS)}, such as gradshare.maml(model)"
        )


def require_source(name: str, source: Any, indices: Sequence[int]) -> None:
    """Raise unless a source's tasks with these indices are functions of their index."""
    if isinstance(source, type) or not callable(getattr(source, "batch", None)):
        raise ConfigError(
            f"{name} is {source!r:.100}; give a source of tasks: an object with "
            "`batch(indices) -> TaskBatch`, such as gradshare.ClassTasks(x, y)"
        )
    try:
        require_pure(source, indices[-1], indices[0])
    except GradshareError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:  # a list of tasks ends, a seed has 32 bits
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"{name}: {type(source).__name__}.batch failed at index {indices[-1]} with "
            f"{type(error).__name__}: {error!s:.200}; it must have a task for each index below "
            "2**63, such as tasks[index % len(tasks)]"
        ) from error


def require_ways(name: str, learner: Learner, source: TaskSource, trained: Any = None) -> None:
    """Raise ConfigError if the learner's head has one number of classes, and a source a range of
    ways, or more than the source `trained` that it was trained on.
    """
    ways, most = getattr(source, "ways", None), getattr(trained, "ways", None)
    fixed = isinstance(learner, MetaLearner) and not isinstance(learner, AnyWays)
    more = isinstance(ways, int) and isinstance(most, int) and ways > most
    if fixed and more and _is_cross_entropy(learner):
        raise ConfigError(
            f"{name} has tasks of {ways} classes, and this run was trained for {most}; give at "
            f"most {most} (--ways), or train with a method for any number: {METHODS_OF_ANY_WAYS}"
        )
    if isinstance(ways, tuple) and fixed:
        raise ConfigError(
            f"{name} has tasks of {ways[0]} to {ways[1]} classes, and the head of this method is "
            "for one number of classes; give one number of ways, or a method for any: "
            f"{METHODS_OF_ANY_WAYS}"
        )


def require_shareable(processes: int, train: TaskSource, carried: Tensors) -> None:
    """Raise ConfigError if processes would add up gradients of heads of different sizes."""
    ways = getattr(train, "ways", None)
    if processes > 1 and carried and isinstance(ways, tuple):
        raise ConfigError(
            f"{processes} processes cannot share gradients between tasks of {ways[0]} to {ways[1]} "
            "classes; use one process, one number of ways, or no sharing"
        )


def initial_state(learner: Learner) -> tuple[dict[str, Tensor], Tensors]:
    """`learner.init()`; ConfigError if its meta-parameters are not named leaves."""
    match learner.init():
        case (Mapping() as meta, Mapping() as carried) if meta:
            for name, tensor in meta.items():
                if not (isinstance(tensor, Tensor) and tensor.is_leaf and tensor.requires_grad):
                    raise ConfigError(
                        "the meta-parameters that init() returns must be leaf tensors that require "
                        f"gradients, and {name!r} is not one; use "
                        "tensor.detach().clone().requires_grad_()"
                    )
            return dict(meta), carried
        case returned:
            raise ConfigError(
                f"{type(learner).__name__}.init() returned {returned!r:.100}; it must return two "
                "dictionaries of named tensors: the meta-parameters and the carried tensors"
            )


def require_together(
    learner: Learner,
    state: tuple[Tensors, Tensors],
    sources: Mapping[str, TaskSource],
    options: Options,
) -> tuple[dict[str, Metric], str]:
    """Try a meta-step and an evaluation on one task each, and return the metrics and the score."""
    meta, carried = state
    lean = learner
    if isinstance(learner, MetaLearner):  # in the least memory, unless more was asked for
        lean = learner.laid_out(tasks_at_a_time=1, recompute=options.memory != "keep")
    metrics, score = options.metrics, options.score
    for name, source in sources.items():
        require_ways(name, learner, source)
        tasks = prepared(source, source.batch([0]).to(next(iter(meta.values())).device))
        with explain_misfit(learner, meta, name, tasks):
            # First without an inner step, whose loss would blame the labels.
            with torch.no_grad():
                outputs = lean.predict(meta, lean.adapt(meta, carried, tasks, steps=0), tasks)
            require_outputs(learner, outputs, tasks, source)
            if name == "train":
                _require_outer_step(lean, state, tasks, source)
            with torch.no_grad():
                outputs = lean.predict(meta, lean.adapt(meta, carried, tasks), tasks)
            if metrics is None:
                metrics = default_metrics(learner, outputs, tasks.query_y, source)
            score = require_metrics(metrics, score)
            values = [m.values(outputs, tasks.query_y, tasks.query_n) for m in metrics.values()]
            require_finite(name, tasks, [outputs, *values])
    return dict(metrics or {}), score or ""


def _require_outer_step(
    learner: Learner, state: tuple[Tensors, Tensors], tasks: TaskBatch, source: TaskSource
) -> None:
    """Raise ConfigError unless the objective of an outer step on one task can be differentiated."""
    with (
        torch.autograd.graph.disable_saved_tensors_hooks(NO_CHECKPOINTS)
        if isinstance(learner, MetaLearner)
        else nullcontext()
    ):
        step = learner.outer_step(*state, tasks, iteration=0)
    if step.objective.shape != (1,) or step.losses.shape != (1,):
        raise ConfigError(
            f"{type(learner).__name__}.outer_step returned an objective of shape "
            f"{tuple(step.objective.shape)} for one task; give one value for each task"
        )
    meta = list(state[0].values())
    if not step.objective.requires_grad or all(
        gradient is None
        for gradient in torch.autograd.grad(step.objective.mean(), meta, allow_unused=True)
    ):
        raise ConfigError(
            "the objective does not depend on any meta-parameter; compute it from `meta`, "
            "without detach() or torch.no_grad()"
        )
    require_outputs(learner, step.outputs, tasks, source)
    require_finite("train", tasks, [step.losses])


def require_finite(name: str, tasks: TaskBatch, computed: Sequence[Tensor]) -> None:
    """Raise DataError if a source's tasks and what was computed from them are not finite.

    A model that can take such inputs passes, and so does one that overflows on finite inputs.
    """
    part = not_finite_part(tasks)
    if part is not None and not all(bool(tensor.isfinite().all()) for tensor in computed):
        raise DataError(
            f"{name}: {part} (NaN or infinite), and the model can't take it; leave such examples "
            "out, or replace these values"
        )


def require_outputs(learner: Learner, outputs: Any, tasks: TaskBatch, source: TaskSource) -> None:
    """Raise ConfigError unless outputs are one tensor with as many classes as the tasks have."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        what = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else "another type"
        raise ConfigError(
            f"the outputs for a batch of tasks are of {what}; give one tensor (T, queries, …)"
        )
    if not _is_cross_entropy(learner):
        return
    targets = (tasks.support_y, tasks.support_n), (tasks.query_y, tasks.query_n)
    labels = [task_of(y, 0, sizes) for y, sizes in targets if isinstance(y, Tensor)]
    real = any(y.is_floating_point() for y in labels)
    if outputs.ndim == 2 or (real and not all(map(_are_probabilities, labels))):
        raise ConfigError(
            f"the targets are real values and the outputs {tuple(outputs.shape)}; cross "
            "entropy needs classes: give a loss of your own, such as loss=F.mse_loss"
        )
    if real:
        return
    model = type(getattr(learner, "model", learner)).__name__
    has, needs = outputs.shape[2], max([2, *(int(y.max()) + 1 for y in labels)])
    if has < needs:
        raise ConfigError(
            f"{model} has {has} outputs and the tasks have {needs} classes; make it with {needs} "
            "outputs, or number the classes of each task from 0"
        )
    largest = getattr(source, "ways", None)
    if isinstance(largest, int) and has > largest:
        raise ConfigError(
            f"{model} has {has} outputs and the largest task has {largest} classes; make it with "
            f"{largest} outputs: the others could only be wrong"
        )


def _is_cross_entropy(learner: Learner) -> bool:
    loss = getattr(learner, "loss", None)
    loss = getattr(loss, "func", loss)  # of a functools.partial
    return loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)


def _are_probabilities(y: Tensor) -> bool:
    """Whether targets (n, …) are probabilities of classes, which cross entropy takes too."""
    several = y.ndim > 1 and y.shape[1] > 1 and y.is_floating_point()
    return several and bool((y >= 0).all()) and torch.allclose(y.sum(1), torch.ones_like(y[:, 0]))


@contextmanager
def explain_misfit(learner: Learner, meta: Tensors, name: str, tasks: TaskBatch) -> Iterator[None]:
    """Turn an error into a ConfigError that names the function that failed, the source and the
    shapes. Errors of gradshare's own and of memory pass.
    """
    try:
        with warnings.catch_warnings():
            # Targets (n,) beside outputs (n, 1) are broadcast to (n, n), with a warning only.
            warnings.filterwarnings("error", message="Using a target size")
            yield
    except Exception as error:
        if isinstance(error, GradshareError) or is_out_of_memory(error):
            raise
        failed = _function_of_the_user(error) or type(getattr(learner, "model", learner)).__name__
        found = [leaf for part in PARTS for leaf in leaves(getattr(tasks, part), part)]
        shapes = ", ".join(
            f"{path} {_name(leaf.dtype)} {tuple(leaf.shape[1:])}" for path, leaf in found
        )
        own = _name(next(iter(meta.values())).dtype)
        others = {_name(leaf.dtype) for _, leaf in found if leaf.is_floating_point()} - {own}
        remedy = "".join(
            f"; the model is {own}: convert the source's tensors with x.to(torch.{own}), or the "
            f"model with model.to(torch.{other})"
            for other in sorted(others)[:1]
        )
        if isinstance(error, UserWarning):
            remedy += "; give targets of the shape of the outputs, such as y[..., None]"
        raise ConfigError(
            f"{failed} failed on a task of the source {name!r}: {type(error).__name__}: "
            f"{error!s:.300}; the task is {shapes}{remedy}"
        ) from error


def _function_of_the_user(error: Exception) -> str:
    """The innermost function that an error came from, outside of gradshare and what is installed,
    such as `Net.forward (net.py, line 7)`; empty if there is none.
    """
    ours, installed = Path(__file__).parents[1], Path(torch.__file__).parents[1]
    libraries = {ours, installed, Path(os.__file__).parent}
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        file = Path(code.co_filename)
        # The function around a comprehension has a frame, and a name that says more.
        if not (code.co_name.endswith(("comp>", "expr>")) or libraries.intersection(file.parents)):
            found = f"{code.co_qualname} ({file.name}, line {line})"
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
