"""Differences between arms, against formulas written out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradshare.comparison.results import ArmRun, MetricFacts, Results
from gradshare.comparison.summary import difference, epochs_to_gain, mean_score
from gradshare.training.statistics import over_seeds_and_tasks
from tests.comparison.builders import ACCURACY, ERROR, arm_run, results_of

# The 97.5 % quantiles of Student's t for 1, 2 and 4 degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 4: 2.776}


def runs_of(arm: str, *rows: Sequence[float], score: str = "accuracy") -> list[ArmRun]:
    """A run for each seed, with these test values."""
    return [
        arm_run(arm, seed, validation=[0.3], test=row, score=score) for seed, row in enumerate(rows)
    ]


def two_arms(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], facts: MetricFacts
) -> Results:
    return results_of(*runs_of("first", *first), *runs_of("second", *second), facts=facts)


def test_over_one_seed_the_interval_is_over_tasks() -> None:
    ours, theirs = np.random.default_rng(0).random((2, 50))
    found = difference(two_arms([ours], [theirs], ACCURACY), "first", "second")
    differences = ours - theirs
    assert found.interval is not None
    assert found.interval.mean == pytest.approx(differences.mean(), abs=1e-12)
    assert found.interval.ci95 == pytest.approx(
        1.96 * np.sqrt(((differences - differences.mean()) ** 2).sum() / 49 / 50), abs=1e-12
    )
    assert np.array(found.rows) == pytest.approx(differences[None])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_over_several_seeds_the_variances_of_seeds_and_tasks_are_added(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    ours, theirs = random.random((2, seeds, 40))
    found = difference(two_arms(ours.tolist(), theirs.tolist(), ACCURACY), "first", "second")
    differences = ours - theirs
    by_seed = STUDENT[seeds - 1] * differences.mean(1).std(ddof=1) / math.sqrt(seeds)
    by_task = 1.96 * differences.mean(0).std(ddof=1) / math.sqrt(40)
    assert found.interval is not None
    assert found.interval.mean == pytest.approx(differences.mean(), abs=1e-12)
    assert found.interval.ci95 == pytest.approx(math.sqrt(by_seed**2 + by_task**2), rel=1e-3)
    assert found.interval.n == seeds
    assert np.array(found.rows) == pytest.approx(differences)


def test_tasks_and_seeds_are_paired() -> None:
    """Hard tasks and lucky seeds, which both arms share, do not widen the interval."""
    random = np.random.default_rng(0)
    shared = random.normal(0, 10, (3, 40))
    gain = 0.1 + 0.01 * random.normal(size=(3, 40))
    found = difference(
        two_arms((shared + gain).tolist(), shared.tolist(), ACCURACY), "first", "second"
    )
    assert found.interval is not None
    assert found.interval.ci95 is not None
    assert found.interval.ci95 < 0.05
    assert found.better == 1


@given(
    arrays(np.float64, (3, 7), elements=st.floats(-1e3, 1e3)),
    arrays(np.float64, (3, 7), elements=st.floats(-1e3, 1e3)),
    st.floats(-1e3, 1e3),
    st.floats(0.1, 100),
)
def test_a_difference_turns_with_its_arms_shifts_with_both_and_scales(
    ours: np.ndarray, theirs: np.ndarray, shift: float, scale: float
) -> None:
    results = two_arms(ours.tolist(), theirs.tolist(), ACCURACY)
    there = difference(results, "first", "second")
    back = difference(results, "second", "first")
    moved = two_arms(
        ((ours + shift) * scale).tolist(), ((theirs + shift) * scale).tolist(), ACCURACY
    )
    again = difference(moved, "first", "second")
    assert there.interval is not None
    assert back.interval is not None
    assert again.interval is not None
    assert (back.interval.mean, back.interval.ci95) == (-there.interval.mean, there.interval.ci95)
    assert back.better == -there.better
    for name in ("mean", "ci95"):
        expected = scale * getattr(there.interval, name)
        near = pytest.approx(expected, rel=1e-6, abs=1e-7 * scale)
        assert getattr(again.interval, name) == near


@given(arrays(np.float64, (4, 5), elements=st.floats(-1e3, 1e3)))
def test_the_order_of_seeds_and_of_tasks_does_not_matter(values: np.ndarray) -> None:
    found = over_seeds_and_tasks(list(values))
    other = over_seeds_and_tasks(list(values[::-1, ::-1]))
    assert other.mean == pytest.approx(found.mean, abs=1e-9)
    assert other.ci95 == pytest.approx(found.ci95, rel=1e-9, abs=1e-9)


def test_the_interval_covers_a_true_difference_of_zero_at_least_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        rows = random.normal(0, 0.1, (3, 1)) + random.normal(0, 0.2, (1, 30))
        rows = rows + random.normal(0, 0.2, (3, 30))
        interval = over_seeds_and_tasks(list(rows))
        assert interval.ci95 is not None
        missed += abs(interval.mean) > interval.ci95
    assert missed <= 0.05 * 400


@pytest.mark.parametrize(("facts", "better"), [(ACCURACY, 1), (ERROR, -1)])
def test_better_is_the_direction_of_the_metric(facts: MetricFacts, better: int) -> None:
    results = two_arms([[0.8, 0.82, 0.81]], [[0.5, 0.52, 0.5]], facts)
    assert difference(results, "first", "second").better == better
    assert difference(results, "second", "first").better == -better
    assert difference(results, "first", "first").better == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("facts", [ACCURACY, ERROR])
def test_values_that_are_not_finite_are_never_better(value: float, facts: MetricFacts) -> None:
    results = two_arms([[value, 0.82, 0.81]], [[0.5, 0.52, 0.5]], facts)
    assert difference(results, "first", "second").better == 0
    assert difference(results, "second", "first").better == 0


def test_only_seeds_in_which_both_trained_count() -> None:
    base = runs_of("base", [0.5, 0.6], [0.5, 0.6], [0.5, 0.6])
    new = runs_of("new", [0.7, 0.9], [0.1, 0.1])
    diverged = arm_run("new", 2, validation=[], outcome="diverged")
    untrained = new[1].model_copy(update={"outcome": "not trained"})
    results = results_of(*base, new[0], untrained, diverged)
    found = difference(results, "new", "base")
    assert np.array(found.rows) == pytest.approx(np.array([[0.2, 0.3]]))
    assert found.interval is not None
    none = difference(results_of(base[0], untrained), "new", "base")
    assert (none.interval, none.detectable, none.better) == (None, None, 0)


def test_what_could_have_been_seen_is_that_of_a_power_of_80_percent() -> None:
    """A true difference of this size is distinguishable in four of five comparisons."""
    random = np.random.default_rng(0)
    tasks, spread = 100, 0.3
    found = difference(
        two_arms([random.normal(0, spread, tasks).tolist()], [[0.0] * tasks], ACCURACY),
        "first",
        "second",
    )
    assert found.detectable is not None
    true = 2.8016 * spread / math.sqrt(tasks)
    assert found.detectable == pytest.approx(true, rel=0.15)
    rows = true + random.normal(0, spread, (2000, tasks))
    seen = rows.mean(1) > 1.96 * rows.std(1, ddof=1) / math.sqrt(tasks)
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


def test_the_test_score_is_over_the_runs_that_trained_as_the_differences_are() -> None:
    runs = runs_of("a", [0.5, 0.7], [0.6, 0.8])
    diverged = arm_run("a", 2, validation=[0.3], test=[0.0, 0.0], outcome="diverged")
    untrained = arm_run("a", 3, validation=[0.3], test=[0.2, 0.2], outcome="not trained")
    found = mean_score([*runs, diverged, untrained], "accuracy")
    assert found is not None
    assert found.mean == pytest.approx(0.65)
    alone = mean_score([diverged, untrained], "accuracy")
    assert alone is not None
    assert alone.mean == pytest.approx(0.2)
    assert mean_score([diverged], "accuracy") is None


def test_epochs_to_the_gain_count_from_chance_or_from_the_first_epoch() -> None:
    # From chance, 0.2, to 0.6: 95 % of the gain is 0.58.
    base = arm_run("base", validation=[0.3, 0.57, 0.6, 0.59], test=[0.5])
    fast = arm_run("fast", validation=[0.5, 0.58, 0.1], test=[0.5])
    slow = arm_run("slow", validation=[0.3, 0.5, 0.57], test=[0.5])
    results = results_of(base, fast, slow)
    assert [epochs_to_gain(results, run) for run in results.runs] == [3, 2, None]
    # From 3 to 1, the lower the better: 95 % of the gain is 1.1.
    base, fast = (
        arm_run(arm, validation=validation, test=[1.0], score="error")
        for arm, validation in (("base", [3.0, 1.2, 1.0]), ("fast", [1.1, 2.0, 0.5]))
    )
    results = results_of(base, fast, score="error", facts=ERROR)
    assert [epochs_to_gain(results, run) for run in results.runs] == [3, 1]


def test_there_is_no_pace_beside_a_baseline_that_did_not_train() -> None:
    base = arm_run("base", validation=[0.2], test=[0.2], outcome="not trained")
    fast = arm_run("fast", validation=[0.5], test=[0.5])
    other = arm_run("fast", 1, validation=[0.5], test=[0.5])
    results = results_of(base, fast, other)
    assert [epochs_to_gain(results, run) for run in results.runs] == [None, None, None]
