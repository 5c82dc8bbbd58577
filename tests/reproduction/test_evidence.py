"""What the cells of a study are compared for, and how sure that is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.conditions import (
    Condition,
    conditions,
    swept_value,
    with_borrowed,
)
from reproduction.evidence import (
    Pace,
    change,
    crossing,
    detectable,
    difference,
    differences,
    fits,
    flattened,
    mean_test_accuracy,
    paces,
    papers_speedups,
    pooled_difference,
    seconds_an_epoch,
    smoothed,
)
from reproduction.plan import Loan
from reproduction.results import Arm, InnerLoopPoint, Validation
from reproduction.seeds import over_seeds_and_tasks
from reproduction.speedup import first_epoch
from tests.reproduction.toy import PLAN, results_with
from tests.reproduction.synthetic_results import CHANCE, ENVIRONMENT, arm, comparison


def rising(*accuracies: float, seconds: float = 10.0, name: str = ORIGINAL) -> Arm:
    """A run with this validation curve, each epoch of so many seconds."""
    points = tuple(
        Validation(epoch=epoch, accuracy=accuracy, ci95=0.01, seconds=seconds * epoch)
        for epoch, accuracy in enumerate(accuracies, start=1)
    )
    best = max(points, key=lambda point: point.accuracy).epoch
    run = arm(name, epochs=len(points))
    return run.model_copy(update={"validation": points, "best_epoch": best})


def ahead(by: dict[int, float]) -> Condition:
    """Sharing and the original, of which the first is ahead by so much in each seed."""
    parts = [
        comparison([arm(SHARING, seed=seed, test_shift=shift), arm(ORIGINAL, seed=seed)])
        for seed, shift in by.items()
    ]
    return Condition("toy", {}, tuple(parts))


def one(*arms: Arm) -> Condition:
    return Condition("toy", {}, (comparison(arms, config={"iterations_per_epoch": 50}),))


def paces_of(condition: Condition) -> list[Pace]:
    """Of sharing, in a study that has no other condition."""
    return paces(condition, SHARING, [condition])


def test_cells_that_differ_in_arm_and_seed_alone_are_one_comparison() -> None:
    runs = {
        f"rates/seed-{seed}/{rate}/{name}": arm(name, seed=seed)
        for rate in ("rate-0.1", "rate-1")
        for seed in (2, 0)
        for name in (ORIGINAL, SHARING)
    }
    low, high = conditions(PLAN, results_with(runs), "rates")
    assert (low.labels, high.labels) == ({"rate": "rate-0.1"}, {"rate": "rate-1"})
    assert [one.arms[0].seed for one in low.results] == [0, 2]
    assert low.arms == (ORIGINAL, SHARING)
    assert low.results[0].pair(SHARING, ORIGINAL) is not None
    assert low.results[0].command == (
        "train rates/seed-0/rate-0.1/original\ntrain rates/seed-0/rate-0.1/gradient-sharing"
    )


def test_borrowed_cells_stand_in_under_the_labels_of_the_borrower() -> None:
    results = results_with(
        {
            "rates/seed-0/rate-0.1/original": arm(ORIGINAL, seed=0),
            "rates/seed-0/rate-1/original": arm(ORIGINAL, seed=0),
            "controls/seed-0/held": arm(SHARING, seed=0),
            "batches/seed-0/batch-1/original": arm(ORIGINAL, seed=0),
        }
    )
    standing = with_borrowed(PLAN, results)
    assert {cell: one for cell, one in standing.items() if PLAN.owns(cell)} == results
    (controls,) = conditions(PLAN, standing, "controls")
    assert controls.labels == {}
    assert controls.arms == (ORIGINAL, "held")
    five, single = conditions(PLAN, standing, "batches")
    assert (five.labels, single.labels) == ({"batch": "batch-5"}, {"batch": "batch-1"})
    names = [cell.name for cell in standing if cell.study == "batches"]
    assert names == ["batches/seed-0/batch-5/original", "batches/seed-0/batch-1/original"]


def test_a_sweep_stands_in_the_order_of_what_was_run_with_what_it_borrows() -> None:
    results = results_with(
        {
            "rates/seed-0/rate-1/original": arm(ORIGINAL, seed=0),
            "rates/seed-0/rate-0.1/original": arm(ORIGINAL, seed=0),
            "controls/seed-0/half": arm(ORIGINAL, seed=0),
        }
    )
    loan = Loan(of=["controls", "half"], labels={"rate": "rate-0.05", "arm": ORIGINAL})
    rates = PLAN.studies["rates"].model_copy(update={"borrows": loan})
    plan = PLAN.model_copy(update={"studies": {**PLAN.studies, "rates": rates}})
    found = conditions(plan, with_borrowed(plan, results), "rates")
    assert [one.labels["rate"] for one in found] == ["rate-0.05", "rate-0.1", "rate-1"]
    assert [swept_value(one, "inner_lr") for one in found] == [0.05, 0.1, 1.0]
    assert [one.arms for one in found] == [(ORIGINAL,)] * 3


def test_a_difference_over_seeds_says_what_it_could_have_shown() -> None:
    condition = ahead({0: 0.02, 1: 0.04, 2: 0.06})
    found = difference(condition, SHARING, ORIGINAL)
    assert found is not None
    each = differences(condition, SHARING, ORIGINAL)
    assert found.count == 3
    assert found.interval.mean == pytest.approx(math.fsum(e.mean for e in each) / 3)
    assert [e.mean for e in each] == pytest.approx(
        [pair.difference for one in condition.parts if (pair := one.pair(SHARING, ORIGINAL))]
    )
    # Seeds by the noncentral t of 2 degrees of freedom; what is left of the tasks adds little.
    assert found.detectable == pytest.approx(5.66 * 0.02 / math.sqrt(3), rel=0.06)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("of_seed", "of_task", "of_both"),
    [(0.03, 0.0, 0.01), (0.03, 0.1, 0.01), (0.002, 0.2, 0.01), (0.002, 0.01, 0.2), (0.0, 0.2, 0.2)],
)
def test_the_detectable_difference_is_seen_four_times_in_five(
    seeds: int, of_seed: float, of_task: float, of_both: float
) -> None:
    tasks, times = 40, 2500
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
    assert seen / times == pytest.approx(0.8, abs=0.03)


def test_what_never_differs_would_always_be_seen() -> None:
    assert detectable(0.0, 0.0, 0.0, freedom=2) == 0


def test_a_mean_over_conditions_is_of_the_seeds_that_are_in_all() -> None:
    parts = [ahead({0: 0.02, 1: 0.02, 2: 0.02}), ahead({1: 0.06, 2: 0.06})]
    mean = pooled_difference(parts, SHARING, ORIGINAL)
    each = [differences(part, SHARING, ORIGINAL) for part in parts]
    assert mean is not None
    assert mean.count == 2
    expected = (each[0][1].mean + each[0][2].mean + each[1][0].mean + each[1][1].mean) / 4
    assert mean.interval.mean == pytest.approx(expected)
    apart = [ahead({0: 0.02}), ahead({1: 0.06})]
    assert pooled_difference(apart, SHARING, ORIGINAL) is None


def test_a_change_is_taken_seed_by_seed_and_task_by_task() -> None:
    before, after = ahead({0: 0.02, 1: 0.05, 2: 0.0}), ahead({1: 0.06, 0: 0.03})
    found = change(after, before, SHARING, ORIGINAL)
    assert found is not None
    assert found.count == 2
    earlier, later = (differences(one, SHARING, ORIGINAL) for one in (before, after))
    # The first of `later` is seed 1, which is the second of `earlier`.
    by_seed = [later[1].mean - earlier[0].mean, later[0].mean - earlier[1].mean]
    assert found.interval.mean == pytest.approx(math.fsum(by_seed) / 2)
    # Two equal values, and of every task: as certain as that.
    same = change(before, before, SHARING, ORIGINAL)
    assert same is not None
    assert same.interval[:2] == (0.0, 0.0)
    assert change(after, ahead({3: 0.1}), SHARING, ORIGINAL) is None
    assert change(after, before, SHARING, RATE_CONTROL) is None


def test_a_seed_in_which_both_diverged_at_once_is_no_difference() -> None:
    both = [
        comparison(
            [arm(name, seed=1, epochs=0, outcome="diverged") for name in (SHARING, ORIGINAL)]
        ),
        comparison([arm(SHARING, seed=2, test_shift=0.1), arm(ORIGINAL, seed=2)]),
    ]
    each = differences(Condition("toy", {}, tuple(both)), SHARING, ORIGINAL)
    assert [round(one.mean, 1) for one in each] == [0.0, 0.1]
    assert differences(Condition("toy", {}, (both[0],)), SHARING, ORIGINAL) == []


def test_a_difference_of_one_seed_is_over_tasks() -> None:
    pair = comparison([arm(SHARING, test_shift=0.1), arm(ORIGINAL)])
    found = difference(Condition("toy", {}, (pair,)), SHARING, ORIGINAL)
    expected = pair.pair(SHARING, ORIGINAL)
    assert found is not None
    assert expected is not None
    assert found.interval == expected.interval
    assert found.detectable is None  # one seed does not say how much seeds differ
    assert difference(Condition("toy", {}, (pair,)), SHARING, RATE_CONTROL) is None


def test_a_run_that_diverged_at_once_guesses() -> None:
    lost = arm(ORIGINAL, seed=1, epochs=0, outcome="diverged")
    sound = arm(ORIGINAL, seed=2)
    assert sound.test is not None
    interval = mean_test_accuracy([lost, sound])
    assert interval is not None
    assert interval.mean == pytest.approx((CHANCE + sound.test.accuracy) / 2)
    assert mean_test_accuracy([lost]) is None
    sharing = arm(SHARING, seed=1)
    assert sharing.test is not None
    found = difference(one(lost, sharing), SHARING, ORIGINAL)
    assert found is not None
    assert found.interval.mean == pytest.approx(sharing.test.accuracy - CHANCE)


def test_smoothing_is_centred_and_moves_the_best_epoch_with_it() -> None:
    curve = smoothed(rising(0.2, 0.5, 0.5, 0.8, 0.5, 0.9))
    assert [v.accuracy for v in curve.validation] == pytest.approx([0.2, 0.4, 0.6, 0.6, 2.2 / 3])
    assert curve.best_epoch == 5
    assert smoothed(arm(ORIGINAL, epochs=0, outcome="diverged")).best_epoch is None
    assert [v.accuracy for v in smoothed(rising(0.3)).validation] == [0.3]


SLOW = (0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6)
QUICK = (0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6)
"""Smoothed, the slow one goes from 0.5 to 0.567 in epoch 5, and has 80 % of 0.2 → 0.6, or 0.52,
after 3/10 of it; the quick one goes from 0.4 to 0.533 in epoch 3, and has it after 9/10."""


def of_seeds(
    *pairs: tuple[Arm, Arm | None], environment: dict[str, Any] = ENVIRONMENT, **config: Any
) -> Condition:
    """Sharing and the original, or sharing alone, one pair a seed."""
    parts = [
        comparison(
            [run.model_copy(update={"seed": seed}) for run in pair if run is not None],
            config={"iterations_per_epoch": 50, **config},
            environment=environment,
        )
        for seed, pair in enumerate(pairs)
    ]
    return Condition("toy", {}, tuple(parts))


def timed(sharing: float, original: float = 10) -> tuple[Arm, Arm]:
    """Both, with epochs of so many seconds."""
    return (
        rising(*QUICK, seconds=sharing, name=SHARING),
        rising(*SLOW, seconds=original),
    )


def test_pace_is_in_iterations_and_in_seconds() -> None:
    original = rising(*SLOW, seconds=10)
    sharing = rising(*QUICK, seconds=15, name=SHARING)
    eighty, ninety, most = paces_of(one(original, sharing))
    assert (eighty.share, ninety.share, most.share) == ("80", "90", "95")
    assert eighty.iterations == pytest.approx((2.9 * 50,))
    assert eighty.at_once == (False,)
    assert list(eighty.ratios) == pytest.approx([4.3 / 2.9])
    assert eighty.seconds == ()  # of a single run nobody knows what disturbed it
    three = paces_of(of_seeds(*[(sharing, original)] * 3))[0]
    assert list(three.seconds) == pytest.approx([4.3 * 10 / (2.9 * 15)] * 3)
    never = rising(0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, name=SHARING)
    last = paces_of(one(original, never))[2]
    assert (last.iterations, last.ratios, last.seconds) == ((None,), (), ())


def test_what_was_there_at_its_first_validation_gives_a_bound() -> None:
    slow = rising(0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6)
    at_once = [rising(*[0.7] * 8, name=name) for name in (ORIGINAL, SHARING)]
    pace = paces_of(one(slow, at_once[1]))[0]
    assert (pace.at_once, pace.bound) == ((True,), "≥")
    assert list(pace.ratios) == pytest.approx([4.3])  # not 5: the slow one was there before that
    pace = paces_of(one(rising(*[0.9] * 8), slow.model_copy(update={"name": SHARING})))[0]
    assert (pace.at_once, pace.ratios, pace.bound) == ((False,), (), "")  # never that high
    pace = paces_of(one(rising(*[0.6] * 8), slow.model_copy(update={"name": SHARING})))[0]
    assert pace.bound == "≤"
    assert list(pace.ratios) == pytest.approx([1 / 4.3])
    pace = paces_of(one(*at_once))[0]
    assert (pace.at_once, pace.ratios, pace.bound) == ((True,), (), "")  # nothing is known


def test_a_level_is_crossed_between_two_validations() -> None:
    curve = rising(0.2, 0.4, 0.3, 0.8)
    assert crossing(curve, 0.1) == crossing(curve, 0.2) == 1
    assert crossing(curve, 0.25) == pytest.approx(1.25)
    assert crossing(curve, 0.4) == 2
    assert crossing(curve, 0.5) == pytest.approx(3.4)
    assert crossing(curve, 0.81) is None
    assert crossing(arm(ORIGINAL, epochs=0, outcome="diverged"), 0.1) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_a_level_is_crossed_in_the_epoch_that_first_has_it(
    accuracies: list[float], accuracy: float
) -> None:
    run = rising(*accuracies)
    first, found = first_epoch(run, accuracy), crossing(run, accuracy)
    assert (first is None) == (found is None)
    if first is not None and found is not None:
        assert max(1, first - 1) <= found <= first


def test_a_mean_pace_is_of_every_seed_or_there_is_none() -> None:
    sharing, original = timed(10)
    poor = rising(*[0.3] * 8, name=SHARING)
    pace = paces_of(of_seeds((sharing, original), (poor, original)))[0]
    assert (pace.told, pace.arrived) == ((True, True), 1)
    assert list(pace.iterations) == [pytest.approx(2.9 * 50), None]
    assert pace.ratios == ()  # that of the seed which got there would be none of both

    # Where there is nothing to reach, nothing was missed.
    pace = paces_of(of_seeds((sharing, original), (sharing, None)))[0]
    assert (pace.told, pace.arrived) == ((True, False), 1)
    assert list(pace.iterations) == [pytest.approx(2.9 * 50), None]
    assert list(pace.ratios) == pytest.approx([4.3 / 2.9])

    both = rising(*[0.6] * 8, name=SHARING), rising(*[0.6] * 8)
    pace = paces_of(of_seeds((sharing, original), both))[0]
    assert (pace.arrived, pace.ratios) == (2, ())  # at once: as quick, or not, nobody knows

    at_least, at_most = (both[0], original), (sharing, both[1])
    assert paces_of(of_seeds((sharing, original), at_least))[0].bound == "≥"
    pace = paces_of(of_seeds(at_least, at_most))[0]
    assert (pace.arrived, pace.ratios, pace.bound) == (2, (), "")


def test_a_gain_whose_shares_cannot_be_told_apart_has_no_pace() -> None:
    # From 80 to 95 % of the gain it is 0.9 points, and a validation errs by 1.
    poor = rising(0.2, 0.21, 0.22, 0.26, 0.26, 0.26)
    for pace in paces_of(one(poor, rising(*[0.3] * 6, name=SHARING))):
        assert (pace.iterations, pace.ratios) == ((None,), ())
    better = rising(0.2, 0.21, 0.22, 0.27, 0.27, 0.27)
    for pace in paces_of(one(better, rising(*[0.3] * 6, name=SHARING))):
        assert pace.iterations == (50,)


def test_an_epoch_costs_the_least_of_all_conditions_with_the_same_work() -> None:
    disturbed = of_seeds(timed(40), inner_lr=0.1)
    quiet = of_seeds(timed(20), timed(20.5), inner_lr=1.0)
    smaller = of_seeds(timed(5), task_batch=1)
    for condition in (disturbed, quiet):
        pace = paces(condition, SHARING, [disturbed, quiet, smaller])[0]
        assert list(pace.seconds) == pytest.approx([4.3 / 2.9 * 10 / 20] * len(pace.ratios))
    assert paces(smaller, SHARING, [disturbed, quiet, smaller])[0].seconds == ()
    assert paces(quiet, SHARING, [quiet, smaller])[0].seconds == ()  # two runs alone


@pytest.mark.parametrize("what", ["processor", "torch", "commit"])
def test_seconds_are_of_one_machine_and_of_as_many_runs_of_both(what: str) -> None:
    here = of_seeds(timed(20), timed(20), inner_lr=0.1)
    there = of_seeds(timed(2, 1), inner_lr=1.0, environment={**ENVIRONMENT, what: "other"})
    for condition in (here, there):
        assert paces(condition, SHARING, [here, there])[0].seconds == ()
    more = of_seeds(timed(20), inner_lr=3.0)
    pace = paces(there, SHARING, [here, there, more])[0]
    assert list(pace.seconds) == pytest.approx([4.3 / 2.9 * 10 / 20])
    # What else is known of the environment costs no time.
    newer = of_seeds(timed(20), inner_lr=3.0, environment={**ENVIRONMENT, "images": 9})
    assert paces(here, SHARING, [here, newer])[0].seconds != ()

    # A third run of the original's had one more chance of a quiet moment.
    quick = rising(*SLOW, seconds=1)
    alone = Condition("toy", {}, (comparison([quick], config={"inner_lr": 9}),))
    pace = paces(here, SHARING, [here, more, alone])[0]
    assert list(pace.seconds) == pytest.approx([4.3 / 2.9 * 10 / 20] * 2)


def test_arms_of_one_seed_that_ran_apart_keep_their_own_machines() -> None:
    sharing, original = timed(10)
    other = {**ENVIRONMENT, "torch": "1.0"}
    parts = [
        comparison(
            [run.model_copy(update={"seed": seed})],
            config={"iterations_per_epoch": 50},
            environment=environment,
        )
        for seed in range(3)
        for run, environment in ((sharing, ENVIRONMENT), (original, other))
    ]
    condition = Condition("toy", {}, tuple(parts))
    assert [len(one.arms) for one in condition.results] == [2, 2, 2]
    assert paces_of(condition)[0].seconds == ()


def test_where_the_original_did_not_train_there_is_no_share_of_its_gain() -> None:
    flat = arm(ORIGINAL, gain=0.0, noise=0.0)
    for pace in paces_of(one(flat, arm(SHARING))):
        assert (pace.iterations, pace.ratios) == ((None,), ())


def test_the_cost_of_an_epoch_is_the_least_that_any_took() -> None:
    def runs(*seconds: float) -> list[Arm]:
        return [rising(*[0.5] * 4, seconds=each) for each in seconds]

    assert seconds_an_epoch(runs(30, 10.4, 10)) == pytest.approx(10)
    assert seconds_an_epoch(runs(30, 10.6, 10)) is None  # which of both was disturbed?
    assert seconds_an_epoch(runs(10, 10)) is None
    assert seconds_an_epoch([arm(ORIGINAL)] * 3) is None


def test_the_papers_speed_up_needs_long_flat_and_steady_curves() -> None:
    flat = rising(0.2, 0.4, 0.6, 0.7, *[0.6] * 16)
    assert flattened(flat)
    assert not flattened(rising(0.2, 0.4, 0.6, 0.7, *[0.6] * 6))  # too short
    assert not flattened(rising(*np.linspace(0.2, 0.6, 20)))  # rises
    assert not flattened(rising(*[0.6] * 15, *[0.4] * 5))  # collapses
    assert not flattened(rising(*[0.6] * 18, 0.63, 0.63))  # is best at its end
    luck = rising(*np.linspace(0.2, 0.6, 4), *[0.61] * 10, *[0.6] * 5, 0.62)
    assert not flattened(luck)  # is best at its end, though not when smoothed
    quick = rising(0.5, 0.7, *[0.6] * 18, name=SHARING)
    assert papers_speedups(one(flat, quick), SHARING) == [pytest.approx((4 - 2) / 2)]
    climbing = rising(*np.linspace(0.2, 0.6, 20))
    assert papers_speedups(one(climbing, quick), SHARING) == [None]


def test_the_fit_after_adaptation_early_and_late() -> None:
    def point(epoch: int, support: float | None, query: float) -> InnerLoopPoint:
        others = dict.fromkeys(InnerLoopPoint.model_fields, 0.5)
        given = {"support_accuracy_after": support, "query_accuracy_after": query}
        return InnerLoopPoint.model_validate({**others, **given, "epoch": epoch})

    points = tuple(
        point(epoch, support, 0.5)
        for epoch, support in enumerate((0.9, 0.8, 0.7, None, 0.7, 0.6, 0.6), start=1)
    )
    found = fits([arm(ORIGINAL).model_copy(update={"inner_loop": points})])
    assert found is not None
    early, late = found
    assert (early.support, early.query, early.gap) == pytest.approx((0.85, 0.5, 0.35))
    assert (late.support, late.query, late.gap) == pytest.approx((0.6, 0.5, 0.1))
    assert fits([arm(ORIGINAL, epochs=0, outcome="diverged")]) is None
