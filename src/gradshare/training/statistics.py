"""What is said about an accuracy over tasks: its mean, how sure that is, and its best epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.96


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval, mean ± ci95.

    Attributes:
        mean: in the unit of the values.
        ci95: half the interval's width. None for a single value: one value does not say how much
            values differ, so the interval is unbounded.
        n: how many values there were.
    """

    mean: float
    ci95: float | None
    n: int

    def above(self, level: float) -> bool:
        """Whether the whole interval lies above a level, such as chance."""
        return self.ci95 is not None and self.mean - self.ci95 > level


def confidence95(values: Sequence[float]) -> Interval:
    """Mean ± 1.96·s/√n, with s the sample standard deviation (n - 1 in its denominator).

    This is the interval of the paper's Table 1, where the values are the accuracies of n tasks.

    Raises:
        ValueError: there are no values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("a mean needs at least one value, got none")
    array = np.asarray(values, dtype=np.float64)
    # Without the rounding error of the sum, which depends on its order and would decide ties.
    mean = round(float(array.mean()), 12)
    if count == 1:
        return Interval(mean, None, count)
    return Interval(mean, Z95 * float(array.std(ddof=1)) / math.sqrt(count), count)


def best_epochs(epochs: Sequence[int], accuracies: Sequence[float], count: int) -> list[int]:
    """The epochs with the highest validation accuracies, best first, ties to the earlier (§3).

    Args:
        epochs: the epochs at which there was a validation, in any order.
        accuracies: one for each of them.
        count: how many epochs at most.
    """
    ranked = sorted(zip([-accuracy for accuracy in accuracies], epochs, strict=True))
    return [epoch for _, epoch in ranked[:count]]


def best_epoch(epochs: Sequence[int], accuracies: Sequence[float]) -> int:
    """The earliest epoch at which the highest validation accuracy is reached (§3).

    Raises:
        ValueError: there are no epochs, or not one accuracy for each.
    """
    if not epochs:
        raise ValueError("the best epoch needs at least one validation, got none")
    return best_epochs(epochs, accuracies, 1)[0]
