"""`--compile`: the model's forward pass through `torch.compile`, where that gives right gradients.

It often does not. In torch 2.13 a compiled backward pass cannot be differentiated, which a
second-order step does ("torch.compile with aot_autograd does not currently support double
backward"), and the backend that compiles nothing ("eager") loses the derivative of a derivative
written by hand without a word. So before a run's first step everything that it computes is
computed with and without, on its first task batch; unless all of it agrees, the run goes on
uncompiled and says why.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradshare.config import RunConfig
from gradshare.methods import MetaLearner
from gradshare.tasks import TaskBatch
from gradshare.training.setup import Setup

log = logging.getLogger(__name__)

# Of each tensor by its norm; the floor is for gradients that are zero but for rounding.
RELATIVE, FLOOR = 1e-3, 1e-6


def compile_if_right(config: RunConfig, setup: Setup) -> Setup:
    """Compile the model's forward pass if the layout says so and the results stay the same.

    Args:
        config: of the run.
        setup: its parts, the model uncompiled.

    Returns:
        The setup, whose layout says whether the model was compiled.
    """
    if not setup.layout.compile:
        return setup
    batch = setup.train.batch(range(config.task_batch)).to(setup.device)
    tasks = setup.normalization.batch(batch)
    model = setup.learner.model
    annealed = setup.learner.first_order_iterations
    # Where the derivative's order is annealed, the first iteration is of the first order.
    iterations = sorted({0, annealed if annealed < config.iterations else 0})
    expected = _everything(setup.learner, tasks, iterations)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it cannot trace it leaves as it is
            model.forward = torch.compile(model.forward)
            reason = _difference(_everything(setup.learner, tasks, iterations), expected)
    except Exception as error:  # a compiler fails in nearly any way
        words = next(iter(str(error).splitlines()), "")
        reason = f"{type(error).__name__}: {words}" if words else type(error).__name__
    if reason is None:
        return setup
    model.__dict__.pop("forward", None)  # the class's own is left
    torch.compiler.reset()
    log.warning("the run goes on without --compile, which cannot be used here (%s)", reason)
    return replace(setup, layout=replace(setup.layout, compile=False))


def _everything(
    learner: MetaLearner, tasks: TaskBatch, iterations: Sequence[int]
) -> dict[str, Tensor]:
    """What a run computes with its model: the outer losses and gradients of some iterations, and
    the predictions of adapted tasks.
    """
    learned, state = learner.init()
    found = {}
    for iteration in iterations:
        losses = learner.outer_step(learned, state, tasks, iteration=iteration).losses
        gradients = torch.autograd.grad(
            losses.mean(), list(learned.values()), allow_unused=True, materialize_grads=True
        )
        found[f"the outer losses of iteration {iteration + 1}"] = losses.detach()
        for name, gradient in zip(learned, gradients, strict=True):
            found[f"the outer gradient of {name} in iteration {iteration + 1}"] = gradient
    with torch.no_grad():
        params = learner.adapt(learned, state, tasks).params[-1]
        logits = learner.predict(learned, params, tasks, updates=learner.steps)
    return {**found, "the predictions of adapted tasks": logits}


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """The first tensor that differs; None if none does."""
    for name, right in expected.items():
        error, size = float((found[name] - right).norm()), float(right.norm())
        if not error <= RELATIVE * size + FLOOR:  # not a number is a difference too
            return f"{name} would be wrong by {error:.1e}, of a norm of {size:.1e}"
    return None
