"""Some test tasks of a comparison, with pictures and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from gradshare.comparison.results import Picture, SampleTask
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import task_of
from gradshare.tasks.pictures import can_be_drawn, pictures
from gradshare.training.labels import class_names


def sample_tasks(
    source: TaskSource, predicted: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[SampleTask, ...]:
    """The first tasks of a source, with pictures.

    Args:
        predicted: by arm, the label that it predicts for each query of each of these tasks. Empty
            if the tasks have no classes.

    Returns:
        The tasks. None if the inputs are not images (C, H, W) or (H, W), or signals (C, L).
    """
    count = min(map(len, predicted.values()), default=0)
    if count == 0:
        return ()
    batch = source.batch(range(count))
    x = batch.support_x
    if not isinstance(x, Tensor) or batch.support_y.shape != x.shape[:2]:
        return ()
    if not can_be_drawn(x):
        return ()
    names = class_names(source, count) or [()] * count
    return tuple(
        _sample(batch, task, names[task], {arm: rows[task] for arm, rows in predicted.items()})
        for task in range(count)
    )


def _sample(
    tasks: TaskBatch, task: int, classes: tuple[str, ...], predicted: Mapping[str, Sequence[int]]
) -> SampleTask:
    known = dict(enumerate(classes))

    def named(label: int) -> str:
        return known.get(label, f"class {label}")

    support_y = task_of(tasks.support_y, task, tasks.support_n).tolist()
    query_y = task_of(tasks.query_y, task, tasks.query_n).tolist()
    support = pictures(task_of(tasks.support_x, task, tasks.support_n), support_y)
    queries = pictures(task_of(tasks.query_x, task, tasks.query_n), query_y)
    return SampleTask(
        support=tuple(Picture(named(support_y[i]), image) for i, image in support.items()),
        queries=tuple(Picture(named(query_y[i]), image) for i, image in queries.items()),
        predicted={
            arm: tuple(named(labels[i]) for i in queries) for arm, labels in predicted.items()
        },
    )
