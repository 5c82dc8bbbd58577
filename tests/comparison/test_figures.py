from __future__ import annotations

import math
import unicodedata
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from gradshare.comparison import figures
from gradshare.comparison.figures import Drawing, draw_all
from gradshare.comparison.plan import shown
from gradshare.comparison.results import Results
from tests.comparison.builders import ERROR, arm_run, classification, regression, results_of

HEADINGS = {"curves": "Learning curves", "differences": "Differences by task"}


def drawing(results: Results, name: str) -> Drawing:
    return {drawing.heading: drawing for drawing in draw_all(results)}[HEADINGS[name]]


def axes_of(drawing: Drawing) -> Axes:
    (axes,) = drawing.figure.axes
    return axes


def line(axes: Axes, arm: str) -> Any:
    """The points of an arm's line."""
    (found,) = [line for line in axes.lines if line.get_label() == arm]
    x, y = np.asarray(found.get_xdata()), np.asarray(found.get_ydata())
    return x.tolist(), y.tolist()


def band(axes: Axes, place: int = 0) -> dict[float, tuple[float, float]]:
    """The lower and upper edge of a band at each x."""
    edges: dict[float, list[float]] = {}
    for path in axes.collections[place].get_paths():
        for x, y in np.asarray(path.vertices):
            edges.setdefault(float(x), []).append(float(y))
    return {x: (min(ys), max(ys)) for x, ys in edges.items()}


def legend(drawing: Drawing) -> list[str]:
    (found,) = drawing.figure.legends
    return [text.get_text() for text in found.get_texts()]


# Learning curves ----------------------------------------------------------------------------------


def test_the_curve_of_one_seed_has_its_means_in_percent_and_a_band_over_tasks() -> None:
    results = results_of(arm_run("only", validation=[0.3, 0.5], half=0.02))
    found = drawing(results, "curves")
    axes = axes_of(found)
    assert line(axes, "only") == ([1, 2], [30, 50])
    assert band(axes) == {1: pytest.approx((28, 32)), 2: pytest.approx((48, 52))}
    assert axes.get_ylabel() == "validation accuracy (%)"
    assert "over validation tasks" in found.caption
    assert legend(found) == ["only"]


def test_the_curve_of_several_seeds_is_their_mean_among_thin_lines_of_the_seeds() -> None:
    seeds = [(0.30, 0.50), (0.32, 0.50), (0.40, 0.56)]
    runs = [arm_run("a", seed, validation=scores) for seed, scores in enumerate(seeds)]
    found = drawing(results_of(*runs), "curves")
    axes = axes_of(found)
    means = [100 * sum(column) / 3 for column in zip(*seeds, strict=True)]
    assert line(axes, "a")[1] == pytest.approx(means)
    thin = [
        np.asarray(seed.get_ydata()).tolist() for seed in axes.lines if seed.get_linewidth() < 1
    ]
    assert thin == [pytest.approx([100 * score for score in scores]) for scores in seeds]
    assert "Thick lines: the mean of those that did not diverge" in found.caption


def test_a_run_that_diverged_is_a_thin_line_and_not_in_the_mean() -> None:
    results = results_of(
        arm_run("a", 0, validation=[0.3, 0.4, 0.5]),
        arm_run("a", 1, validation=[0.3, 0.4, 0.5]),
        arm_run("a", 2, validation=[0.25, 0.1], outcome="diverged"),
    )
    found = drawing(results, "curves")
    axes = axes_of(found)
    assert line(axes, "a") == ([1, 2, 3], pytest.approx([30, 40, 50]))
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert [len(np.asarray(line.get_xdata())) for line in thin] == [3, 3, 2]


def test_a_score_with_another_unit_is_not_scaled_and_a_wide_range_is_logarithmic() -> None:
    runs = [arm_run("a", validation=[90.0, 4.0, 0.5], score="error")]
    axes = axes_of(drawing(results_of(*runs, score="error", facts=ERROR), "curves"))
    assert line(axes, "a")[1] == [90, 4, 0.5]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "validation error (mm, logarithmic)"
    axes = axes_of(drawing(regression("a"), "curves"))
    assert (axes.get_yscale(), axes.get_ylabel()) == ("linear", "validation error (mm)")


def test_values_that_are_not_finite_or_absurd_are_left_out() -> None:
    scores = [2.0, math.nan, 1e308, math.inf, 1.0]
    run = arm_run("a", validation=scores, score="error", half=1e308)
    found = drawing(results_of(run, score="error", facts=ERROR), "curves")
    assert line(axes_of(found), "a")[1] == pytest.approx(
        [2, math.nan, math.nan, math.nan, 1], nan_ok=True
    )
    found.svg()


def test_a_run_without_a_finite_score_has_no_figure() -> None:
    assert draw_all(results_of(arm_run("a", validation=[math.nan]))) == []
    assert draw_all(results_of(arm_run("a", validation=[]))) == []


@pytest.mark.parametrize(("score", "drawn"), [(0.24, True), (0.95, False)])
def test_chance_is_drawn_where_it_does_not_flatten_the_curves(score: float, drawn: bool) -> None:
    run = arm_run("a", validation=[score, score + 0.04])
    axes = axes_of(drawing(results_of(run), "curves"))
    levels = [line for line in axes.lines if np.array_equal(np.asarray(line.get_ydata()), [20, 20])]
    assert len(levels) == drawn


