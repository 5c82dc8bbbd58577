from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.errors import RunError
from reproduction.seeds import (
    achieved,
    mean_difference,
    mean_of_tested,
    one_a_seed,
    over_seeds_and_tasks,
    runs_by_arm,
    seeds_of,
)
from gradshare.training.statistics import student95
from tests.reproduction.synthetic_results import CONFIG, arm, comparison, usual


def test_interval_over_three_seeds_by_hand() -> None:
    interval = student95([0.40, 0.42, 0.44])
    assert interval.mean == pytest.approx(0.42)
    assert interval.ci95 == pytest.approx(4.3027 * 0.02 / math.sqrt(3))
    assert interval.n == 3


def test_one_seed_has_no_interval() -> None:
    assert student95([0.4]).ci95 is None


def test_an_interval_covers_other_seeds_and_other_tasks() -> None:
    seeds = np.array([0.1, 0.2, 0.3])[:, None]
    tasks = np.tile([-0.1, 0.1], 50)[None]
    interval = over_seeds_and_tasks(list(0.5 + seeds + tasks))
    assert interval.mean == pytest.approx(0.7)
    assert interval.n == 3
    of_seeds = 4.3027 * 0.1 / math.sqrt(3)
    of_tasks = 1.96 * tasks.std(ddof=1) / math.sqrt(100)
    assert interval.ci95 == pytest.approx(math.hypot(of_seeds, of_tasks), rel=1e-4)
    # Seeds that agree by luck leave the tasks' share.
    same = over_seeds_and_tasks([0.5 + tasks[0], 0.5 + tasks[0]])
    assert same.ci95 == pytest.approx(of_tasks)
    alone = over_seeds_and_tasks([0.5 + tasks[0]])
    assert alone.ci95 == pytest.approx(of_tasks)
    assert alone.n == 100


def test_the_mean_difference_is_of_the_seeds_in_which_both_trained() -> None:
    seeds = [
        comparison([arm(SHARING, seed=s, test_shift=shift), arm(ORIGINAL, seed=s)])
        for s, shift in ((0, 0.02), (1, 0.04))
    ]
    failed = arm(ORIGINAL, seed=2, outcome="not trained")
    seeds.append(comparison([arm(SHARING, seed=2, test_shift=0.5), failed]))
    each = [one.pair(SHARING, ORIGINAL) for one in seeds]
    found = mean_difference(seeds, SHARING, ORIGINAL)
    assert found is not None
    interval, count = found
    assert count == interval.n == 2
    assert each[0] is not None
    assert each[1] is not None
    assert interval.mean == pytest.approx((each[0].difference + each[1].difference) / 2)
    assert mean_difference(seeds[:1], SHARING, ORIGINAL) == (each[0].interval, 1)
    assert mean_difference(seeds[2:], SHARING, ORIGINAL) is None


def test_a_mean_accuracy_covers_other_seeds_and_other_tasks() -> None:
    runs = [arm(SHARING, seed=s, test_shift=0.01 * s) for s in (0, 1, 2)]
    rows = [np.asarray(run.test_accuracies) for run in runs]
    assert mean_of_tested(runs) == over_seeds_and_tasks(rows)
    # Of the tasks the intervals alone are known, or not that they are the same.
    alone = student95([row.mean() for row in rows])
    of_tasks = [run.test.ci95 or 0.0 for run in runs if run.test is not None]
    assert alone.ci95 is not None
    wide = math.hypot(alone.ci95, sum(of_tasks) / 3)
    slim = runs[2].model_copy(update={"test_accuracies": None})
    short = runs[2].model_copy(update={"test_accuracies": runs[2].test_accuracies[:-1]})  # type: ignore[index]
    for other in (slim, short):
        found = mean_of_tested([*runs[:2], other])
        assert found is not None
        assert found.mean == pytest.approx(alone.mean)
        assert found.ci95 == pytest.approx(wide)
    untested = runs[2].model_copy(update={"test": None, "test_accuracies": None})
    single = mean_of_tested([runs[0], untested])
    assert single is not None
    assert single.mean == pytest.approx(rows[0].mean())
    assert single.ci95 is None
    assert mean_of_tested([untested]) is None


def test_without_accuracies_by_task_the_tasks_still_widen_the_interval() -> None:
    seeds = [comparison([arm(SHARING, seed=s), arm(ORIGINAL, seed=s)]) for s in (0, 1, 2)]
    slim = [
        one.model_copy(
            update={"arms": tuple(a.model_copy(update={"test_accuracies": None}) for a in one.arms)}
        )
        for one in seeds
    ]
    full, stored = (mean_difference(known, SHARING, ORIGINAL) for known in (seeds, slim))
    assert full is not None
    assert stored is not None
    assert stored[1] == 3
    assert stored[0].mean == pytest.approx(full[0].mean)
    alone = student95([pair.difference for one in seeds for pair in one.paired])
    assert alone.ci95 is not None
    assert full[0].ci95 is not None
    assert stored[0].ci95 is not None
    assert alone.ci95 < full[0].ci95 <= stored[0].ci95


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


def test_runs_on_other_images_were_tested_on_other_tasks() -> None:
    first, second, old = usual(1, 2), usual(2, 2), usual(3, 2)
    here, there = (
        one.model_copy(update={"environment": {**one.environment, "images_sha256": of}})
        for one, of in ((first, "ab"), (second, "cd"))
    )
    with pytest.raises(RunError) as error:
        one_a_seed([old, here, there])
    assert str(error.value) == (
        "these results are not of one comparison: the images' SHA-256 is 'ab' in one and 'cd' in "
        "another; report them apart"
    )
    assert len(one_a_seed([here, old])) == 2  # of an earlier version, which does not say


def test_what_an_arm_came_to_is_told_of_the_runs_that_trained() -> None:
    good = [arm(SHARING, seed=s) for s in (0, 1)]
    bad = arm(SHARING, seed=2, gain=0.05, test_shift=-0.3, outcome="diverged")
    mixed = achieved([*good, bad])
    assert mixed == replace(achieved(good), failures=("1 of 3 diverged",))
    assert mixed.test == mean_of_tested(good)
    flat = [arm(SHARING, seed=s, gain=0.0, outcome="not trained") for s in (0, 1)]
    assert achieved(flat).test == mean_of_tested(flat)  # better than nothing to say
    assert achieved([*good, flat[0]]).test == mean_of_tested(good)


def test_a_file_given_twice_would_shrink_the_interval() -> None:
    with pytest.raises(RunError, match="the run of original with seed 1 is given twice; give each"):
        one_a_seed([usual(1, 2), usual(1, 2)])
