"""The predictions of a classifier, label by label."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradshare.tasks import TaskBatch
from gradshare.tasks.batch import each_task
from gradshare.training.metrics import are_classes

MOST_LABELS = 100

SAMPLE_TASKS = 3
"""The number of test tasks whose predictions are kept."""


def labels_of(outputs: Tensor, tasks: TaskBatch) -> dict[str, list[Any]]:
    """The accuracy of a classifier on each label, and its predictions.

    Args:
        outputs: (T, n, classes) scores of the queries.
        tasks: T tasks.

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
