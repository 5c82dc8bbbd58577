"""What simple classifiers, which need no meta-training, come to on the same test tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import task_of
from gradshare.tasks.source import prepared

LARGEST_INPUT = 2**15
CHUNK = 10
"""Tasks that are drawn at a time."""

L2 = 0.1
STEPS = 100


def yardsticks(source: TaskSource, tasks: int) -> dict[str, dict[str, list[float]]]:
    """The accuracy of two simple classifiers on tasks 0, …, n - 1, each fitted to a task's support
    set alone: the nearest class mean, and logistic regression.

    They see the inputs as the source prepares them, one row of numbers for each example,
    standardised by the support set.

    Returns:
        The accuracy on each task, by the classifier's name and "accuracy". Empty if the targets are
        not classes, or the inputs are not one tensor of floats or bytes with at most
        `LARGEST_INPUT` numbers for each example.
    """
    if not _fits(source.batch([0])):
        return {}
    found: dict[str, list[float]] = {name: [] for name in CLASSIFIERS}
    for start in range(0, tasks, CHUNK):
        batch = prepared(source, source.batch(range(start, min(tasks, start + CHUNK))))
        for task in range(len(batch)):
            support = task_of(batch.support_x, task, batch.support_n).flatten(1).float()
            queries = task_of(batch.query_x, task, batch.query_n).flatten(1).float()
            labels = task_of(batch.support_y, task, batch.support_n)
            answers = task_of(batch.query_y, task, batch.query_n)
            for name, guesses in guessed(support, labels, queries).items():
                found[name].append((guesses == answers).double().mean().item())
    return {name: {"accuracy": values} for name, values in found.items()}


def guessed(support: Tensor, labels: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """The labels (q,) that each simple classifier gives to the queries of one task.

    Args:
        support: float (n, D).
        labels: (n,) of the support set.
        queries: float (q, D).
    """
    classes, codes = torch.unique(labels, return_inverse=True)
    targets = torch.nn.functional.one_hot(codes, len(classes)).float()
    support, queries = _standardised(support, queries)
    return {
        name: classes[scores(support, targets, queries).argmax(1)]
        for name, scores in CLASSIFIERS.items()
    }


def _fits(batch: TaskBatch) -> bool:
    x, y = batch.support_x, batch.support_y
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or y.ndim != 2:
        return False
    numbers = x.is_floating_point() or x.dtype == torch.uint8
    return numbers and not y.is_floating_point() and x[0, 0].numel() <= LARGEST_INPUT


def _standardised(support: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, D) of which those of the support set have mean 0 and about unit length."""
    mean, variance = support.mean(0), support.var(0, correction=0)
    # A number that hardly varies in a few examples says little; divided by its own deviation it
    # would outweigh all others in a query.
    variance = variance + 0.01 * variance.mean()
    scale = (variance * len(variance)).sqrt().clamp_min(1e-12)
    return (support - mean) / scale, (queries - mean) / scale


def _mean_scores(support: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    """Minus the distances (q, classes) from the means of the classes."""
    means = targets.T @ support / targets.sum(0)[:, None]
    return -torch.cdist(queries, means)


def _regression_scores(support: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    """The logits (q, classes) of the weights W that minimise the sum of the cross entropy over the
    support set + L2/2 ‖W‖².

    W is a sum of the examples, each times a coefficient for each class. Nesterov's method descends
    in these coefficients, so that its cost hardly depends on D. A constant input gives the bias.
    """
    gram = support @ support.T + 1
    rate = 1 / (gram.norm() / 2 + L2)
    before = coefficients = torch.zeros_like(targets)
    for step in range(STEPS):
        ahead = coefficients + step / (step + 3) * (coefficients - before)
        slope = (gram @ ahead).softmax(1) - targets + L2 * ahead
        before, coefficients = coefficients, ahead - rate * slope
    return (queries @ support.T + 1) @ coefficients


CLASSIFIERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "nearest class mean": _mean_scores,
    "logistic regression": _regression_scores,
}
