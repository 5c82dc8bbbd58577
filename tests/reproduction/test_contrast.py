"""What sharing adds to its control, in each condition and on average."""

from __future__ import annotations

import pytest

from gradshare.config import RATE_CONTROL, SHARING
from reproduction.conditions import Results, with_borrowed
from reproduction.contrast import contrast_rows, contrasts
from tests.reproduction.toy import PLAN, results_with, run


def both(place: str, count: int, accuracy: float, advantage: float) -> Results:
    """Sharing and its control in a condition, with so many seeds."""
    outcome = "trained" if accuracy > 0.2 else "not trained"
    return results_with(
        {
            f"{place.format(seed)}/{arm}": run(test=accuracy + shift, seed=seed, outcome=outcome)
            for seed in range(count)
            for arm, shift in ((SHARING, advantage), (RATE_CONTROL, 0.0))
        }
    )


LOW, HIGH = "rates/seed-{}/rate-0.1", "rates/seed-{}/rate-1"


def test_a_condition_counts_once_and_only_if_something_was_learned() -> None:
    batches = both("batches/seed-{}/batch-1", 1, 0.5, -0.01)
    results = {**both(LOW, 3, 0.5, 0.05), **both(HIGH, 3, 0.2, 0.0), **batches}
    found = contrasts(PLAN, with_borrowed(PLAN, results))
    assert [one.place for one in found] == ["rates, rate-0.1", "batches, batch-1"]
    assert found[0].found.by_seed == pytest.approx((0.05, 0.05, 0.05))
    assert [row["seeds"] for row in contrast_rows(found)] == ["3", "1"]
    # One seed does not say which difference it could have shown.
    assert [row["sharing − rate-control"] for row in contrast_rows(found)] == [
        "+5.0 ± 0.0 points (0.0)",
        "−1.0 ± 0.0 points",
    ]


@pytest.mark.parametrize(("accuracy", "counts"), [(0.34, False), (0.36, True)])
def test_a_mean_is_over_the_conditions_that_gained_half_of_the_best(
    accuracy: float, counts: bool
) -> None:
    results = {**both(LOW, 3, 0.5, -0.02), **both(HIGH, 3, accuracy, 0.0)}
    found = {one.place: one.found.interval.mean for one in contrasts(PLAN, results)}
    assert list(found)[:2] == ["rates, rate-0.1", "rates, rate-1"]
    assert found.get("rates, mean of 2") == (pytest.approx(-0.01) if counts else None)


@pytest.mark.parametrize(("count", "means"), [(1, 0), (2, 0), (3, 1)])
def test_a_mean_is_over_the_conditions_with_the_most_seeds(count: int, means: int) -> None:
    results = {**both(LOW, 3, 0.5, 0.0), **both(HIGH, count, 0.5, 0.0)}
    assert sum(one.is_mean for one in contrasts(PLAN, results)) == means


def test_a_borrowed_condition_counts_in_the_mean_of_the_study_that_borrows_it() -> None:
    results = {**both(LOW, 3, 0.5, 0.05), **both("batches/seed-{}/batch-1", 3, 0.5, -0.03)}
    found = {o.place: o.found.interval.mean for o in contrasts(PLAN, with_borrowed(PLAN, results))}
    # `controls` borrows one condition and has no other: a mean of one would say nothing new.
    assert list(found) == ["rates, rate-0.1", "batches, batch-1", "batches, mean of 2"]
    assert found["batches, mean of 2"] == pytest.approx(0.01)
