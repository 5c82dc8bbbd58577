"""Algorithm 2: a learner on new tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradshare.errors import ConfigError, DataError
from gradshare.inner_loop import Tensors
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import prepared
from gradshare.training.distributed import OneProcess
from gradshare.training.labels import labels_of
from gradshare.training.metrics import Metric
from gradshare.training.randomness import isolated, seed_generators
from gradshare.training.records import VALIDATION
from gradshare.training.statistics import Interval, confidence95

CHUNK = 10
"""So many tasks are evaluated at once; another number would change results by rounding."""

Model = tuple[Tensors, Tensors]
"""The meta-parameters and the carried tensors of one checkpoint."""

Values = dict[str, list[float]]
"""Each metric's value for each task."""


@dataclass(frozen=True)
class Evaluation:
    """What a learner came to on some tasks. `evaluation["accuracy"]` is a mean with its interval.

    Attributes:
        values: each metric's value for each task, by name; task i is the source's index i.
        metrics: the metrics.
        score: the name of the one that selected the checkpoints.
        how: what was evaluated and how, for the reader: "ensemble of 5", "10 inner steps".
    """

    values: Values
    metrics: Mapping[str, Metric]
    score: str
    how: tuple[str, ...] = ()

    def __getitem__(self, metric: str) -> Interval:
        """The mean of a metric over the tasks, with its 95 % interval."""
        return confidence95(self.values[metric])

    def __len__(self) -> int:
        """How many tasks there were."""
        return len(self.values[self.score])

    def __str__(self) -> str:
        """All metrics in one line, the score first."""
        names = [self.score, *(name for name in self.values if name != self.score)]
        shown = ", ".join(f"{name} {self.metrics[name].show(self[name])}" for name in names)
        return f"{shown} ({', '.join((f'{len(self)} tasks', *self.how))})"

    def worst(self, count: int = 5) -> list[tuple[int, float]]:
        """The tasks with the worst scores, worst first: (index, score)."""
        rank = self.metrics[self.score].rank
        tasks = sorted(enumerate(self.values[self.score]), key=lambda task: -rank(task[1]))
        return tasks[:count]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each task and a column for each metric.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigError(
                "to_pandas needs pandas, which is not installed: pip install pandas; without it "
                "`evaluation.values` has the same numbers"
            ) from error
        return pd.DataFrame(self.values).rename_axis("task")


def evaluate(
    learner: Learner,
    meta: Tensors,
    carried: Tensors,
    source: TaskSource,
    *,
    tasks: int = 600,
    steps: int | None = None,
    metrics: Mapping[str, Metric],
    score: str | None = None,
) -> Evaluation:
    """Evaluate meta-parameters of your own on tasks 0, …, n - 1 of a source.

    Args:
        learner: the method.
        meta: its meta-parameters.
        carried: its carried tensors.
        source: where the tasks come from.
        tasks: how many.
        steps: inner steps; None for as many as were trained.
        metrics: what to measure, by name.
        score: the metric that comes first; by default the first.
    """
    device = next(iter(meta.values())).device
    measure = measuring(learner, [(meta, carried)], metrics, steps=steps)
    with isolated(device):
        rows = on_all_tasks(OneProcess(), source, tasks, device, measure)
    return Evaluation(joined(rows, "ensemble"), metrics, score or next(iter(metrics)))


Rows = list[dict[str, dict[str, Any]]]
"""For each task the value of each metric, by what was measured (a split or a model) and name."""


def measuring(
    learner: Learner,
    models: Sequence[Model],
    metrics: Mapping[str, Metric],
    *,
    steps: int | None = None,
) -> Callable[[TaskBatch], Rows]:
    """A function that measures several models on a batch: as one ensemble, by the mean of their
    outputs, and the first alone ("single"). Each adapts with its own ĝ and λ.
    """

    def measure(tasks: TaskBatch) -> Rows:
        outputs = []
        for meta, carried in models:
            adapted = learner.adapt(meta, carried, tasks, steps=steps)
            outputs.append(learner.predict(meta, adapted, tasks))
        together = mean_of_finite(torch.stack(outputs)) if len(outputs) > 1 else outputs[0]
        return rows_of(
            tasks,
            {
                "ensemble": values_of(metrics, together, tasks),
                "single": values_of(metrics, outputs[0], tasks),
                "labels": labels_of(together, tasks),
            },
        )

    return measure


