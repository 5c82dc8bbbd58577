"""Of a classifier: its accuracy on each class, and its predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import each_task
from gradshare.training.metrics import are_classes

log = logging.getLogger(__name__)

MOST_LABELS = 100

SAMPLE_TASKS = 3
"""The number of test tasks whose predictions are kept."""


def labels_of(outputs: Tensor, tasks: TaskBatch) -> dict[str, list[Any]]:
    """The accuracy of a classifier on each label, and its predictions.

    Args:
        outputs: (T, n, classes) scores of the queries.

    Returns:
        For each task, "right": the share of each label's queries that are classified right, None if
        it has none; and "predicted": the label of each query, -1 if its scores are not finite.
        Empty unless each query has one of at most `MOST_LABELS` classes.
    """
    classes = are_classes(outputs, tasks.query_y) and outputs.ndim == 3
    if not classes or outputs.shape[2] > MOST_LABELS:
        return {}

    def of_one(scores: Tensor, labels: Tensor) -> tuple[list[float | None], list[int]]:
        found = scores.argmax(1).where(scores.isfinite().all(1), -1)
        right = [(found == labels)[labels == label].double() for label in range(scores.shape[1])]
        return [each.mean().item() if len(each) else None for each in right], found.tolist()

    right, predicted = zip(
        *each_task(of_one, outputs.cpu(), tasks.query_y.cpu(), tasks.query_n), strict=True
    )
    return {"right": list(right), "predicted": list(predicted)}


def accuracy_by_class(
    right: Sequence[Sequence[float | None]], source: TaskSource
) -> dict[str, float]:
    """The mean accuracy on each class, by its name, over the tasks that have queries of it. Empty
    if the source does not name its classes.

    Args:
        right: for each of tasks 0, …, n - 1 the accuracy on each label; see `labels_of`.
    """
    found: dict[str, list[float]] = {}
    names = class_names(source, len(right))
    for accuracies, classes in zip(right, names, strict=False):
        for accuracy, name in zip(accuracies, classes, strict=False):
            if accuracy is not None:
                found.setdefault(name, []).append(accuracy)
    return {name: fmean(values) for name, values in found.items()}


def class_names(source: TaskSource, tasks: int) -> list[tuple[str, ...]]:
    """The names of the labels of tasks 0, …, n - 1; an empty list if the source has none."""
    classes_of = getattr(source, "classes_of", None)
    if classes_of is None:
        return []
    try:
        return [tuple(map(str, classes_of(index))) for index in range(tasks)]
    except Exception as error:  # a user's: the results of the training matter more
        log.warning(
            "%s.classes_of failed: %s: %s; the report has no class names",
            *(type(source).__name__, type(error).__name__, error),
        )
        return []