def test_the_markers_of_identical_curves_lie_apart() -> None:
    names = ["a", "b", "c"]
    results = results_of(*(arm_run(name, validation=[0.3] * 24) for name in names))
    lines = [x for x in axes_of(drawing(results, "curves")).lines if x.get_label() in names]
    assert [line.get_markevery() for line in lines] == [(0, 3), (1, 3), (2, 3)]


# Differences by task ------------------------------------------------------------------------------


def test_differences_are_paired_by_seed_and_task_and_sorted() -> None:
    results = results_of(
        arm_run("base", 0, validation=[0.4], test=[0.2, 0.4, 0.6]),
        arm_run("base", 1, validation=[0.4], test=[0.4, 0.4, 0.4]),
        arm_run("new", 0, validation=[0.4], test=[0.4, 0.4, 0.4]),
        arm_run("new", 1, validation=[0.4], test=[0.4, 0.4, 0.6]),
    )
    found = drawing(results, "differences")
    axes = axes_of(found)
    # By task: (0.2 + 0) / 2, 0 and (-0.2 + 0.2) / 2.
    assert line(axes, "new") == ([1, 2, 3], pytest.approx([0, 0, 10]))
    assert axes.get_ylabel() == "accuracy − base (points)"
    assert legend(found) == ["new"]
    assert "Above zero the arm is better" in found.caption


def test_a_low_error_is_better() -> None:
    runs = [
        arm_run("base", validation=[1.0], test=[1.0, 2.0, 3.0], score="error"),
        arm_run("new", validation=[1.0], test=[0.5, 1.5, 3.5], score="error"),
    ]
    found = drawing(results_of(*runs, score="error", facts=ERROR), "differences")
    axes = axes_of(found)
    assert line(axes, "new")[1] == [-0.5, -0.5, 0.5]
    assert axes.get_ylabel() == "error − base (mm)"
    assert "Below zero the arm is better" in found.caption


def test_only_seeds_in_which_both_trained_are_compared() -> None:
    results = results_of(
        arm_run("base", 0, validation=[0.4], test=[0.2, 0.4]),
        arm_run("base", 1, validation=[0.4], test=[0.9, 0.9], outcome="not trained"),
        arm_run("new", 0, validation=[0.4], test=[0.3, 0.4]),
        arm_run("new", 1, validation=[0.4], test=[0.1, 0.1]),
        arm_run("base", 2, validation=[0.4], test=[0.9, 0.9]),
        arm_run("new", 2, validation=[0.4], test=[0.1, 0.1], outcome="not trained"),
        arm_run("lost", 1, validation=[0.4], test=[0.1, 0.1]),
    )
    found = drawing(results, "differences")
    assert line(axes_of(found), "new")[1] == pytest.approx([0, 10])
    assert len(legend(found)) == 1


def test_a_single_arm_has_no_differences() -> None:
    assert [drawing.heading for drawing in draw_all(classification("only"))] == ["Learning curves"]


# Looks and names ----------------------------------------------------------------------------------


def test_no_two_arms_look_the_same() -> None:
    names = [f"arm {place}" for place in range(figures.MOST_ARMS)]
    axes = axes_of(drawing(classification(*names), "curves"))
    lines = [line for line in axes.lines if line.get_label() in names]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(names)


def test_of_too_many_arms_the_baseline_the_controls_and_the_best_are_drawn() -> None:
    scores = np.random.default_rng(0).permutation(100)
    runs = [
        arm_run(f"arm {place}", validation=[0.3], test=[score / 100, score / 100])
        for place, score in enumerate(scores)
    ]
    worst = f"arm {int(scores[1:].argmin()) + 1}"
    drawn = legend(drawing(results_of(*runs, controls=[worst]), "curves"))
    assert len(drawn) == figures.MOST_ARMS
    best = [f"arm {place}" for place in np.argsort(-scores) if f"arm {place}" not in drawn[:1]]
    chosen = {"arm 0", worst, *[arm for arm in best if arm != worst][: figures.MOST_ARMS - 2]}
    assert set(drawn) == chosen
    assert drawn == sorted(drawn, key=lambda arm: int(arm.removeprefix("arm ")))


def test_names_are_drawn_as_they_are_written() -> None:
    names = ["$x_1$ \\alpha", "[/x]", "<b>&amp;", "比較", "🦊", "{{ 1 }}"]
    found = drawing(classification(*names), "curves")
    assert legend(found) == names
    svg = found.svg().decode()
    for written in ("$x_1$ \\alpha", "[/x]", "&lt;b&gt;&amp;amp;", "比較", "🦊", "{{ 1 }}"):
        assert f">{written}<" in svg
    assert "<b>" not in svg


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    assert [name.strip() for name in legend(drawing(classification("_a", "b"), "curves"))] == [
        "_a",
        "b",
    ]


@given(st.text(st.characters(), max_size=200), st.integers(2, 60))
def test_a_shown_text_is_one_short_line_without_control_characters(text: str, width: int) -> None:
    found = shown(text, width)
    assert 0 < len(found) <= max(width, len("unnamed"))
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in found)
    assert not set(found) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069")
    assert found == " ".join(found.split())
    if text.isalnum() and text.isascii() and len(text) <= width:
        assert found == text


def test_the_users_settings_of_matplotlib_change_nothing_and_stay() -> None:
    expected = [drawing.svg() for drawing in draw_all(classification("a", "b"))]
    theirs: Any = {"text.usetex": True, "lines.linewidth": 9.0, "axes.facecolor": "black"}
    with mpl.rc_context(theirs):
        assert [drawing.svg() for drawing in draw_all(classification("a", "b"))] == expected
        assert mpl.rcParams["lines.linewidth"] == 9
