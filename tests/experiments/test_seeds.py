from __future__ import annotations

import math

import pytest

from gradshare.errors import RunError
from gradshare.experiments.results import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.experiments.seeds import (
    one_a_seed,
    over_seeds,
    runs_by_arm,
    seeds_of,
)
from tests.experiments.synthetic_results import CONFIG, arm, comparison, usual


def test_interval_over_three_seeds_by_hand() -> None:
    interval = over_seeds([0.40, 0.42, 0.44])
    assert interval.mean == pytest.approx(0.42)
    assert interval.ci95 == pytest.approx(4.3027 * 0.02 / math.sqrt(3))
    assert interval.n == 3


def test_one_seed_has_no_interval() -> None:
    assert over_seeds([0.4]).ci95 is None


def test_seeds_are_put_in_order() -> None:
    results = one_a_seed([usual(2, 2), usual(1, 2)])
    assert [one.arms[0].seed for one in results] == [1, 2]
    assert seeds_of(results) == (1, 2)
    assert {name: len(runs) for name, runs in runs_by_arm(results).items()} == {
        ORIGINAL: 2,
        SHARING: 2,
        RATE_CONTROL: 2,
    }


def test_arms_trained_apart_are_put_together() -> None:
    apart = [
        comparison([arm(SHARING, epochs=3)], command="two"),
        comparison([arm(ORIGINAL, epochs=3)], command="one", config={**CONFIG, "sharing": False}),
    ]
    (together,) = one_a_seed(apart)
    assert {one.name for one in together.arms} == {ORIGINAL, SHARING}
    assert together.speedup is not None
    assert together.pair(SHARING, ORIGINAL) is not None
    assert together.command.splitlines() == ["two", "one"]


def test_the_original_comes_first_and_strangers_last() -> None:
    names = ["own-control", RATE_CONTROL, SHARING, ORIGINAL]
    results = [comparison([arm(name, epochs=1) for name in names])]
    assert list(runs_by_arm(results)) == [ORIGINAL, SHARING, RATE_CONTROL, "own-control"]


def test_nothing_is_no_comparison() -> None:
    with pytest.raises(RunError, match="needs at least one results file, got none"):
        one_a_seed([])


def test_other_settings_are_another_comparison() -> None:
    other = comparison(
        [arm(ORIGINAL, seed=2, epochs=2)], config={**CONFIG, "inner_lr": 1.0, "seed": 2}
    )
    with pytest.raises(RunError, match=r"inner_lr is 0\.1 in one and 1\.0 in another; report them"):
        one_a_seed([usual(1, 2), other])


def test_another_dataset_is_another_comparison() -> None:
    other = comparison([arm(ORIGINAL, seed=2, epochs=2)], dataset="cub")
    with pytest.raises(RunError, match="dataset is 'glyphs' in one and 'cub' in another"):
        one_a_seed([usual(1, 2), other])


def test_a_file_given_twice_would_shrink_the_interval() -> None:
    with pytest.raises(RunError, match="the run of original with seed 1 is given twice; give each"):
        one_a_seed([usual(1, 2), usual(1, 2)])
