"""Algorithm 2: a learner on new tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradshare.errors import require_count
from gradshare.inner_loop import Tensors
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import notes_of, prepared
from gradshare.training.distributed import OneProcess
from gradshare.training.metrics import Metric, default_metrics, labels_of
from gradshare.training.randomness import isolated, seed_generators
from gradshare.training.records import VALIDATION
from gradshare.training.statistics import Interval, confidence95

CHUNK = 10
"""The number of tasks that are evaluated together. Another number changes results by rounding."""

Model = tuple[Tensors, Tensors]
"""The meta-parameters and the carried tensors of one checkpoint."""

Values = dict[str, list[Any]]
"""For each task a value of each metric, or what `labels_of` returns."""

Measure = Callable[[TaskBatch], dict[str, Values]]
"""Measures a batch: values by what was measured (a split or a model)."""


@dataclass(frozen=True)
class Evaluation:
    """Metric values of a learner on some tasks. `evaluation["accuracy"]` is a mean with its
    interval.

    Attributes:
        values: each metric's value for each task, by name; task i is the source's index i.
        metrics: the metrics.
        score: the name of the one that selected the checkpoints.
        how: notes for the reader, such as "ensemble of 5" or "10 inner steps".
        note: those of the sources; see `TaskSource`.
    """

    values: Values
    metrics: Mapping[str, Metric]
    score: str
    how: tuple[str, ...] = ()
    note: str = ""

    def __getitem__(self, metric: str) -> Interval:
        """The mean of a metric over the tasks, with its 95 % interval."""
        return confidence95(self.values[metric])

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self.values[self.score])

    def __str__(self) -> str:
        """All metrics in one line, the score first."""
        names = [self.score, *(name for name in self.values if name != self.score)]
        shown = ", ".join(f"{name} {self.metrics[name].show(self[name])}" for name in names)
        line = f"{shown} ({', '.join((f'{len(self)} tasks', *self.how))})"
        return f"{line}. {self.note}" if self.note else line

    def worst(self, count: int = 5) -> list[tuple[int, float]]:
        """The tasks with the worst scores, worst first: (index, score)."""
        rank = self.metrics[self.score].rank
        tasks = sorted(enumerate(self.values[self.score]), key=lambda task: -rank(task[1]))
        return tasks[:count]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each task and a column for each metric; needs pandas."""
        import pandas as pd  # noqa: PLC0415

        return pd.DataFrame(self.values).rename_axis("task")


def evaluate(
    learner: Learner,
    meta: Tensors,
    carried: Tensors,
    source: TaskSource,
    *,
    tasks: int = 600,
    steps: int | None = None,
    metrics: Mapping[str, Metric] | None = None,
    score: str | None = None,
) -> Evaluation:
    """Evaluate meta-parameters of your own on tasks 0, …, n - 1 of a source.

    Args:
        learner: the method.
        meta: its meta-parameters.
        carried: its carried tensors.
        source: where the tasks come from.
        tasks: n.
        steps: inner steps; None for as many as were trained.
        metrics: what to measure, by name; by default accuracy and the loss, of real targets the
            loss alone.
        score: the metric that comes first; by default the first.
    """
    device = next(iter(meta.values())).device
    with isolated(device), torch.no_grad():
        if metrics is None:
            one = prepared(source, source.batch([0]).to(device))
            outputs = learner.predict(meta, learner.adapt(meta, carried, one, steps=steps), one)
            metrics = default_metrics(learner, outputs, one.query_y, source)
        measure = ensemble_values(learner, [(meta, carried)], metrics, steps=steps)
        values = on_all_tasks(OneProcess(), source, tasks, device, measure)["ensemble"]
    return Evaluation(
        values, metrics, score or next(iter(metrics)), note=" ".join(notes_of(source))
    )


def ensemble_values(
    learner: Learner,
    models: Sequence[Model],
    metrics: Mapping[str, Metric],
    *,
    steps: int | None = None,
) -> Measure:
    """A function that measures several models: as one ensemble, by the mean of their outputs, and
    the first alone ("single"). Each adapts with its own ĝ and λ.
    """

    def measure(tasks: TaskBatch) -> dict[str, Values]:
        outputs = []
        for meta, carried in models:
            adapted = learner.adapt(meta, carried, tasks, steps=steps)
            outputs.append(learner.predict(meta, adapted, tasks))
        together = mean_of_finite(torch.stack(outputs)) if len(outputs) > 1 else outputs[0]
        return {
            "ensemble": values_of(metrics, together, tasks),
            "single": values_of(metrics, outputs[0], tasks),
            "labels": labels_of(together, tasks),
        }

    return measure


def values_before_and_after(
    learner: Learner, model: Model, metrics: Mapping[str, Metric]
) -> Measure:
    """A function that measures support and query examples before and after adaptation."""
    meta, carried = model

    def measure(tasks: TaskBatch) -> dict[str, Values]:
        support = replace(
            tasks, query_x=tasks.support_x, query_y=tasks.support_y, query_n=tasks.support_n
        )
        before = learner.adapt(meta, carried, tasks, steps=0)
        after = learner.adapt(meta, carried, tasks)
        return {
            split: values_of(metrics, learner.predict(meta, adapted, on), on)
            for split, adapted, on in (
                ("support before", before, support),
                ("support after", after, support),
                ("query before", before, tasks),
                (VALIDATION, after, tasks),
            )
        }

    return measure


def values_of(metrics: Mapping[str, Metric], outputs: Tensor, tasks: TaskBatch) -> Values:
    """The value of each metric for each task of a batch."""
    return {
        name: metric.values(outputs, tasks.query_y, tasks.query_n).tolist()
        for name, metric in metrics.items()
    }


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
    measure: Measure,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Values]:
    """The values of tasks 0, …, count - 1 of a source, in their order.

    The processes share the chunks of tasks. Each chunk seeds the global generators from its own
    number. `advance` is called with the number of tasks that are done.
    """
    require_count("tasks", count)
    tasks = range(count)
    chunks = [tasks[start : start + CHUNK] for start in range(0, count, CHUNK)]
    measured: list[dict[str, Values]] = []
    # Whole chunks are shared out: tasks that are computed together round together, and so the
    # numbers are the same for any number of processes.
    for first in range(0, len(chunks), processes.size):
        together = chunks[first : first + processes.size]
        own = []
        for chunk in together[processes.rank : processes.rank + 1]:
            batch = source.batch(chunk).to(device)
            seed_generators(chunk.start, device)
            own.append(measure(prepared(source, batch)))
        measured += processes.gather(own)
        if advance is not None:
            advance(together[-1].stop)
    return {
        what: {
            name: [v for part in measured for v in part[what][name]]
            for name in values
            if all(name in part[what] for part in measured)  # labels: if none has too many
        }
        for what, values in measured[0].items()
    }
