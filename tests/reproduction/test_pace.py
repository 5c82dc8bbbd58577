"""How soon arms learn, and how well their inner loops fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshare.config import SHARING
from reproduction.conditions import Condition
from reproduction.pace import (
    Pace,
    cost_of_epoch,
    crossing,
    fits,
    flattened,
    paces,
    paper_speedup,
    papers_speedups,
    seconds_an_epoch,
    smoothed,
    speedup_to_reach,
)
from reproduction.records import Run
from tests.reproduction.toy import ENVIRONMENT, condition, run, seeds

SLOW = (0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6)
QUICK = (0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6)
"""Smoothed, the slow one goes from 0.5 to 0.567 in epoch 5, and has 80 % of 0.2 → 0.6, or 0.52,
after 3/10 of it. The quick one goes from 0.4 to 0.533 in epoch 3, and has it after 9/10."""


def paces_of(sharing: Run, original: Run) -> list[Pace]:
    found = condition(sharing=[sharing], original=[original])
    return paces(found, SHARING)


def timed(count: int, sharing: float, original: float = 10, **settings: Any) -> Condition:
    """Both with several seeds, and epochs of so many seconds."""
    return condition(
        sharing=seeds(count, QUICK, seconds=sharing, **settings),
        original=seeds(count, SLOW, seconds=original, **settings),
    )


def test_smoothing_is_centred_and_leaves_out_the_last_value() -> None:
    curve = smoothed(run((0.2, 0.5, 0.5, 0.8, 0.5, 0.9)))
    assert curve.validation == pytest.approx([0.2, 0.4, 0.6, 0.6, 2.2 / 3])
    assert curve.best_epoch == 5
    assert smoothed(run((0.3,))).validation == (0.3,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_a_level_is_crossed_in_the_epoch_that_first_has_it(
    accuracies: list[float], accuracy: float
) -> None:
    reached = [epoch for epoch, value in enumerate(accuracies, 1) if value >= accuracy]
    found = crossing(run(accuracies), accuracy)
    assert (found is None) == (not reached)
    if found is not None:
        assert max(1, reached[0] - 1) <= found <= reached[0]


def test_a_level_is_crossed_on_the_straight_line_between_two_validations() -> None:
    curve = run((0.2, 0.4, 0.3, 0.8))
    assert crossing(curve, 0.25) == pytest.approx(1.25)
    assert crossing(curve, 0.5) == pytest.approx(3.4)


def test_pace_is_in_iterations() -> None:
    eighty, _, most = paces_of(run(QUICK), run(SLOW))
    assert eighty.iterations == pytest.approx((2.9 * 50,))
    assert eighty.ratios == pytest.approx((4.3 / 2.9,))
    never = paces_of(run((0.2, *[0.3] * 7)), run(SLOW))[2]
    assert (never.iterations, never.ratios) == ((None,), ())
    assert most.arrived == 1


def test_seconds_are_told_from_three_runs_on_one_machine_that_agree() -> None:
    def cost(*study: Condition) -> float | None:
        return cost_of_epoch(study[0], SHARING, study)

    assert cost(timed(3, 15)) == pytest.approx(15 / 10)
    assert cost(timed(1, 15)) is None  # a single run may have been disturbed
    assert cost(timed(2, 15)) is None
    assert cost(timed(2, 15), timed(1, 15, inner_lr=1.0)) == pytest.approx(15 / 10)
    assert cost(timed(2, 15), timed(1, 15, task_batch=1)) is None
    for what in ("processor", "torch", "commit"):
        other = timed(1, 15, environment={**ENVIRONMENT, what: "other"})
        assert cost(timed(2, 15), other) is None
    assert seconds_an_epoch([run(seconds=s) for s in (30, 10.4, 10)]) == pytest.approx(10)
    assert seconds_an_epoch([run(seconds=s) for s in (30, 10.6, 10)]) is None


def test_what_was_there_at_its_first_validation_gives_a_bound() -> None:
    pace = paces_of(run([0.7] * 8), run(SLOW))[0]
    assert (pace.at_once, pace.bound) == (True, "≥")
    assert pace.ratios == pytest.approx((4.3,))
    pace = paces_of(run(SLOW), run([0.6] * 8))[0]
    assert pace.bound == "≤"
    assert pace.ratios == pytest.approx((1 / 4.3,))
    both = paces_of(run([0.7] * 8), run([0.7] * 8))[0]
    assert (both.at_once, both.ratios, both.bound) == (True, (), "")


def test_a_mean_pace_is_of_all_seeds_or_there_is_none() -> None:
    original = [run(SLOW, seed=0), run(SLOW, seed=1)]
    one_never = condition(sharing=[run(QUICK), run([0.3] * 8, seed=1)], original=original)
    pace = paces(one_never, SHARING)[0]
    assert (pace.seeds, len(pace.iterations), pace.arrived, pace.ratios) == (2, 2, 1, ())
    # Where there is no original, nothing was missed.
    alone = condition(sharing=seeds(2, QUICK), original=original[:1])
    pace = paces(alone, SHARING)[0]
    assert (pace.seeds, len(pace.iterations), pace.arrived) == (2, 1, 1)
    assert pace.ratios == pytest.approx((4.3 / 2.9,))
    at_least_and_at_most = condition(
        sharing=[run([0.6] * 8), run(QUICK, seed=1)],
        original=[run(SLOW), run([0.6] * 8, seed=1)],
    )
    pace = paces(at_least_and_at_most, SHARING)[0]
    assert (pace.arrived, pace.ratios, pace.bound) == (2, (), "")


def test_a_gain_whose_shares_cannot_be_told_apart_has_no_pace() -> None:
    # From 80 to 95 % of the gain it is 0.9 points, and a validation errs by 1.
    poor = run((0.2, 0.21, 0.22, 0.26, 0.26, 0.26))
    assert [pace.iterations for pace in paces_of(run([0.3] * 6), poor)] == [()] * 3
    better = run((0.2, 0.21, 0.22, 0.27, 0.27, 0.27))
    assert [pace.iterations for pace in paces_of(run([0.3] * 6), better)] == [(50,)] * 3


def test_the_papers_speed_up_needs_long_flat_and_steady_curves() -> None:
    flat = run((0.2, 0.4, 0.6, 0.7, *[0.6] * 16))
    assert flattened(flat)
    assert not flattened(run((0.2, 0.4, 0.6, 0.7, *[0.6] * 6)))  # too short
    assert not flattened(run(np.linspace(0.2, 0.6, 20).tolist()))  # rises
    assert not flattened(run([*[0.6] * 15, *[0.4] * 5]))  # collapses
    assert not flattened(run([*[0.6] * 18, 0.63, 0.63]))  # is best at its end
    quick = run((0.5, 0.7, *[0.6] * 18))
    assert papers_speedups(condition(sharing=[quick], original=[flat]), SHARING) == [1.0]
    climbing = condition(sharing=[quick], original=[run(np.linspace(0.2, 0.6, 20).tolist())])
    assert papers_speedups(climbing, SHARING) == [None]


def test_the_papers_speed_up_is_of_the_best_epochs_and_the_sturdier_one_of_the_first_ones() -> None:
    original, sharing = run((0.2, 0.4, 0.59, 0.59, 0.6)), run((0.2, 0.58, 0.6, 0.5, 0.5))
    assert paper_speedup(original, sharing) == pytest.approx((5 - 3) / 3)
    assert speedup_to_reach(original, sharing, 90) == pytest.approx((3 - 2) / 2)
    failed = run(outcome="not trained")
    assert paper_speedup(original, failed) is None
    assert speedup_to_reach(failed, sharing, 90) is None


def test_the_fit_is_of_the_first_and_the_last_third_of_the_epochs() -> None:
    support = (0.9, 0.8, 0.7, None, 0.7, 0.6, 0.6)
    fit = {"support_accuracy_after": support, "query_accuracy_after": (0.5,) * 7}
    found = fits([run([0.5] * 7, fit=fit)])
    assert found == [pytest.approx((0.85, 0.5)), pytest.approx((0.6, 0.5))]
    assert fits([run((), outcome="diverged")]) == []
