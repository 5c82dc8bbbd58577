"""The bars of a study's own figures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.conditions import Condition, conditions
from reproduction.evidence import difference, mean_test_accuracy
from reproduction.plan import Study
from reproduction.study_figures import draw_study
from gradshare.training.statistics import Interval
from tests.reproduction.toy import PLAN, SEEDS, results_with
from tests.reproduction.synthetic_results import arm, comparison


def bars(axes: Axes) -> list[list[list[float]]]:
    """Of each arm or row: where its bars reach from and to, as (x, y) one after the other."""
    return [
        np.asarray(container.lines[2][0].get_segments()).reshape(-1, 4).tolist()
        for container in axes.containers
        if isinstance(container, ErrorbarContainer)
    ]


def reach(interval: Interval | None) -> tuple[float, float]:
    """In percent."""
    assert interval is not None
    assert interval.ci95
    return 100 * (interval.mean - interval.ci95), 100 * (interval.mean + interval.ci95)


@pytest.mark.parametrize("seeds", [1, 3])
def test_bars_of_a_sweep_are_the_intervals_of_its_means(seeds: int) -> None:
    results = results_with(
        {
            f"rates/seed-{seed}/{rate}/{name}": arm(name, seed=seed, gain=gain, tasks=40)
            for seed in range(seeds)
            for rate, gain in (("rate-0.1", 0.3), ("rate-1", 0.2))
            for name in (ORIGINAL, SHARING)
        }
    )
    swept = conditions(PLAN, results, "rates")
    (drawing,) = draw_study("rates", PLAN.studies["rates"], swept, results)
    found = bars(drawing.figure.axes[0])
    assert len(found) == 2
    for name, of_arm in zip((ORIGINAL, SHARING), found, strict=True):
        for condition, (_, low, _, high) in zip(swept, of_arm, strict=True):
            expected = reach(mean_test_accuracy(condition.runs(name)))
            assert (low, high) == pytest.approx(expected)


@pytest.mark.parametrize("seeds", [1, 3])
def test_bars_of_many_arms_are_the_intervals_of_their_differences(seeds: int) -> None:
    names = (ORIGINAL, RATE_CONTROL, "one", "two", "three", "four")
    study = Study.model_validate(
        {"title": "Which?", "axes": {"seed": SEEDS, "arm": {name: {} for name in names}}}
    )
    runs = tuple(
        comparison([arm(name, seed=seed, tasks=40) for name in names]) for seed in range(seeds)
    )
    condition = Condition("many", {}, runs)
    (drawing,) = draw_study("many", study, [condition], {})
    for yardstick, axes in zip((ORIGINAL, RATE_CONTROL), drawing.figure.axes, strict=True):
        others = [name for name in names if name != yardstick]
        for name, ((low, row, high, same),) in zip(others, bars(axes), strict=True):
            both = difference(condition, name, yardstick)
            assert both is not None
            assert (low, high) == pytest.approx(reach(both.interval))
            assert row == same == names.index(name)
