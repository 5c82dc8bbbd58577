from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.results import Arm, Outcome, Validation
from reproduction.speedup import (
    RatioInterval,
    first_epoch,
    judge,
    level,
    paired_difference,
    paper_speedup,
    ratio_interval,
    speedup_to_reach,
)
from gradshare.training.statistics import best_epoch
from tests.reproduction.synthetic_results import CHANCE, arm, comparison


def curve(
    name: str, accuracies: Sequence[float], outcome: Outcome = "trained", ci95: float | None = 0.01
) -> Arm:
    epochs = range(1, len(accuracies) + 1)
    return arm(name, epochs=1).model_copy(
        update={
            "validation": tuple(
                Validation(epoch=epoch, accuracy=accuracy, ci95=ci95)
                for epoch, accuracy in zip(epochs, accuracies, strict=True)
            ),
            "best_epoch": best_epoch(epochs, accuracies) if accuracies else None,
            "outcome": outcome,
        }
    )


ORIGINAL_CURVE = (0.20, 0.30, 0.40, 0.45, 0.50, 0.60, 0.55)  # levels 52, 56 and 58 %: epoch 6


def test_the_papers_speedup() -> None:
    # Table 1's formula: the original's best epoch is 6, sharing's 4: (6 - 4) / 4.
    sharing = curve(SHARING, (0.3, 0.5, 0.55, 0.6, 0.6))
    assert paper_speedup(curve(ORIGINAL, ORIGINAL_CURVE), sharing) == 0.5


def test_the_papers_speedup_is_negative_where_sharing_is_slower() -> None:
    assert paper_speedup(curve(ORIGINAL, (0.3, 0.4)), curve(SHARING, (0.3, 0.3, 0.3, 0.4))) == -0.5


@pytest.mark.parametrize("failed", [ORIGINAL, SHARING])
@pytest.mark.parametrize("outcome", ["not trained", "diverged"])
def test_no_paper_speedup_unless_both_trained(failed: str, outcome: Outcome) -> None:
    arms = [
        curve(name, ORIGINAL_CURVE, outcome if name == failed else "trained")
        for name in (ORIGINAL, SHARING)
    ]
    assert paper_speedup(*arms) is None


def test_levels_are_shares_of_the_gain_over_chance() -> None:
    original = curve(ORIGINAL, ORIGINAL_CURVE)
    assert level(original, "80") == pytest.approx(0.2 + 0.8 * 0.4)
    assert level(original, "95") == pytest.approx(0.58)
    assert level(curve(ORIGINAL, ORIGINAL_CURVE, "not trained"), "80") is None


def test_the_first_epoch_at_a_level() -> None:
    one = curve(SHARING, (0.2, 0.5, 0.4, 0.6))
    assert first_epoch(one, 0.5) == 2
    assert first_epoch(one, 0.55) == 4
    assert first_epoch(one, 0.61) is None


def test_speedup_to_fixed_shares() -> None:
    sharing = curve(SHARING, (0.30, 0.53, 0.57, 0.57))
    assert speedup_to_reach(curve(ORIGINAL, ORIGINAL_CURVE), sharing) == {
        "80": (6 - 2) / 2,
        "90": (6 - 3) / 3,
        "95": None,  # sharing never gets there
    }


@pytest.mark.parametrize("outcome", ["not trained", "diverged"])
def test_no_speedup_to_shares_of_nothing(outcome: Outcome) -> None:
    ratios = speedup_to_reach(curve(ORIGINAL, ORIGINAL_CURVE, outcome), curve(SHARING, (0.6,)))
    assert ratios == {"80": None, "90": None, "95": None}
    ratios = speedup_to_reach(curve(ORIGINAL, ORIGINAL_CURVE), curve(SHARING, (0.6,), outcome))
    assert ratios == {"80": None, "90": None, "95": None}  # it was there, and then was not


@given(st.lists(st.floats(0.25, 1), min_size=1, max_size=30))
def test_an_arm_is_no_faster_than_itself(accuracies: list[float]) -> None:
    one, other = curve(ORIGINAL, accuracies), curve(SHARING, accuracies)
    assert paper_speedup(one, other) == 0
    assert set(speedup_to_reach(one, other).values()) == {0.0}


@given(
    st.lists(st.floats(0.25, 1), min_size=1, max_size=15),
    st.lists(st.floats(0, 1), min_size=1, max_size=15),
    st.integers(1, 5),
)
def test_starting_later_never_speeds_up(slow: list[float], fast: list[float], delay: int) -> None:
    original = curve(ORIGINAL, slow)
    now = speedup_to_reach(original, curve(SHARING, fast))
    later = speedup_to_reach(original, curve(SHARING, [0.0] * delay + fast))
    for share, ratio in now.items():
        delayed = later[share]
        assert (ratio is None) == (delayed is None)
        assert ratio is None or delayed is None or delayed <= ratio


