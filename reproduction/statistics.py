"""Means with 95 % intervals, over tasks and over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gradshare import Interval

Floats = npt.NDArray[np.float64]

Z95: Final = 1.96

# The 97.5 % quantile of Student's t for 1, 2, … degrees of freedom.
STUDENT: Final = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)

WIDTHS: Final = 200
"""How many widths of an interval `detectable` averages over."""

POWER: Final = 0.8


def confidence95(values: Sequence[float]) -> Interval:
    """Mean ± 1.96·s/√n, the interval of the paper's Table 1, where the values are of n tasks.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value, got none")
    array = np.asarray(values, dtype=np.float64)
    # The rounding error of the sum depends on its order, and would decide ties.
    mean = round(float(array.mean()), 12)
    if len(values) == 1:
        return Interval(mean, None, 1)
    return Interval(mean, Z95 * float(array.std(ddof=1)) / math.sqrt(len(values)), len(values))


def student975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t-distribution."""
    if freedom > len(STUDENT):
        raise ValueError(f"at most {len(STUDENT) + 1} seeds can be compared, got {freedom + 1}")
    return STUDENT[freedom - 1]


def student95(values: Sequence[float]) -> Interval:
    """Mean ± t·s/√n, for values of a few seeds, for which 1.96 is too narrow."""
    normal = confidence95(values)
    if normal.ci95 is None:
        return normal
    return normal._replace(ci95=normal.ci95 / Z95 * student975(normal.n - 1))


def over_seeds_and_tasks(rows: Sequence[Floats]) -> Interval:
    """The mean of values (tasks,), one row for each seed, with the same tasks in each.

    The variance over seeds of their means and that over tasks of theirs are added. The interaction
    of seeds and tasks is in both, so the interval errs on the wide side. The interval of a single
    seed is over tasks.
    """
    values = np.stack(rows)
    by_task = confidence95(values.mean(0).tolist())
    if len(values) == 1:
        return by_task
    by_seed = student95(values.mean(1).tolist())
    parts = [interval.ci95 for interval in (by_task, by_seed) if interval.ci95 is not None]
    return Interval(by_seed.mean, math.hypot(*parts), len(values))


@dataclass(frozen=True)
class RatioInterval:
    """The geometric mean of ratios with its 95 % interval; None for a single ratio."""

    ratio: float
    low: float | None
    high: float | None


def ratio_interval(ratios: Sequence[float]) -> RatioInterval:
    """The geometric mean of ratios, one a seed, with Student's t interval of their logarithms.

    Args:
        ratios: such as epochs of the original / epochs of sharing: speed-ups + 1.
    """
    logs = student95([math.log(ratio) for ratio in ratios])
    ratio = math.exp(logs.mean)
    if logs.ci95 is None:
        return RatioInterval(ratio, None, None)
    return RatioInterval(ratio, math.exp(logs.mean - logs.ci95), math.exp(logs.mean + logs.ci95))


def detectable_difference(values: Floats) -> float | None:
    """The smallest true mean difference that would be seen with a power of 80 %, if values
    (seeds, tasks) vary as much as these; None for a single seed or task.
    """
    seeds, tasks = values.shape
    if min(seeds, tasks) < 2:
        return None
    by_seed, by_task = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_task + values.mean()
    freedom = (seeds - 1) * (tasks - 1)
    return detectable(
        float(by_seed.std(ddof=1)) / math.sqrt(seeds),
        float(by_task.std(ddof=1)) / math.sqrt(tasks),
        math.sqrt(float(np.square(rest).sum()) / freedom / (seeds * tasks)),
        freedom=seeds - 1,
    )


def detectable(by_seed: float, by_task: float, of_both: float, *, freedom: int) -> float:
    """The smallest true difference for which the interval of `over_seeds_and_tasks` excludes zero
    with a power of 80 %.

    With few seeds the width of the interval is itself noisy, so the power is averaged over the
    widths that it would have.

    Args:
        by_seed: the standard error of the mean by the means of the seeds.
        by_task: the standard error by the means of the tasks.
        of_both: the standard error of the interaction, which is in both of these.
        freedom: degrees of freedom of `by_seed`.
    """
    error = math.sqrt(max(by_seed**2 + by_task**2 - of_both**2, by_seed**2, by_task**2))
    if error == 0:
        return 0.0
    # The standard deviation of few values, as a multiple of the true one, and its density.
    multiples = (np.arange(WIDTHS) + 0.5) / WIDTHS * (1 + 4 / math.sqrt(freedom))
    logs = (freedom - 1) * np.log(multiples) - freedom * np.square(multiples) / 2
    density = np.exp(logs - logs.max())
    halves = np.hypot(student975(freedom) * by_seed * multiples, Z95 * by_task) / error
    low, high = 0.0, float(halves[-1]) + 4
    for _ in range(40):
        true = (low + high) / 2
        power = [_normal(true - half) + _normal(-true - half) for half in halves]
        if np.average(power, weights=density) < POWER:
            low = true
        else:
            high = true
    return high * error


def _normal(z: float) -> float:
    """The standard normal distribution function."""
    return math.erfc(-z / math.sqrt(2)) / 2
