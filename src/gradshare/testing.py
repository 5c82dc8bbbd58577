"""Checks for the tests of your own update rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gradshare.inner_loop import Step, Tensors, UpdateRule
from gradshare.inner_loop.rule import checked_init, checked_update, require_rule
from gradshare.methods import MetaLearner
from gradshare.tasks import TaskBatch

TASKS = 3
GIVEN = ("gradients", "meta", "carried", "task", "step.params")


def check_rule(rule: UpdateRule, *, steps: int = 3) -> None:
    """Check the properties that each update rule must have, on a small problem in float64.

    It returns the right names and shapes; changes nothing in place; has no hidden state; leaves
    `carried` alone at test; combines tasks by `sum_over_tasks` only; is finite at a zero gradient,
    and so is its derivative; has the same results in each layout; takes more steps at test.

    Args:
        rule: the rule.
        steps: K, the inner steps it is made for.

    Raises:
        AssertionError: a property does not hold; the message says which, and what to do.
        ConfigError: the rule is not an UpdateRule, or returns other names or shapes.
    """
    require_rule("rule", rule)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        params = _random()
        meta, carried = checked_init(rule, {n: tensor[0] for n, tensor in params.items()}, steps)
        # Before any training, while training, and after it.
        for sum_over_tasks in (None, _sum_of_others, None):
            task = rule.start(params)
            for k in range(steps):
                step = Step(k, params, _random(), torch.rand(TASKS).double(), sum_over_tasks)
                carried, task = _check_update(rule, meta, carried, task, step)
        _check_layouts(rule, carried, steps)


def _check_update(
    rule: UpdateRule, meta: Tensors, carried: Tensors, task: Tensors, step: Step
) -> tuple[Tensors, Tensors]:
    """Check `update` at one step, and return `carried` and `task` after it."""
    update = f"{type(rule).__name__}.update"

    def called(tasks: slice) -> tuple[Tensors, Tensors, Tensors]:
        own, params, state = (_part(t, tasks) for t in (step.own_gradients, step.params, task))
        part = Step(step.k, params, own, step.losses[tasks], step.sum_over_tasks)
        given = dict(zip(GIVEN, (own, meta, carried, state, params), strict=True))
        before = [(group, n, t, t._version) for group in given for n, t in given[group].items()]
        result = checked_update(rule, own, meta, carried, state, part)
        for group, name, tensor, version in before:
            if given[group].get(name) is not tensor or tensor._version != version:
                raise AssertionError(
                    f"{update} changed {name!r} of `{group}` in place; make new tensors and a new "
                    "dictionary"
                )
        return result

    updates, new_carried, new_task = result = called(slice(None))
    _require_same(
        called(slice(None)),
        result,
        f"{update} returns something else when it is called again with the same arguments; keep "
        "what changes in `carried` or `task`, not in the rule",
    )
    if not step.training:
        sentence = "changed `carried` at test; return it as it was unless `step.training`"
        _require_same(new_carried, carried, f"{update} {sentence}")
    for one in (slice(t, t + 1) for t in range(TASKS)):
        _require_same(
            called(one),
            (_part(updates, one), new_carried, _part(new_task, one)),
            f"{update} lets a task depend on those beside it; combine tasks by "
            "`step.sum_over_tasks` only, which is None at test",
        )
    zero = {name: torch.zeros_like(t).requires_grad_() for name, t in step.params.items()}
    learned = {name: t.detach().clone().requires_grad_() for name, t in meta.items()}
    at_zero = replace(step, own_gradients=zero)
    updates, _, _ = checked_update(rule, zero, learned, carried, task, at_zero)
    leaves = [*zero.values(), *learned.values()]
    total = torch.stack([t.sum() for t in updates.values()] + [0 * t.sum() for t in leaves]).sum()
    if not all(t.isfinite().all() for t in (total, *torch.autograd.grad(total, leaves))):
        raise AssertionError(
            f"{update} or its derivative is not finite at a zero gradient; guard divisions and "
            "roots: torch.where(x > 0, x, 1)"
        )
    return new_carried, new_task


def _check_layouts(rule: UpdateRule, carried: Tensors, steps: int) -> None:
    """Check whole outer steps, and more inner steps at test than in training."""
    kind = type(rule).__name__
    x, y = torch.randn(2, TASKS, 6, 4).double(), torch.arange(2).repeat(TASKS, 3)
    tasks = TaskBatch(x[0], y, x[1], y)
    learner = MetaLearner(nn.Linear(4, 2).double(), rule, steps=steps)
    meta, _ = learner.init()
    leaves, results = list(meta.values()), []
    for tasks_at_a_time, recompute in ((1, False), (None, False), (1, True), (None, True)):
        other = learner.laid_out(tasks_at_a_time=tasks_at_a_time, recompute=recompute)
        out = other.outer_step(meta, carried, tasks, iteration=0)
        gradients = torch.autograd.grad(out.objective.mean(), leaves, materialize_grads=True)
        results.append((out.losses, out.carried, gradients))
        _require_same(
            results[-1],
            results[0],
            f"{kind} has other results with {tasks_at_a_time=} and {recompute=}; compute from the "
            "values that `update` gets alone, not from their graphs or memory",
        )
    try:
        learner.adapt(meta, carried, tasks, steps=steps + 2)
    except (IndexError, KeyError) as error:
        raise AssertionError(
            f"{kind}.update fails with more inner steps than it was made for ({error!s:.100}); "
            "index what is per step by `step.k`"
        ) from error


def _random() -> dict[str, torch.Tensor]:
    return {"weight": torch.randn(TASKS, 2, 4).double(), "bias": torch.randn(TASKS, 2).double()}


def _sum_of_others(tensors: Tensors) -> Tensors:
    """A replacement for the sum over a larger batch: it does not depend on the tasks given."""
    return {name: torch.ones_like(tensor[0]) for name, tensor in tensors.items()}


def _part(tensors: Tensors, tasks: slice) -> dict[str, torch.Tensor]:
    for name, tensor in tensors.items():
        if tensor.shape[:1] != (TASKS,):
            raise AssertionError(
                f"the rule made a state {name!r} of shape {tuple(tensor.shape)}; its first "
                f"dimension must be the tasks, here {TASKS}"
            )
    return {name: tensor[tasks] for name, tensor in tensors.items()}


def _require_same(found: Any, expected: Any, message: str) -> None:
    """Raise AssertionError unless two trees of tensors are equal but for rounding."""
    torch.testing.assert_close(found, expected, msg=message)
