"""What sharing adds to its control, in every condition and on average."""

from __future__ import annotations

import math

import pytest
from matplotlib.container import ErrorbarContainer

from gradshare.experiments.paper.contrast import contrast_rows, contrasts, draw_contrasts
from gradshare.experiments.paper.study_report import draw_studies, study_pages
from gradshare.experiments.results import ORIGINAL, RATE_CONTROL, SHARING
from tests.experiments.paper.toy import PLAN, results_with
from tests.experiments.synthetic_results import arm

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
    found = contrasts(PLAN, RESULTS)
    # `controls` and `batches` borrow what stands under `rates`; at rate 1 nothing was learned.
    assert [one.place for one in found] == ["rates, rate-0.1", "batches, batch-1"]
    assert [len(one.by_seed) for one in found] == [3, 1]
    several = found[0]
    assert several.found.interval.mean == pytest.approx(math.fsum(several.by_seed) / 3)
    assert several.found.interval.mean == pytest.approx(0.05, abs=0.02)


def test_the_mean_is_over_conditions_with_a_t_interval() -> None:
    found = contrasts(PLAN, RESULTS)
    rows = contrast_rows(found)
    assert [row["condition"] for row in rows] == [
        "rates, rate-0.1",
        "batches, batch-1",
        "mean of 2 conditions",
    ]
    assert [row["seeds"] for row in rows] == ["3", "1", ""]
    first, second = (100 * one.found.interval.mean for one in found)
    mean, half = (first + second) / 2, 12.7062 * abs(first - second) / 2
    seen = half * (12.7062 + 1.3764) / 12.7062
    assert rows[-1]["sharing − rate-control"] == f"+{mean:.1f} ± {half:.1f} points ({seen:.1f})"
    assert len(contrast_rows(found[:1])) == 1  # no mean of one


def test_conditions_are_drawn_above_their_mean() -> None:
    drawing = draw_contrasts(contrasts(PLAN, RESULTS))
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "rates, rate-0.1",
        "batches, batch-1",
        "mean of all conditions",
    ]
    bars = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    faces = [one.lines[0].get_markerfacecolor() for one in bars]
    assert [face == "white" for face in faces] == [False, True, False]  # hollow: one seed
    assert "mean of 2 conditions" in drawing.description


def test_the_page_begins_with_it_where_a_control_was_run() -> None:
    page = study_pages(PLAN, RESULTS)["tables.md"]
    assert page.index("## What sharing adds to its control") < page.index("## Accuracy against")
    assert draw_studies(PLAN, RESULTS)[0].name == "contrast"
    alone = {cell: one for cell, one in RESULTS.items() if cell.labels["arm"] != RATE_CONTROL}
    assert "What sharing adds" not in study_pages(PLAN, alone)["tables.md"]
    assert draw_studies(PLAN, alone)[0].name == "rates"
