"""Where an outer iteration became non-finite.

An iteration is a pure function of its meta-parameters, carried tensors and tasks. So nothing is
watched while iterations go well: a refused one is computed again, and every value is looked at.
"""

from __future__ import annotations

import torch

from gradshare.inner_loop import Step, Tensors, UpdateRule
from gradshare.methods import Adapted, Learner, MetaLearner
from gradshare.tasks import TaskBatch
from gradshare.tasks.batch import PARTS, leaves, task_of


def diagnose(
    learner: Learner, meta: Tensors, carried: Tensors, tasks: TaskBatch, *, iteration: int
) -> str | None:
    """The first value of an outer iteration that is not finite, with its inner step and task, both
    counted from 1.

    Returns:
        "the support loss of task 2 is not finite at inner step 4", for instance; None if no value
        of a single task is to blame.
    """
    unusable = not_finite(meta)
    if unusable is not None:
        return f"{unusable} is not finite"
    part = not_finite_part(tasks)
    if part is not None:
        return part
    if isinstance(learner, MetaLearner):
        learner = learner.laid_out(tasks_at_a_time=1, recompute=False)
        learner.rule = watched = _Watched(learner.rule)
    step = learner.outer_step(meta, carried, tasks, iteration=iteration)
    if isinstance(learner, MetaLearner) and watched.params:  # a prototypical network takes no step
        faults = watched.faults or _query_faults(learner, meta, watched.params, tasks, iteration)
    else:
        faults = [f"the outer loss of task {t} is not finite" for t in _bad({"": step.losses})]
    if faults:
        return faults[0]
    for task, objective in enumerate(step.objective, start=1):
        gradients = torch.autograd.grad(
            objective,
            list(meta.values()),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        name = not_finite(dict(zip(meta, gradients, strict=True)))
        if name is not None:
            return f"the outer gradient of {name} from task {task} is not finite"
    return None


def not_finite(tensors: Tensors) -> str | None:
    """The name of the first tensor with an entry that is not finite; None if there is none."""
    return next((name for name, t in tensors.items() if not bool(t.isfinite().all())), None)


def not_finite_part(tasks: TaskBatch) -> str | None:
    """The first input or target that is not finite, padding aside; None if there is none."""
    for task in range(len(tasks)):
        for name in PARTS:
            sizes = tasks.support_n if name.startswith("support") else tasks.query_n
            for path, leaf in leaves(task_of(getattr(tasks, name), task, sizes), name):
                if not bool(leaf.isfinite().all()):
                    return f"{path} of task {task + 1} holds a value that is not finite"
    return None


class _Watched(UpdateRule):
    """A rule that notes what is not finite in each inner step.

    Attributes:
        faults: what was found, in the order of the algorithm.
        params: (T, …) the parameters after each step.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self.faults: list[str] = []
        self.params: list[Tensors] = []

    def start(self, params: Tensors) -> Tensors:
        return self.rule.start(params)

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        updates, carried, task = self.rule.update(gradients, meta, carried, task, step)
        after = {name: (t - updates[name]).detach() for name, t in step.params.items()}
        for tensors, fault in (
            ({"loss": step.losses}, "the support loss of task {} is not finite at inner step {}"),
            (gradients, "the gradient of task {}'s support loss is not finite at inner step {}"),
            (after, "the parameters of task {} are not finite after inner step {}"),
        ):
            self.faults += [fault.format(task, step.k + 1) for task in _bad(tensors)]
        self.params.append(after)
        return updates, carried, task


@torch.no_grad()
def _query_faults(
    learner: MetaLearner, meta: Tensors, params: list[Tensors], tasks: TaskBatch, iteration: int
) -> list[str]:
    """The query losses that are not finite, of the inner steps whose losses count."""
    faults = []
    for k, weight in enumerate(learner.query_weights(iteration), start=1):
        if weight:
            outputs = learner.predict(meta, Adapted(params[k - 1], k), tasks)
            losses = learner.losses(outputs, tasks.query_y, tasks.query_n)
            faults += [
                f"the query loss of task {task} is not finite after inner step {k}"
                for task in _bad({"loss": losses})
            ]
    return faults


def _bad(tensors: Tensors) -> list[int]:
    """The tasks, from 1, with an entry that is not finite in any of the (T, …) tensors."""
    finite = [tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in tensors.values()]
    return (~torch.stack(finite).all(0)).nonzero().flatten().add(1).tolist()
