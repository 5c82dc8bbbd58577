"""What sharing adds to its control, in every condition and on average."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.conditions import with_borrowed
from reproduction.contrast import contrast_rows, contrasts, draw_contrasts
from reproduction.study_report import draw_studies, study_pages
from tests.reproduction.toy import PLAN, results_with
from tests.reproduction.synthetic_results import arm

RESULTS = results_with(
    {
        f"{place}/{name}": arm(
            name, seed=seed, gain=gain, noise=0.02 * gain, tasks=40, test_shift=shift
        )
        for seeds, condition, gain, advantage in (
            ((0, 1, 2), "rates/seed-{}/rate-0.1", 0.3, 0.05),
            ((0, 1, 2), "rates/seed-{}/rate-1", 0.0, 0.0),
            ((1,), "batches/seed-{}/batch-1", 0.3, -0.01),
        )
        for seed in seeds
        for place in (condition.format(seed),)
        for name, shift in ((SHARING, advantage), (RATE_CONTROL, 0.0), (ORIGINAL, -0.3))
    }
)


def test_every_condition_counts_once_where_something_was_learned() -> None:
    found = contrasts(PLAN, with_borrowed(PLAN, RESULTS))
    # `controls` and `batches` borrow what stands under `rates`; at rate 1 nothing was learned.
    assert [one.place for one in found] == ["rates, rate-0.1", "batches, batch-1"]
    assert [len(one.by_seed) for one in found] == [3, 1]
    several = found[0]
    assert several.found.interval.mean == pytest.approx(math.fsum(several.by_seed) / 3)
    assert several.found.interval.mean == pytest.approx(0.05, abs=0.02)
    assert [row["seeds"] for row in contrast_rows(found)] == ["3", "1"]
    # One seed does not say what it could have shown.
    assert [row["sharing − rate-control"].count("(") for row in contrast_rows(found)] == [1, 0]


@pytest.mark.parametrize(("gain", "counted"), [(0.14, False), (0.25, True)])
def test_a_mean_is_over_the_conditions_that_gained_half_of_the_best(
    gain: float, counted: bool
) -> None:
    high = results_with(
        {
            f"rates/seed-{seed}/rate-1/{name}": arm(
                name, seed=seed, gain=gain, noise=0.001, tasks=40, test_shift=shift
            )
            for seed in (0, 1, 2)
            for name, shift in ((SHARING, 0.0), (RATE_CONTROL, 0.02))
        }
    )
    found = {one.place: one for one in contrasts(PLAN, RESULTS | high)}
    assert list(found)[:2] == ["rates, rate-0.1", "rates, rate-1"]
    assert ("rates, mean of 2" in found) == counted
    if counted:
        mean = found["rates, mean of 2"].found
        parts = [found[f"rates, {rate}"].found.interval.mean for rate in ("rate-0.1", "rate-1")]
        assert mean.interval.mean == pytest.approx(math.fsum(parts) / 2)
        assert mean.count == 3


@pytest.mark.parametrize(("seeds", "mean_of"), [((0,), None), ((0, 1), None), ((0, 1, 2), 2)])
def test_a_mean_is_over_the_conditions_with_the_most_seeds(
    seeds: tuple[int, ...], mean_of: int | None
) -> None:
    """Those of `rates` at 0.1 are three; beside fewer at 1 a mean of both would be of these few."""
    partial = results_with(
        {
            f"rates/seed-{seed}/rate-1/{name}": arm(name, seed=seed, gain=0.3, tasks=40)
            for seed in seeds
            for name in (SHARING, RATE_CONTROL)
        }
    )
    kept = {cell: one for cell, one in RESULTS.items() if cell.labels.get("rate") != "rate-1"}
    means = [one.place for one in contrasts(PLAN, kept | partial) if not one.by_seed]
    assert means == ([] if mean_of is None else [f"rates, mean of {mean_of}"])


def test_a_borrowed_condition_counts_in_the_mean_of_the_study_that_borrows_it() -> None:
    more = results_with(
        {
            f"batches/seed-{seed}/batch-1/{name}": arm(
                name, seed=seed, gain=0.3, tasks=40, test_shift=shift
            )
            for seed in (0, 1, 2)
            for name, shift in ((SHARING, -0.03), (RATE_CONTROL, 0.0))
        }
    )
    standing = with_borrowed(PLAN, RESULTS | more)
    found = {one.place: one.found.interval.mean for one in contrasts(PLAN, standing)}
    # `controls` borrows one condition and has no other: a mean of one would say nothing new.
    assert list(found) == ["rates, rate-0.1", "batches, batch-1", "batches, mean of 2"]
    parts = (found["rates, rate-0.1"], found["batches, batch-1"])
    assert found["batches, mean of 2"] == pytest.approx(math.fsum(parts) / 2)


def test_of_single_seeds_there_is_no_mean() -> None:
    single = results_with(
        {
            f"rates/seed-0/{rate}/{name}": arm(name, seed=0, gain=0.3, tasks=40)
            for rate in ("rate-0.1", "rate-1")
            for name in (SHARING, RATE_CONTROL)
        }
    )
    assert [one.place for one in contrasts(PLAN, single)] == ["rates, rate-0.1", "rates, rate-1"]


def test_conditions_are_drawn_hollow_where_there_is_one_seed() -> None:
    drawing = draw_contrasts(contrasts(PLAN, RESULTS))
    (axes,) = drawing.figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["rates, rate-0.1", "batches, batch-1"]
    bars = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    assert [one.lines[0].get_markerfacecolor() == "white" for one in bars] == [False, True]
    assert "batches, batch-1" in drawing.description


def test_bars_are_the_intervals_and_small_marks_the_seeds() -> None:
    found = contrasts(PLAN, RESULTS)
    (axes,) = draw_contrasts(found).figure.axes
    bars = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    marks = [line for line in axes.lines if line.get_marker() == "|" and line.get_alpha() == 0.7]
    assert len(bars) == len(marks) == len(found) == 2
    for row, (one, bar, seeds) in enumerate(zip(found, bars, marks, strict=True)):
        mean, half, _ = one.found.interval
        assert half
        (segment,) = bar.lines[2][0].get_segments()
        assert segment[:, 0] == pytest.approx([100 * (mean - half), 100 * (mean + half)])
        assert segment[:, 1].tolist() == [row, row]
        # A single seed is the mean.
        by_seed = [100 * value for value in one.by_seed] if len(one.by_seed) > 1 else []
        assert np.asarray(seeds.get_xdata()).tolist() == pytest.approx(by_seed)


def test_the_page_begins_with_it_where_a_control_was_run() -> None:
    page = study_pages(PLAN, PLAN.cells(), RESULTS)["tables.md"]
    assert page.index("## What sharing adds to its control") < page.index("## Accuracy against")
    assert draw_studies(PLAN, RESULTS)[0].name == "contrast"
    alone = {cell: one for cell, one in RESULTS.items() if cell.labels["arm"] != RATE_CONTROL}
    assert "What sharing adds" not in study_pages(PLAN, PLAN.cells(), alone)["tables.md"]
    assert draw_studies(PLAN, alone)[0].name == "rates"