@pytest.mark.parametrize(
    ("accuracies", "ci95", "expected"),
    [
        ((0.2, 0.30), 0.05, "trained"),
        ((0.2, 0.24), 0.05, "not trained"),
        # The best of many is the luckiest of them.
        ((0.255,), 0.05, "trained"),
        ((0.2, 0.255), 0.05, "not trained"),
        ((*[0.2] * 999, 0.29), 0.05, "not trained"),
        ((*[0.2] * 999, 0.31), 0.05, "trained"),
        ((0.1, 0.12), 0.01, "not trained"),
        ((0.9,), None, "not trained"),
        ((), 0.01, "not trained"),
    ],
)
def test_training_is_judged_against_chance(
    accuracies: Sequence[float], ci95: float | None, expected: str
) -> None:
    validation = curve(ORIGINAL, accuracies, "not trained", ci95).validation
    assert judge(validation, CHANCE) == expected


def test_the_mean_of_ratios_by_hand() -> None:
    # Logarithms 0, ln 2 and ln 4: their mean is ln 2, their deviation ln 2.
    found = ratio_interval([1.0, 2.0, 4.0])
    half = 4.3027 * math.log(2) / math.sqrt(3)
    assert found.ratio == pytest.approx(2)
    assert found.low == pytest.approx(2 * math.exp(-half))
    assert found.high == pytest.approx(2 * math.exp(half))


def test_a_tie_of_ratios_is_no_speed_up() -> None:
    # Best epochs (20, 10, 5) against (5, 10, 20): the mean of (a - b) / b would be 75 %.
    found = ratio_interval([20 / 5, 10 / 10, 5 / 20])
    assert found.ratio == pytest.approx(1)
    assert found.low is not None
    assert found.high == pytest.approx(1 / found.low)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=10))
def test_turning_ratios_over_turns_their_interval_over(ratios: list[float]) -> None:
    there, back = ratio_interval(ratios), ratio_interval([1 / ratio for ratio in ratios])
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.low is not None
    assert there.high is not None
    assert there.low <= there.ratio <= there.high
    assert back.high == pytest.approx(1 / there.low)


def test_one_ratio_has_no_interval() -> None:
    assert ratio_interval([1.0]) == RatioInterval(1.0, None, None)


@pytest.mark.parametrize("ratios", [[], [1.0, 0.0], [-1.0]])
def test_ratios_are_above_zero(ratios: list[float]) -> None:
    with pytest.raises(ValueError, match=r"at least one value, got none|must be above 0, got"):
        ratio_interval(ratios)


def with_accuracies(name: str, accuracies: Sequence[float]) -> Arm:
    return arm(name, epochs=1).model_copy(update={"test_accuracies": tuple(accuracies)})


def test_paired_difference_by_hand() -> None:
    pair = paired_difference(
        with_accuracies(SHARING, (0.5, 0.6, 0.7)), with_accuracies(ORIGINAL, (0.4, 0.6, 0.5))
    )
    assert pair is not None
    assert (pair.first, pair.second, pair.tasks) == (SHARING, ORIGINAL, 3)
    assert pair.difference == pytest.approx(0.1)
    assert pair.ci95 == pytest.approx(1.96 * 0.1 / np.sqrt(3))  # s of (0.1, 0, 0.2) is 0.1


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40))
def test_paired_difference_turns_its_sign_with_its_arms(tasks: list[tuple[float, float]]) -> None:
    one, two = (
        with_accuracies("a", [t[0] for t in tasks]),
        with_accuracies("b", [t[1] for t in tasks]),
    )
    there, back = paired_difference(one, two), paired_difference(two, one)
    assert there is not None
    assert back is not None
    assert there.difference == pytest.approx(-back.difference)
    assert there.ci95 == pytest.approx(back.ci95)
    assert there.difference == pytest.approx(np.mean([a - b for a, b in tasks]), abs=1e-12)


def test_pairing_needs_the_same_tasks() -> None:
    untested = with_accuracies(SHARING, ()).model_copy(update={"test_accuracies": None})
    assert paired_difference(untested, with_accuracies(ORIGINAL, (0.5,))) is None
    assert (
        paired_difference(with_accuracies(SHARING, (0.5, 0.6)), with_accuracies(ORIGINAL, (0.5,)))
        is None
    )
    assert paired_difference(with_accuracies(SHARING, ()), with_accuracies(ORIGINAL, ())) is None


def test_a_single_task_has_a_difference_without_interval() -> None:
    pair = paired_difference(with_accuracies(SHARING, (0.5,)), with_accuracies(ORIGINAL, (0.25,)))
    assert pair is not None
    assert (pair.difference, pair.ci95) == (0.25, None)


def test_results_hold_every_pair_that_matters() -> None:
    names = [RATE_CONTROL, ORIGINAL, "own-control", SHARING]
    results = comparison([arm(name, epochs=2) for name in names])
    assert [(pair.first, pair.second) for pair in results.paired] == [
        (SHARING, ORIGINAL),
        (SHARING, RATE_CONTROL),
        (SHARING, "own-control"),
        (RATE_CONTROL, ORIGINAL),
        ("own-control", ORIGINAL),
    ]
    assert results.speedup is not None


def test_one_arm_has_nothing_to_be_compared_with() -> None:
    results = comparison([arm(SHARING, epochs=2)])
    assert results.speedup is None
    assert results.speedup_to_reach == {"80": None, "90": None, "95": None}
    assert results.paired == ()
