"""Validation and test: Algorithm 2 on a fixed list of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradshare.episodes import EpisodeSampler, TaskBatch
from gradshare.inner_loop import Tensors
from gradshare.training.memory import CHUNK
from gradshare.training.outer_loop import accuracies
from gradshare.training.setup import Setup

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
    rows = []
    for tasks in _chunks(setup, setup.val, count):
        adapted = learner.adapt(learned, state, tasks).params
        columns = []
        for predict, targets in (
            (learner.predict_support, tasks.support_y),
            (learner.predict, tasks.query_y),
        ):
            before = predict(learned, adapted[0], tasks, updates=0)
            after = predict(learned, adapted[-1], tasks, updates=learner.steps)
            columns += [accuracies(before, targets), accuracies(after, targets)]
            columns += [learner.losses(before, targets), learner.losses(after, targets)]
        rows.append(torch.stack([column.double() for column in columns], 1).cpu())
        advance(len(tasks))
    table = torch.cat(rows)  # (count, 8) in the order of InnerLoopFit's fields
    return table[:, 5], InnerLoopFit(*table.mean(0).tolist())


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

    Each adapts with its own ĝ and λ; all see the same tasks. Arguments as for `evaluate`.
    """
    learner = setup.learner
    ensemble: list[float] = []
    single: list[float] = []
    for tasks in _chunks(setup, setup.test, count):
        logits = [
            learner.predict(
                learned,
                learner.adapt(learned, state, tasks).params[-1],
                tasks,
                updates=learner.steps,
            )
            for learned, state in models
        ]
        ensemble += accuracies(mean_of_finite(torch.stack(logits)), tasks.query_y).tolist()
        single += accuracies(logits[0], tasks.query_y).tolist()
        advance(len(tasks))
    return TestAccuracies(ensemble, len(models), single)


def mean_of_finite(logits: Tensor) -> Tensor:
    """(members, …, ways) logits to the mean over members, those left out whose adaptation
    overflowed on a task: one of them would make the whole ensemble wrong there.
    """
    finite = logits.isfinite().all(-1, keepdim=True)
    return torch.where(finite, logits, 0).sum(0) / finite.sum(0)


def _chunks(setup: Setup, sampler: EpisodeSampler, count: int) -> Iterator[TaskBatch]:
    for start in range(0, count, CHUNK):
        tasks = sampler.batch(range(start, min(start + CHUNK, count)))
        yield setup.normalization.batch(tasks.to(setup.device))
