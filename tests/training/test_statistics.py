from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshare.training.statistics import Interval, confidence95, student975

accuracies = st.lists(st.floats(0, 1), min_size=2, max_size=50)


def test_interval_of_four_tasks_by_hand() -> None:
    # Deviations ±0.1 and ±0.3 from 0.5: s² = 0.2 / 3.
    interval = confidence95([0.2, 0.4, 0.6, 0.8])
    assert interval.mean == pytest.approx(0.5)
    assert interval.ci95 == pytest.approx(1.96 * math.sqrt(0.2 / 3) / 2)
    assert interval.n == 4


@given(accuracies)
def test_interval_is_numpys_sample_deviation(values: list[float]) -> None:
    interval = confidence95(values)
    assert interval.mean == pytest.approx(np.mean(values))
    assert interval.ci95 == pytest.approx(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))


@given(accuracies)
def test_four_times_as_many_tasks_halve_the_interval(values: list[float]) -> None:
    once, four = confidence95(values).ci95, confidence95(values * 4).ci95
    assert once is not None
    assert four is not None
    # ddof = 1 makes it slightly less than half.
    n = len(values)
    assert four == pytest.approx(once / 2 * math.sqrt(4 * (n - 1) / (4 * n - 1)), abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 10, 29, 30, 31, 60, 500])
def test_student_quantiles_leave_975_of_1000_below(freedom: int) -> None:
    # The area from 0 to the quantile is 0.475; substituting t = √ν·tan u makes it finite.
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    angles = np.linspace(0, math.atan(student975(freedom) / math.sqrt(freedom)), 20_001)
    area = scale * np.trapezoid(np.cos(angles) ** (freedom - 1), angles)
    assert area == pytest.approx(0.475, abs=1e-5)


def test_one_task_has_no_interval() -> None:
    assert confidence95([0.4]) == Interval(0.4, None, 1)


def test_no_tasks_have_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        confidence95([])
