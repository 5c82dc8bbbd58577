"""Algorithm 2: a learner on tasks of any kind, and a run's validation and test, on a fixed list of
tasks that is shared out over the run's processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gradshare.errors import DataError
from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner
from gradshare.methods.labels import require_within
from gradshare.tasks import EpisodeSampler, TaskBatch
from gradshare.training.divergence import not_finite
from gradshare.training.memory import CHUNK
from gradshare.training.outer_loop import accuracies
from gradshare.training.setup import Setup
from gradshare.training.statistics import Interval, confidence95

Row = TypeVar("Row")

Model = tuple[Tensors, Tensors]
"""The outer parameters and the rules' state of one checkpoint."""


@dataclass(frozen=True)
class InnerLoopFit:
    """How adaptation changes the fit to a task's support and query images; means over tasks.

    Inner-loop over-fitting is support far above query after adaptation.
    """

    support_accuracy_before: float
    support_accuracy_after: float
    support_loss_before: float
    support_loss_after: float
    query_accuracy_before: float
    query_accuracy_after: float
    query_loss_before: float
    query_loss_after: float


@torch.no_grad()
def evaluate(
    learner: MetaLearner, learned: Tensors, state: Tensors, batches: Iterable[TaskBatch]
) -> Interval:
    """The accuracy of a classifying learner on the queries of new tasks, after adaptation.

    Args:
        learner: the method.
        learned: its outer parameters.
        state: its rules' state, left as it is.
        batches: of normalised images, on the device of `learned`. With transductive batch norm a
            task's accuracy depends on its own queries, and in no mode on the other tasks.

    Returns:
        The mean over all tasks, in [0, 1], and its 95 % confidence interval.

    Raises:
        DataError: there are no batches, or one stands in the place of several; or images have NaN
            or infinity, the learner is no classifier, or the labels are not its classes.
    """
    if isinstance(batches, TaskBatch):
        raise DataError("batches is one TaskBatch; give several, or a list of it: [batch]")
    found: list[float] = []
    for number, tasks in enumerate(batches):
        # Of such images there is no answer, which would count as a wrong one.
        unusable = not_finite({"support_x": tasks.support_x, "query_x": tasks.query_x})
        if unusable is not None:
            raise DataError(
                f"{unusable} of batch {number} has values that are NaN or infinite; look at how "
                "its images were read or scaled"
            )
        logits = _logits(learner, (learned, state), tasks)
        labels = tasks.query_y
        if logits.ndim != 3 or labels.shape != logits.shape[:2] or labels.is_floating_point():
            raise DataError(
                "an accuracy needs outputs (T, n, classes) and whole numbers (T, n) as labels, and "
                f"these are {tuple(logits.shape)} and {labels.dtype} {tuple(labels.shape)}; "
                "measure something else with learner.adapt and learner.predict"
            )
        require_within(logits.shape[2], labels)
        found += accuracies(logits, labels).tolist()
    if not found:
        raise DataError("an accuracy needs at least one batch of tasks, and there was none")
    return confidence95(found)


@torch.no_grad()
def validate(
    setup: Setup,
    model: Model,
    count: int,
    advance: Callable[[int], None],
) -> tuple[Tensor, InnerLoopFit]:
    """Adapt to validation tasks 0, …, count - 1 and look at what adaptation did.

    Args:
        setup: the parts of the run.
        model: what is evaluated.
        count: how many tasks.
        advance: told how many tasks were done, as they are.

    Returns:
        The (count,) query accuracies after adaptation, and the fit before and after it.
    """
    learner, (learned, state) = setup.learner, model

    def measure(tasks: TaskBatch) -> list[InnerLoopFit]:
        adapted = learner.adapt(learned, state, tasks).params
        columns = {}
        for images, predict, targets in (
            ("support", learner.predict_support, tasks.support_y),
            ("query", learner.predict, tasks.query_y),
        ):
            before = predict(learned, adapted[0], tasks, updates=0)
            after = predict(learned, adapted[-1], tasks, updates=learner.steps)
            for when, logits in (("before", before), ("after", after)):
                columns[f"{images}_accuracy_{when}"] = accuracies(logits, targets).tolist()
                columns[f"{images}_loss_{when}"] = learner.losses(logits, targets).tolist()
        each = zip(*columns.values(), strict=True)
        return [InnerLoopFit(**dict(zip(columns, values, strict=True))) for values in each]

    fits = _on_all_tasks(setup, setup.val, count, advance, measure)
    table = torch.tensor([astuple(fit) for fit in fits], dtype=torch.float64)  # (count, 8)
    queries = torch.tensor([fit.query_accuracy_after for fit in fits], dtype=torch.float64)
    return queries, InnerLoopFit(*table.mean(0).tolist())


@dataclass(frozen=True)
class TestAccuracies:
    """Query accuracies on the test tasks, one for each task.

    Attributes:
        ensemble: of the mean logits of all models.
        members: how many models those are.
        single: of the first model alone.
    """

    __test__ = False  # to pytest, which collects classes by this prefix

    ensemble: list[float]
    members: int
    single: list[float]


@torch.no_grad()
def measure_test(
    setup: Setup,
    models: Sequence[Model],
    count: int,
    advance: Callable[[int], None],
) -> TestAccuracies:
    """The accuracy of several models on the test tasks, as one ensemble, and of the first alone.

    Each adapts with its own ĝ and λ; all see the same tasks. Arguments as for `validate`.
    """
    learner = setup.learner

    def measure(tasks: TaskBatch) -> list[tuple[float, float]]:
        logits = [_logits(learner, model, tasks) for model in models]
        ensemble = accuracies(mean_of_finite(torch.stack(logits)), tasks.query_y)
        single = accuracies(logits[0], tasks.query_y)
        return list(zip(ensemble.tolist(), single.tolist(), strict=True))

    rows = _on_all_tasks(setup, setup.test, count, advance, measure)
    return TestAccuracies([row[0] for row in rows], len(models), [row[1] for row in rows])


def _logits(learner: MetaLearner, model: Model, tasks: TaskBatch) -> Tensor:
    """The (T, n, ways) logits of the queries after adaptation."""
    learned, state = model
    adapted = learner.adapt(learned, state, tasks).params[-1]
    return learner.predict(learned, adapted, tasks, updates=learner.steps)


def mean_of_finite(logits: Tensor) -> Tensor:
    """(members, …, ways) logits to the mean over members, those left out whose adaptation
    overflowed on a task: one of them would make the whole ensemble wrong there.
    """
    finite = logits.isfinite().all(-1, keepdim=True)
    return torch.where(finite, logits, 0).sum(0) / finite.sum(0)


def _on_all_tasks(
    setup: Setup,
    sampler: EpisodeSampler,
    count: int,
    advance: Callable[[int], None],
    measure: Callable[[TaskBatch], list[Row]],
) -> list[Row]:
    """A row for each of tasks 0, …, count - 1, in their order, whichever process measured it."""
    rows: list[Row] = []
    # Whole chunks are shared out: tasks that are computed together round together, and so the
    # numbers are the same for any number of processes.
    rank, together = setup.processes.rank, CHUNK * setup.processes.size
    for start in range(0, count, together):
        tasks = range(start, min(start + together, count))
        own = tasks[rank * CHUNK : (rank + 1) * CHUNK]
        measured: list[Row] = []
        if own:
            batch = sampler.batch(own).to(setup.device)
            measured = measure(setup.normalization.batch(batch))
        rows += setup.processes.gather(measured)
        advance(len(tasks))
    return rows
