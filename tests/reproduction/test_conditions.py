"""Finished cells as comparisons, and the differences between arms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.training.statistics import over_seeds_and_tasks
from reproduction.conditions import (
    Condition,
    change,
    conditions,
    difference,
    each_at_its_best,
    mean_test_accuracy,
    pooled_difference,
    swept_value,
    with_borrowed,
)
from reproduction.plan import Loan
from reproduction.statistics import detectable
from reproduction.wording import mean_speedup
from tests.reproduction.toy import PLAN, condition, results_with, run


def ahead(by: dict[int, float]) -> Condition:
    """Sharing and the original, of which the first is ahead by so much in each seed."""
    return condition(
        sharing=[run(test=0.5 + shift, seed=seed) for seed, shift in by.items()],
        original=[run(test=0.5, seed=seed) for seed in by],
    )


def test_cells_that_differ_in_arm_and_seed_alone_are_one_comparison() -> None:
    runs = {
        f"rates/seed-{seed}/{rate}/{arm}": run()
        for rate in ("rate-0.1", "rate-1")
        for seed in (2, 0)
        for arm in (ORIGINAL, SHARING)
    }
    low, high = conditions(PLAN, results_with(runs), "rates")
    assert (low.labels, high.labels) == ({"rate": "rate-0.1"}, {"rate": "rate-1"})
    assert list(low.arms) == [ORIGINAL, SHARING]
    assert [one.seed for one in low.runs(SHARING)] == [0, 2]
    assert low.runs(RATE_CONTROL) == ()


def test_borrowed_cells_have_the_labels_of_the_study_that_borrows_them() -> None:
    results = results_with(
        {
            "rates/seed-0/rate-0.1/original": run(),
            "rates/seed-0/rate-1/original": run(),
            "controls/seed-0/held": run(),
            "batches/seed-0/batch-1/original": run(),
        }
    )
    standing = with_borrowed(PLAN, results)
    assert {cell: one for cell, one in standing.items() if not cell.borrowed} == results
    (controls,) = conditions(PLAN, standing, "controls")
    assert (controls.labels, list(controls.arms)) == ({}, [ORIGINAL, "held"])
    five, single = conditions(PLAN, standing, "batches")
    assert (five.labels, single.labels) == ({"batch": "batch-5"}, {"batch": "batch-1"})


def test_a_sweep_is_sorted_by_its_setting_borrowed_cells_too() -> None:
    results = results_with(
        {
            "rates/seed-0/rate-1/original": run(),
            "rates/seed-0/rate-0.1/original": run(),
            "controls/seed-0/half": run(),
        }
    )
    loan = Loan(of=["controls", "half"], labels={"rate": "rate-0.05", "arm": ORIGINAL})
    rates = PLAN.studies["rates"].model_copy(update={"borrows": loan})
    plan = PLAN.model_copy(update={"studies": {**PLAN.studies, "rates": rates}})
    found = conditions(plan, with_borrowed(plan, results), "rates")
    assert [one.labels["rate"] for one in found] == ["rate-0.05", "rate-0.1", "rate-1"]
    assert [swept_value(one, "inner_lr") for one in found] == [0.05, 0.1, 1.0]


def test_each_arm_is_taken_from_the_setting_with_its_best_validation_accuracy() -> None:
    low = condition(sharing=[run((0.5,), test=0.1)], original=[run((0.7,), test=0.2)])
    high = condition(sharing=[run((0.6,), test=0.3)], original=[run((0.6,), test=0.4)])
    best, taken = each_at_its_best([low, high])
    assert taken == {SHARING: high, ORIGINAL: low}
    assert {arm: runs[0].tested.mean for arm, runs in best.arms.items() if runs[0].tested} == {
        SHARING: pytest.approx(0.3),
        ORIGINAL: pytest.approx(0.2),
    }


def test_settings_are_compared_by_the_seeds_that_an_arm_has_at_all_of_them() -> None:
    low = condition(original=[run((0.5,), seed=0), run((0.9,), seed=1)])
    high = condition(original=[run((0.6,), seed=0)])
    assert each_at_its_best([low, high])[1] == {ORIGINAL: high}


def test_a_difference_is_paired_by_seed_and_task() -> None:
    by = {0: 0.02, 1: 0.04, 2: 0.06}
    found = difference(ahead(by), SHARING, ORIGINAL)
    assert found is not None
    assert found.seeds == 3
    assert found.interval.mean == pytest.approx(0.04)
    assert found.by_seed == pytest.approx(tuple(by.values()))
    # The tasks differ by 0.1 and their differences by nothing: all that is left is the seeds.
    assert found.interval.ci95 == pytest.approx(4.30265 * 0.02 / math.sqrt(3))
    assert difference(ahead(by), SHARING, RATE_CONTROL) is None


def test_one_seed_does_not_say_which_difference_could_have_been_seen() -> None:
    found = difference(ahead({0: 0.1}), SHARING, ORIGINAL)
    assert found is not None
    assert (found.seeds, found.detectable) == (1, None)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize(
    ("of_seed", "of_task", "of_both"),
    [(0.03, 0.0, 0.01), (0.03, 0.1, 0.01), (0.002, 0.01, 0.2), (0.0, 0.2, 0.2)],
)
def test_the_detectable_difference_is_seen_four_times_in_five(
    seeds: int, of_seed: float, of_task: float, of_both: float
) -> None:
    tasks, times = 40, 1000
    found = detectable(
        math.sqrt((of_seed**2 + of_both**2 / tasks) / seeds),
        math.sqrt((of_task**2 + of_both**2 / seeds) / tasks),
        of_both / math.sqrt(seeds * tasks),
        freedom=seeds - 1,
    )
    random = np.random.default_rng(0)
    seen = 0
    for _ in range(times):
        values = found + of_seed * random.standard_normal((seeds, 1))
        values = values + of_task * random.standard_normal((1, tasks))
        interval = over_seeds_and_tasks(
            list(values + of_both * random.standard_normal((seeds, tasks)))
        )
        assert interval.ci95 is not None
        seen += abs(interval.mean) > interval.ci95
    assert seen / times == pytest.approx(0.8, abs=0.04)


def test_a_mean_over_conditions_is_of_the_seeds_that_are_in_all() -> None:
    parts = [ahead({0: 0.5, 1: 0.02, 2: 0.02}), ahead({1: 0.06, 2: 0.06})]
    mean = pooled_difference(parts, SHARING, ORIGINAL)
    assert mean is not None
    assert mean.seeds == 2
    assert mean.interval.mean == pytest.approx(0.04)
    apart = [ahead({0: 0.02}), ahead({1: 0.06})]
    assert pooled_difference(apart, SHARING, ORIGINAL) is None


def test_a_change_is_taken_seed_by_seed_and_task_by_task() -> None:
    before, after = ahead({0: 0.02, 1: 0.05, 2: 0.3}), ahead({1: 0.06, 0: 0.04})
    found = change(after, before, SHARING, ORIGINAL)
    assert found is not None
    assert found.seeds == 2
    assert found.interval.mean == pytest.approx((0.02 + 0.01) / 2)
    assert change(after, ahead({3: 0.1}), SHARING, ORIGINAL) is None


def test_a_run_that_diverged_before_its_test_counts_as_guessing() -> None:
    lost = run((), test=None, outcome="diverged")
    sound = run(test=0.6, seed=1)
    mean = mean_test_accuracy([lost, sound])
    assert mean is not None
    assert mean.mean == pytest.approx((0.2 + 0.6) / 2)
    assert mean_test_accuracy([lost]) is None
    found = difference(condition(original=[lost], sharing=[run(test=0.6)]), SHARING, ORIGINAL)
    assert found is not None
    assert found.interval.mean == pytest.approx(0.4)


def test_half_as_fast_and_twice_as_fast_are_on_average_as_fast() -> None:
    assert mean_speedup([0.5, 2.0], interval=False) == "0 %"
    assert mean_speedup([1.5]) == "50 %"
