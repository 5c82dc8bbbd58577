"""What learners that cost nothing come to on the same test tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import prepared

LARGEST_INPUT = 2**15
AT_A_TIME = 2**24
"""The numbers of inputs in memory at a time: large chunks keep PyTorch's overhead small."""

L2 = 0.1
STEPS = 100


def yardsticks(source: TaskSource, tasks: int) -> dict[str, dict[str, list[float]]]:
    """The accuracy of two simple classifiers on tasks 0, …, n - 1, each fitted to a task's support
    set alone: the nearest class mean, and logistic regression.

    They see the inputs as the source prepares them, one row of numbers for each example,
    standardised by the support set.

    Args:
        source: of the tasks.
        tasks: n.

    Returns:
        The accuracy on each task, by the classifier's name and "accuracy". Empty if the targets are
        not classes, or the inputs are not one tensor of floats or bytes with at most
        `LARGEST_INPUT` numbers for each example.
    """
    found: dict[str, list[float]] = {name: [] for name in CLASSIFIERS}
    first = source.batch([0])
    if not _fits(first):
        return {}
    chunk = max(1, AT_A_TIME // (first.support_x.numel() + first.query_x.numel()))
    for start in range(0, tasks, chunk):
        batch = prepared(source, source.batch(range(start, min(tasks, start + chunk))))
        real = _real(batch.support_y, batch.support_n)
        support, queries = _standardised(batch, real)
        classes, codes = batch.support_y.unique(return_inverse=True)
        # (T, n, classes); padding is of no class.
        targets = torch.nn.functional.one_hot(codes, len(classes)) * real[..., None]
        counted = _real(batch.query_y, batch.query_n)
        for name, scores_of in CLASSIFIERS.items():
            scores = scores_of(support, targets, queries)
            right = (classes[scores.argmax(-1)] == batch.query_y) * counted
            found[name] += (right.sum(1) / counted.sum(1)).tolist()
    return {name: {"accuracy": values} for name, values in found.items()}


def _fits(batch: TaskBatch) -> bool:
    x, y = batch.support_x, batch.support_y
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or y.ndim != 2:
        return False
    numbers = x.is_floating_point() or x.dtype == torch.uint8
    return numbers and not y.is_floating_point() and x[0, 0].numel() <= LARGEST_INPUT


def _real(targets: Tensor, sizes: Sequence[int] | None) -> Tensor:
    """(T, n) float32: 1 for an example, 0 for padding."""
    tasks, n = targets.shape
    ends = torch.tensor([n] * tasks if sizes is None else sizes)
    return (torch.arange(n) < ends[:, None]).float()


def _standardised(batch: TaskBatch, real: Tensor) -> tuple[Tensor, Tensor]:
    """Support and query inputs as rows (T, n, D); those of the support set have mean 0 and about
    unit length.
    """
    support, queries = (x.flatten(2).float() for x in (batch.support_x, batch.query_x))
    weight = (real / real.sum(1, keepdim=True))[..., None]
    mean = (support * weight).sum(1, keepdim=True)
    variance = ((support - mean).square() * weight).sum(1, keepdim=True)
    # A number that hardly varies in a few examples says little; divided by its own deviation it
    # would outweigh all others in a query.
    variance = variance + 0.01 * variance.mean(-1, keepdim=True)
    scale = (variance * variance.shape[-1]).sqrt().clamp_min(1e-12)
    return (support - mean) / scale * (real[..., None] > 0), (queries - mean) / scale


def _mean_scores(support: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    """Minus the distances (T, q, classes) from the means of the classes."""
    counts = targets.sum(1)[..., None]  # (T, classes, 1)
    distances = torch.cdist(queries, targets.mT @ support / counts.clamp_min(1))
    return -distances.masked_fill(counts.mT == 0, torch.inf)


def _regression_scores(support: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    """The logits (T, q, classes) of the weights W that minimise the sum of the cross entropy over
    the support set + L2/2 ‖W‖².

    W is a sum of the examples, each times a coefficient for each class. Nesterov's method descends
    in these coefficients, so that its cost hardly depends on D. A constant input gives the bias.
    """
    gram = support @ support.mT + 1
    missing = targets.sum(1, keepdim=True) == 0
    is_example = targets.sum(-1, keepdim=True)
    rate = 1 / (gram.norm(dim=(1, 2)) / 2 + L2)[:, None, None]
    before = coefficients = torch.zeros_like(targets)
    for step in range(STEPS):
        ahead = coefficients + step / (step + 3) * (coefficients - before)
        guess = (gram @ ahead).masked_fill(missing, -torch.inf).softmax(-1)
        slope = (guess * is_example - targets) + L2 * ahead
        before, coefficients = coefficients, ahead - rate * slope
    logits = (queries @ support.mT + 1) @ coefficients
    return logits.masked_fill(missing, -torch.inf)


CLASSIFIERS = {"nearest class mean": _mean_scores, "logistic regression": _regression_scores}
