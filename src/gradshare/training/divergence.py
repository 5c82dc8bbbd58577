"""Where an outer iteration became non-finite.

An iteration is a pure function of its outer parameters, state and tasks. So nothing watches the
iterations that go well: one that was refused is walked again, this time looking at everything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from gradshare.inner_loop import SumOverTasks, Tensors, UpdateRule, task_gradients
from gradshare.inner_loop.rule import sum_over_local_tasks
from gradshare.methods import MetaLearner
from gradshare.methods.meta_learner import MODEL
from gradshare.tasks import TaskBatch


def diagnose(
    learner: MetaLearner, learned: Tensors, state: Tensors, tasks: TaskBatch, *, iteration: int
) -> str | None:
    """The first value that is not finite, with its inner step and task, both counted from 1.

    Args:
        learner: the method.
        learned: the outer parameters, as they were before the iteration.
        state: the rules' state, likewise.
        tasks: normalised images.
        iteration: how many iterations came before.

    Returns:
        "the support loss of task 2 is not finite at inner step 4", for instance; None if no value
        of a single task is to blame.
    """
    unusable = not_finite(learned)
    if unusable is not None:
        return f"{unusable} is not finite"
    return next(_forward(learner, learned, state, tasks, iteration), None) or next(
        _backward(learner, learned, state, tasks, iteration), None
    )


def not_finite(tensors: Tensors) -> str | None:
    """The name of the first tensor with an entry that is not finite; None if there is none."""
    return next((name for name, t in tensors.items() if not bool(t.isfinite().all())), None)


def _forward(
    learner: MetaLearner, learned: Tensors, state: Tensors, tasks: TaskBatch, iteration: int
) -> Iterator[str]:
    """What is not finite in the inner loop and the query losses, in the order of the algorithm."""
    weights = learner.query_weights(iteration)
    start = {name: learned[f"{MODEL}.{name}"].detach() for name in learner.adapted}
    params: Tensors = {name: t.expand(len(tasks), *t.shape) for name, t in start.items()}

    for step in range(learner.steps):
        at = f"at inner step {step + 1}"

        def support_losses(params: Tensors, _: Tensors, chunk: slice, step: int = step) -> Tensor:
            outputs = learner.predict_support(learned, params, tasks[chunk], updates=step)
            return learner.losses(outputs, tasks.support_y[chunk])

        with torch.no_grad():
            losses = support_losses(params, {}, slice(None))
        for task in _not_finite_tasks({"loss": losses}):
            yield f"the support loss of task {task} is not finite {at}"
        gradients = task_gradients(
            support_losses,
            params,
            {},
            learner.chunks(tasks),
            second_order=False,
            recompute=False,
        )
        for task in _not_finite_tasks(gradients):
            yield f"the gradient of task {task}'s support loss is not finite {at}"
        with torch.no_grad():
            updates, state = learner.rule.update(
                gradients, learned, state, step, sum_over_local_tasks
            )
            params = {name: tensor - updates[name] for name, tensor in params.items()}
            for task in _not_finite_tasks(params):
                yield f"the parameters of task {task} are not finite after inner step {step + 1}"
            if weights[step]:
                outputs = learner.predict(learned, params, tasks, updates=step + 1)
                for task in _not_finite_tasks({"loss": learner.losses(outputs, tasks.query_y)}):
                    yield f"the query loss of task {task} is not finite after inner step {step + 1}"


def _backward(
    learner: MetaLearner, learned: Tensors, state: Tensors, tasks: TaskBatch, iteration: int
) -> Iterator[str]:
    """Whose outer gradient is not finite, and in which inner step it ceases to be."""
    watched = copy.copy(learner)
    watched.rule = _Watched(learner.rule)
    losses = watched.outer_step(learned, state, tasks, iteration=iteration).losses
    for task in range(len(tasks)):
        watched.rule.reached.clear()
        gradients = torch.autograd.grad(
            losses[task],
            list(learned.values()),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        name = not_finite(dict(zip(learned, gradients, strict=True)))
        if name is None:
            continue
        yield (
            f"the outer gradient of {name} from task {task + 1} is not finite"
            f"{_where(watched.rule, name, learner.steps)}"
        )


def _where(rule: _Watched, name: str, steps: int) -> str:
    """Where the outer gradient ceased to be finite on its way back.

    If what comes back to θ_k is not finite, the pass through inner step k + 1 made it so, or where
    there is no such step the pass through the queries.
    """
    last = max(rule.reached, default=0)
    if last == steps or not rule.watching:
        return ", from the query loss on"
    if last == 0 and not name.startswith(f"{MODEL}."):
        return ""  # every θ_k got a finite one: the overflow is in what one of the rules learns
    return f" behind inner step {last + 1}"


class _Watched:
    """A rule, and a note of the inner steps whose updates get a non-finite outer gradient."""

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self.watching = False
        self.reached: set[int] = set()

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        return self.rule.init(params)

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        updates, state = self.rule.update(gradients, learned, state, step, sum_over_tasks)

        def look(gradient: Tensor) -> None:
            if not bool(gradient.isfinite().all()):
                self.reached.add(step + 1)

        for tensor in updates.values():
            if tensor.requires_grad:
                self.watching = True
                tensor.register_hook(look)  # type: ignore[no-untyped-call]
        return updates, state


def _not_finite_tasks(tensors: Tensors) -> list[int]:
    """The tasks, from 1, with an entry that is not finite in any of the (T, …) tensors."""
    finite = [tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in tensors.values()]
    return (~torch.stack(finite).all(0)).nonzero().flatten().add(1).tolist()
