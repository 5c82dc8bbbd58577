"""Where an outer iteration became non-finite.

An iteration is a pure function of its meta-parameters, carried tensors and tasks. So nothing is
watched while iterations go well: one that was refused is computed again, this time looking at
every value.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from gradshare.inner_loop import Step, Tensors, UpdateRule, task_gradients
from gradshare.inner_loop.rule import sum_over_local_tasks
from gradshare.methods import Adapted, Learner, MetaLearner
from gradshare.methods.meta_learner import MODEL
from gradshare.tasks import TaskBatch
from gradshare.tasks.batch import PARTS, leaves, task_of


def diagnose(
    learner: Learner, meta: Tensors, carried: Tensors, tasks: TaskBatch, *, iteration: int
) -> str | None:
    """The first value that is not finite, with its inner step and task, both counted from 1.

    Args:
        learner: the method.
        meta: the meta-parameters, as they were before the iteration.
        carried: the carried tensors, likewise.
        tasks: prepared tasks.
        iteration: how many iterations came before.

    Returns:
        "the support loss of task 2 is not finite at inner step 4", for instance; None if no value
        of a single task is to blame.
    """
    unusable = not_finite(meta)
    if unusable is not None:
        return f"{unusable} is not finite"
    for task in range(len(tasks)):
        for name in PARTS:
            sizes = tasks.support_n if name.startswith("support") else tasks.query_n
            for path, leaf in leaves(task_of(getattr(tasks, name), task, sizes), name):
                if not bool(leaf.isfinite().all()):
                    return f"{path} of task {task + 1} holds a value that is not finite"
    if not isinstance(learner, MetaLearner):
        losses = learner.outer_step(meta, carried, tasks, iteration=iteration).losses
        blamed = _not_finite_tasks({"loss": losses})
        return f"the outer loss of task {blamed[0]} is not finite" if blamed else None
    return next(_forward(learner, meta, carried, tasks, iteration), None) or next(
        _backward(learner, meta, carried, tasks, iteration), None
    )


def not_finite(tensors: Tensors) -> str | None:
    """The name of the first tensor with an entry that is not finite; None if there is none."""
    return next((name for name, t in tensors.items() if not bool(t.isfinite().all())), None)


def _forward(
    learner: MetaLearner, meta: Tensors, carried: Tensors, tasks: TaskBatch, iteration: int
) -> Iterator[str]:
    """What is not finite in the inner loop and the query losses, in the order of the algorithm."""
    weights = learner.query_weights(iteration)
    learned = {name: t for name, t in meta.items() if not name.startswith(f"{MODEL}.")}
    theta = {name: meta[f"{MODEL}.{name}"].detach() for name in learner.adapted}
    params: Tensors = learner.start(theta, tasks)
    state = learner.rule.start(params)

    def support_losses(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
        return learner.support_losses(params, shared, tasks[chunk], training=True)

    for k in range(learner.steps):
        at = f"at inner step {k + 1}"
        gradients, losses = task_gradients(
            support_losses,
            params,
            learner.shared_parameters(meta, k),
            learner.chunks(tasks),
            second_order=False,
            recompute=False,
        )
        for task in _not_finite_tasks({"loss": losses}):
            yield f"the support loss of task {task} is not finite {at}"
        for task in _not_finite_tasks(gradients):
            yield f"the gradient of task {task}'s support loss is not finite {at}"
        with torch.no_grad():
            step = Step(k, params, gradients, losses, sum_over_local_tasks)
            updates, carried, state = learner.rule.update(gradients, learned, carried, state, step)
            params = {name: tensor - updates[name] for name, tensor in params.items()}
            for task in _not_finite_tasks(params):
                yield f"the parameters of task {task} are not finite after inner step {k + 1}"
            if weights[k]:
                outputs = learner.predict(meta, Adapted(params, k + 1), tasks)
                losses = learner.losses(outputs, tasks.query_y, tasks.query_n)
                for task in _not_finite_tasks({"loss": losses}):
                    yield f"the query loss of task {task} is not finite after inner step {k + 1}"


def _backward(
    learner: MetaLearner, meta: Tensors, carried: Tensors, tasks: TaskBatch, iteration: int
) -> Iterator[str]:
    """Whose outer gradient is not finite, and in which inner step it becomes so."""
    watched = copy.copy(learner)
    watched.rule = rule = _Watched(learner.rule)
    objective = watched.outer_step(meta, carried, tasks, iteration=iteration).objective
    for task in range(len(tasks)):
        rule.reached.clear()
        gradients = torch.autograd.grad(
            objective[task],
            list(meta.values()),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        name = not_finite(dict(zip(meta, gradients, strict=True)))
        if name is None:
            continue
        yield (
            f"the outer gradient of {name} from task {task + 1} is not finite"
            f"{_where(rule, name, learner.steps)}"
        )


def _where(rule: _Watched, name: str, steps: int) -> str:
    """Where the outer gradient stopped being finite on its way back.

    If what comes back to θ_k is not finite, the pass through inner step k + 1 made it so, or where
    there is no such step the pass through the queries.
    """
    last = max(rule.reached, default=0)
    if last == steps or not rule.watching:
        return ", from the query loss on"
    if last == 0 and not name.startswith(f"{MODEL}."):
        return ""  # each θ_k got a finite one: the overflow is in what one of the rules learns
    return f" behind inner step {last + 1}"


class _Watched(UpdateRule):
    """A rule, and a note of the inner steps whose updates get a non-finite outer gradient."""

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self.watching = False
        self.reached: set[int] = set()

    def start(self, params: Tensors) -> Tensors:
        return self.rule.start(params)

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        updates, carried, task = self.rule.update(gradients, meta, carried, task, step)

        def look(gradient: Tensor) -> None:
            if not bool(gradient.isfinite().all()):
                self.reached.add(step.k + 1)

        for tensor in updates.values():
            if tensor.requires_grad:
                self.watching = True
                tensor.register_hook(look)  # type: ignore[no-untyped-call]
        return updates, carried, task


def _not_finite_tasks(tensors: Tensors) -> list[int]:
    """The tasks, from 1, with an entry that is not finite in any of the (T, …) tensors."""
    finite = [tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in tensors.values()]
    return (~torch.stack(finite).all(0)).nonzero().flatten().add(1).tolist()
