"""Means with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from gradshare.training.files import Number

Z95 = 1.96

# The 97.5 % quantile of Student's t for 1, 2, … 30 degrees of freedom.
STUDENT: Final = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


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
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    # The first terms of the Cornish–Fisher expansion: beyond 30 it is right to four digits.
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def student95(values: Sequence[float]) -> Interval:
    """Mean ± t·s/√n with Student's t, for few values, for which 1.96 is too narrow.

    Raises:
        ValueError: there are no values.
    """
    normal = confidence95(values)
    if normal.ci95 is None:
        return normal
    return normal._replace(ci95=normal.ci95 / Z95 * student975(normal.n - 1))
