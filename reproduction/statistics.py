"""The smallest difference between two arms that could have been seen."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr

from gradshare.training.statistics import Z95, student975

Floats = npt.NDArray[np.float64]

WIDTHS: Final = 1000
"""How many widths of an interval `detectable` averages over."""

POWER: Final = 0.8


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
    # Quantiles of the standard deviation of few values, as a multiple of the true one.
    multiples = np.sqrt(chdtri(freedom, (np.arange(WIDTHS) + 0.5) / WIDTHS) / freedom)
    halves = np.hypot(student975(freedom) * by_seed * multiples, Z95 * by_task) / error

    def power(true: float) -> float:
        return float(np.mean(ndtr(true - halves) + ndtr(-true - halves)))

    return error * float(brentq(lambda true: power(true) - POWER, 0, halves.max() + 4))
