"""Means with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradshare.training.files import Number

Z95 = 1.96


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval, mean ± ci95.

    Attributes:
        mean: in the unit of the values.
        ci95: half the interval's width; None for a single value, which has no interval.
        n: the number of values.
    """

    mean: Number
    ci95: float | None
    n: int


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
    deviation = float(array.std(ddof=1)) if math.isfinite(mean) else math.nan
    return Interval(mean, Z95 * deviation / math.sqrt(count), count)


def student975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t-distribution with that many degrees of freedom."""
    from scipy.special import stdtrit  # noqa: PLC0415  # its import takes a third of a second

    return float(stdtrit(freedom, 0.975))


def student95(values: Sequence[float]) -> Interval:
    """Mean ± t·s/√n with Student's t, for few values, for which 1.96 is too narrow."""
    normal = confidence95(values)
    if normal.ci95 is None:
        return normal
    return normal._replace(ci95=normal.ci95 / Z95 * student975(normal.n - 1))


def over_seeds_and_tasks(rows: Sequence[npt.NDArray[np.float64]]) -> Interval:
    """The mean of values with its 95 % interval over other seeds and other tasks.

    The variance of the seeds' means and that of the tasks' means are added. The interaction of
    seeds and tasks is in both, so the interval is rather too wide than too narrow. A single seed
    says nothing about others: the interval is then over tasks.

    Args:
        rows: the values (tasks,) of each seed, on the same tasks.
    """
    values = np.stack(rows)
    by_task = confidence95(values.mean(0).tolist())
    if len(values) == 1:
        return by_task
    by_seed = student95(values.mean(1).tolist())
    parts = [interval.ci95 for interval in (by_task, by_seed) if interval.ci95 is not None]
    return Interval(by_seed.mean, math.hypot(*parts), len(values))
