"""Ratios over seeds, and the smallest difference that could have been seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradshare.training.statistics import Z95, student95, student975

Floats = npt.NDArray[np.float64]

WIDTHS: Final = 200
"""How many widths of an interval `detectable` averages over."""

POWER: Final = 0.8


class RatioInterval(NamedTuple):
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