def measuring_fit(
    learner: Learner, model: Model, metrics: Mapping[str, Metric]
) -> Callable[[TaskBatch], Rows]:
    """A function that measures support and query examples before and after adaptation."""
    meta, carried = model

    def measure(tasks: TaskBatch) -> Rows:
        support = replace(
            tasks, query_x=tasks.support_x, query_y=tasks.support_y, query_n=tasks.support_n
        )
        found = {}
        before = learner.adapt(meta, carried, tasks, steps=0)
        after = learner.adapt(meta, carried, tasks)
        for split, adapted, on in (
            ("support before", before, support),
            ("support after", after, support),
            ("query before", before, tasks),
            (VALIDATION, after, tasks),
        ):
            found[split] = values_of(metrics, learner.predict(meta, adapted, on), on)
        return rows_of(tasks, found)

    return measure


def values_of(
    metrics: Mapping[str, Metric], outputs: Tensor, tasks: TaskBatch
) -> dict[str, list[float]]:
    """The value of each metric for each task of a batch."""
    return {
        name: metric.values(outputs, tasks.query_y, tasks.query_n).tolist()
        for name, metric in metrics.items()
    }


def rows_of(tasks: TaskBatch, found: Mapping[str, Mapping[str, Sequence[Any]]]) -> Rows:
    """Columns of values to a row for each task."""
    return [
        {
            what: {name: column[t] for name, column in columns.items()}
            for what, columns in found.items()
        }
        for t in range(len(tasks))
    ]


def joined(rows: Rows, what: str) -> dict[str, list[Any]]:
    """Rows to columns, of one of the things that were measured."""
    return {name: [row[what][name] for row in rows] for name in rows[0][what]}


def mean_of_finite(outputs: Tensor) -> Tensor:
    """(members, T, n, …) outputs to the mean over members, without those whose adaptation
    overflowed on a task: one of them would spoil the whole ensemble there.
    """
    finite = outputs.isfinite().flatten(3).all(-1) if outputs.ndim > 3 else outputs.isfinite()
    finite = finite.reshape(finite.shape + (1,) * (outputs.ndim - finite.ndim))
    return torch.where(finite, outputs, 0).sum(0) / finite.sum(0)


@torch.no_grad()
def on_all_tasks(
    processes: OneProcess,
    source: TaskSource,
    count: int,
    device: torch.device,
    measure: Callable[[TaskBatch], Rows],
    advance: Callable[[int], None] = lambda _: None,
) -> Rows:
    """A row for each of tasks 0, …, count - 1, in their order, whichever process measured it.

    Each chunk seeds the global generators from its own number.
    """
    if count < 1:
        raise DataError(f"an evaluation needs at least one task, and {count} were asked for")
    rows: Rows = []
    # Whole chunks are shared out: tasks that are computed together round together, and so the
    # numbers are the same for any number of processes.
    for chunks in _rounds(range(count), processes.size):
        own = chunks[processes.rank]
        measured: Rows = []
        if own:
            batch = source.batch(own).to(device)
            seed_generators(own.start)
            measured = measure(prepared(source, batch))
        rows += processes.gather(measured)
        advance(sum(map(len, chunks)))
    return rows


def _rounds(tasks: range, processes: int) -> Iterator[list[range]]:
    """Chunks of tasks, one for each process at a time; empty ones at the end."""
    for start in range(0, len(tasks), CHUNK * processes):
        starts = range(start, start + CHUNK * processes, CHUNK)
        yield [tasks[first : first + CHUNK] for first in starts]


def intervals(values: Values) -> dict[str, Interval]:
    """The mean and interval of each metric."""
    return {name: confidence95(column) for name, column in values.items()}


def finite_or_null(values: Values) -> dict[str, list[float | None]]:
    """As JSON, which has no NaN."""
    return {n: [v if math.isfinite(v) else None for v in column] for n, column in values.items()}
