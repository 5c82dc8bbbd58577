"""Metrics of a task's queries, one of which selects checkpoints, and labels of classifiers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import each_task
from gradshare.training.statistics import Interval

log = logging.getLogger(__name__)

LOSS = "loss"
MOST_DIGITS = 17
MOST_LABELS = 100

SAMPLE_TASKS = 3
"""The number of test tasks whose predictions are kept."""


class Scale:
    """How the values of a metric are ranked and shown; see `Metric`."""

    best: Literal["high", "low"]
    unit: str
    chance: float | None

    @property
    def factor(self) -> int:
        """What values are multiplied with when they are shown: 100 where the unit is %."""
        return 100 if self.unit == "%" else 1

    @property
    def unit_of_differences(self) -> str:
        """The unit of differences between values: percentages differ by points."""
        return "points" if self.unit == "%" else self.unit

    def digits(self, interval: Interval) -> int:
        """The number of decimals to show, as many as the interval makes meaningful."""
        half = interval.ci95
        smallest = half if half and math.isfinite(half) else abs(interval.mean) / 100
        if self.factor != 1 or not smallest or not math.isfinite(smallest):
            return 1
        return max(0, min(8, 1 - math.floor(math.log10(smallest))))

    def show(self, interval: Interval) -> str:
        """A mean with its interval and unit: 71.3 ± 1.2 %."""
        digits, half = self.digits(interval), interval.ci95
        behind = "" if half is None else f" ± {self.factor * half:.{digits}f}"
        return f"{self.factor * interval.mean:.{digits}f}{behind} {self.unit}".rstrip()

    def show_difference(self, interval: Interval) -> str:
        """A signed difference with its interval and unit: +1.1 ± 0.9 points.

        The mean looks larger than half the interval only if it is, that is if the interval
        excludes 0; more digits are shown where this needs them.
        """
        mean, half = self.factor * interval.mean, self.factor * (interval.ci95 or 0)
        if not math.isfinite(mean):
            return "not finite"
        digits, larger = self.digits(interval), abs(mean) > half
        while digits < MOST_DIGITS and (round(abs(mean), digits) > round(half, digits)) != larger:
            digits += 1
        sign = "" if round(mean, digits) == 0 else "+" if mean > 0 else "−"
        behind = "" if interval.ci95 is None else f" ± {half:.{digits}f}"
        return f"{sign}{abs(mean):.{digits}f}{behind} {self.unit_of_differences}".rstrip()

    def rank(self, value: float) -> float:
        """A sort key: better values first, values that are not finite last."""
        if not math.isfinite(value):
            return math.inf
        return -value if self.best == "high" else value


@dataclass(frozen=True)
class Metric(Scale):
    """A metric of one task.

    Attributes:
        function: of a task's outputs (n, …) and targets, to one number.
        best: whether a high or a low value is better.
        unit: written behind values; "%" shows fractions as percentages.
        chance: its value for guessing; None if there is none.
    """

    function: Callable[[Tensor, Any], Any]
    best: Literal["high", "low"] = "high"
    unit: str = ""
    chance: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(f"a metric's function is {self.function!r}; give a function")
        if self.best not in ("high", "low"):
            raise ConfigError(f"a metric's best is {self.best!r}; give 'high' or 'low'")

    def values(self, outputs: Tensor, targets: Any, sizes: Any = None) -> Tensor:
        """Its value for each of T tasks.

        Args:
            outputs: (T, n, …).
            targets: (T, n, …), a tree.
            sizes: T numbers of real examples; None for all.

        Returns:
            (T,), float64.

        Raises:
            ConfigError: the function does not return one number for a task.
        """
        with torch.no_grad():
            found = each_task(self._value, outputs, targets, sizes)
        return torch.stack([torch.as_tensor(self._number(v), dtype=torch.float64) for v in found])

    def _value(self, outputs: Tensor, targets: Any) -> Any:
        """The value for one task; NaN if the function can't take outputs that are not finite."""
        try:
            return self.function(outputs, targets)
        except Exception:
            if bool(outputs.isfinite().all()):
                raise
            return math.nan

    def _number(self, value: Any) -> Any:
        shape = getattr(value, "shape", None)
        if isinstance(value, float | int) or shape == ():
            return value
        what = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
        name = getattr(self.function, "__name__", type(self.function).__name__)
        raise ConfigError(
            f"the metric {name} returned a value of {what} for a task; it must return one number, "
            "such as the mean over the queries"
        )


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of examples that are classified right; outputs that are not finite are wrong.

    Args:
        outputs: (n, classes, …) scores.
        targets: (n, …) classes.
    """
    right = (outputs.argmax(1) == targets) & outputs.isfinite().all(1)
    return right.double().mean()


def chance_of(source: Any, classes: int) -> float:
    """The mean accuracy of guessing on tasks of a range of ways, or else of a number of classes."""
    ways = getattr(source, "ways", None)
    numbers = range(ways[0], ways[1] + 1) if isinstance(ways, tuple) else [classes]
    return fmean(1 / number for number in numbers)


def default_metrics(
    learner: Any, outputs: Tensor, targets: Any, source: Any = None
) -> dict[str, Metric]:
    """Accuracy and the loss where the targets are classes, else the loss alone.

    Args:
        learner: its `loss` is used; cross entropy for classes if it has none.
        outputs: (T, n, …) of a batch of tasks.
        targets: (T, n, …), a tree.
        source: of the tasks.
    """
    loss = getattr(learner, "loss", None)
    classes = are_classes(outputs, targets)
    if loss is None and not classes:
        raise ConfigError(
            f"{type(learner).__name__} has no `loss` to measure real targets by; give it one, or "
            "metrics={name: gradshare.Metric(…, best='low')}"
        )
    metrics = {LOSS: Metric(loss or torch.nn.functional.cross_entropy, best="low")}
    if classes:
        # Guessing among the classes that the model tells apart.
        chance = chance_of(source, outputs.shape[2])
        metrics = {"accuracy": Metric(accuracy, unit="%", chance=chance), **metrics}
    return metrics


def are_classes(outputs: Tensor, targets: Any) -> bool:
    """Whether (T, n, …) targets are classes that (T, n, classes, …) outputs score."""
    return (
        isinstance(targets, Tensor)
        and not targets.is_floating_point()
        and outputs.ndim == targets.ndim + 1
        and outputs.shape[:2] == targets.shape[:2]
        and outputs.shape[3:] == targets.shape[2:]
    )


def require_metrics(metrics: Mapping[str, Metric], score: str | None) -> str:
    """Check metrics that a user gave, and return the name of the score."""
    if not isinstance(metrics, Mapping) or not metrics:
        raise ConfigError(f"metrics is {metrics!r:.100}; give a dictionary of metrics by name")
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise ConfigError(
                f"the metric {name!r} is {metric!r:.100}; give a gradshare.Metric(function, "
                "best='high' or 'low')"
            )
    if score is None:
        return next(iter(metrics))
    if score not in metrics:
        raise ConfigError(f"the score {score!r} is not a metric; give one of {list(metrics)}")
    return score


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
