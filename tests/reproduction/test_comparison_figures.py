from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.curves import Curve, running_mean, validation_curve
from reproduction.drawing import FURTHER_STYLES, MARKED_EPOCHS, STYLES, arm_styles
from reproduction.comparison_figures import (
    band_note,
    draw_all,
    draw_inner_loop,
    draw_sharing,
    draw_validation,
    interval_note,
)
from reproduction.comparison_figures import (
    test_note as legend_note,  # by its own name pytest would call it
)
from reproduction.results import SharingPoint
from tests.reproduction.synthetic_results import CHANCE, arm, comparison, usual


def lines(axes: Axes, color: str, thick: bool = True) -> list[Line2D]:
    found = [line for line in axes.lines if line.get_color() == color]
    found = [line for line in found if line.get_linestyle() != "None"]
    return [line for line in found if (line.get_linewidth() > 1.5) is thick]


def data(line: Line2D) -> tuple[Any, Any]:
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def band(axes: Axes, number: int, epoch: int) -> tuple[float, float]:
    """From where to where a band reaches, by its arm's number."""
    vertices = np.asarray(axes.collections[number].get_paths()[0].vertices)
    heights = vertices[np.isclose(vertices[:, 0], epoch)][:, 1]
    return heights.min(), heights.max()


def over_seeds(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean over two or three seeds."""
    half = {2: 12.7062047, 3: 4.3026527}[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5
    return np.mean(values) - half, np.mean(values) + half


def test_the_curves_are_the_validations() -> None:
    results = usual()
    axes = draw_validation([results]).figure.axes[0]
    for run in results.arms:
        (line,) = lines(axes, STYLES[run.name].color)
        epochs, accuracies = data(line)
        assert epochs.tolist() == [v.epoch for v in run.validation]
        np.testing.assert_allclose(accuracies, [100 * v.accuracy for v in run.validation])
    assert axes.get_ylabel() == "validation accuracy (%)"
    assert axes.get_xlabel() == "epoch"
    chance = [line for line in axes.lines if np.allclose(data(line)[1], 100 * CHANCE)]
    assert len(chance) == 1


def test_chance_is_left_out_where_it_would_take_more_of_the_figure_than_the_curves() -> None:
    runs = [
        run.model_copy(update={"validation": run.validation[24:]}) for run in usual(epochs=40).arms
    ]
    drawing = draw_validation([comparison(runs)])
    axes = drawing.figure.axes[0]
    assert not [line for line in axes.lines if np.allclose(data(line)[1], 100 * CHANCE)]
    assert axes.get_ylim()[0] > 100 * CHANCE + 5
    assert "chance 20.0 % (below)" in drawing.description


def test_the_band_is_the_interval_over_tasks() -> None:
    results = usual()
    drawing = draw_validation([results])
    axes = drawing.figure.axes[0]
    first = results.arms[0].validation[0]
    half = first.ci95 or 0
    low, high = 100 * (first.accuracy - half), 100 * (first.accuracy + half)
    assert band(axes, 0, 1) == pytest.approx((low, high))
    assert drawing.note.get_text() == (
        "MAML on glyphs. Bands: 95 % confidence interval over validation tasks; one seed."
    )


def test_several_seeds_are_thin_and_their_mean_is_thick() -> None:
    results = [usual(seed) for seed in (1, 2, 3)]
    drawing = draw_validation(results)
    axes = drawing.figure.axes[0]
    color = STYLES[SHARING].color
    assert len(lines(axes, color, thick=False)) == 3
    (mean,) = lines(axes, color)
    expected = [
        np.mean([100 * one.arms[1].validation[epoch].accuracy for one in results])
        for epoch in range(20)
    ]
    np.testing.assert_allclose(data(mean)[1], expected)
    assert "of the mean over 3 seeds (Student’s t); thin lines" in " ".join(
        drawing.note.get_text().split()
    )


def test_the_band_of_several_seeds_is_the_interval_of_their_mean() -> None:
    results = [usual(seed) for seed in (1, 2, 3)]
    axes = draw_validation(results).figure.axes[0]
    for number in range(3):
        for epoch in (1, 12, 20):
            values = [100 * one.arms[number].validation[epoch - 1].accuracy for one in results]
            assert band(axes, number, epoch) == pytest.approx(over_seeds(values), rel=1e-6)
    left, right = draw_sharing(results).figure.axes
    points = [one.arms[1].sharing[7] for one in results]
    assert band(left, 0, 8) == pytest.approx(over_seeds([p.m or 0 for p in points]), rel=1e-6)
    gates = [p.lambda_ or 0 for p in points]
    assert band(right, 0, 8) == pytest.approx(over_seeds(gates), rel=1e-6)


def test_an_axis_ends_where_accuracies_do_however_far_bands_reach() -> None:
    good = usual(1)
    poor = [
        run.model_copy(
            update={
                "validation": [
                    point.model_copy(update={"accuracy": 0.3 * point.accuracy})
                    for point in run.validation
                ]
            }
        )
        for run in good.arms
    ]
    bad = comparison(poor).model_copy(update={"config": {**good.config, "seed": 2}})
    axes = draw_validation([good, bad]).figure.axes[0]
    assert band(axes, 0, 20)[0] < -2
    assert band(axes, 0, 20)[1] > 102
    assert axes.get_ylim() == (-2, 102)


def test_a_diverged_seed_is_in_no_band() -> None:
    broken = comparison([arm(SHARING, seed=3, epochs=9, outcome="diverged")])
    results = [comparison([arm(SHARING, seed=seed)]) for seed in (1, 2)]
    axes = draw_validation([*results, broken]).figure.axes[0]
    values = [100 * one.arms[0].validation[3].accuracy for one in results]
    assert band(axes, 0, 4) == pytest.approx(over_seeds(values), rel=1e-6)


def test_the_caption_says_what_each_band_is_over() -> None:
    whole = [usual(seed) for seed in (1, 2)]
    with_one = [comparison([*usual(3).arms, arm("detached", seed=3)]), *whole]
    assert band_note(with_one) == (
        "Bands: 95 % confidence interval of the mean over 3 seeds (Student’s t): original, "
        "gradient-sharing and rate-control; over validation tasks where there is one seed: "
        "detached; thin lines: the seeds."
    )
    broken = comparison([arm(ORIGINAL, seed=3), arm(SHARING, seed=3, epochs=4, outcome="diverged")])
    pairs = [comparison(one.arms[:2]) for one in whole]
    assert band_note([*pairs, broken]) == (
        "Bands: 95 % confidence interval of the mean over 3 seeds (Student’s t): original; of the "
        "mean over 2 seeds (Student’s t): gradient-sharing; thin lines: the seeds."
    )
    assert band_note([pairs[0], broken]) == (
        "Bands: 95 % confidence interval of the mean over 2 seeds (Student’s t): original; no "
        "bands where fewer than two seeds are left: gradient-sharing; thin lines: the seeds."
    )
    alone = comparison([arm(SHARING, seed=3, epochs=4, outcome="diverged")])
    assert band_note([comparison([arm(SHARING)]), alone]) == (
        "No bands where fewer than two seeds are left; thin lines: the seeds."
    )


def test_the_caption_has_thin_lines_only_where_there_are() -> None:
    long = [comparison([arm(SHARING, seed=seed, epochs=200)]) for seed in (1, 2)]
    assert band_note(long) == (
        "Bands: 95 % confidence interval of the mean over 2 seeds (Student’s t). Running mean over "
        "5 epochs."
    )
    points = [comparison([arm(SHARING, seed=seed, epochs=1)]) for seed in (1, 2)]
    assert band_note(points) == (
        "Bars: 95 % confidence interval of the mean over 2 seeds (Student’s t)."
    )
    nothing = comparison([arm(SHARING, epochs=0, outcome="diverged")])
    assert band_note([nothing]) == ""


def test_names_that_have_several_bands_are_not_told() -> None:
    runs = [arm(SHARING, seed=seed) for seed in (1, 2, 3)]
    assert interval_note([("GS", runs), ("GS", runs[:2]), ("OG", runs[:1])]) == (
        "Bands: 95 % confidence interval of the mean over 3 seeds (Student’s t); of the mean over "
        "2 seeds (Student’s t); over validation tasks where there is one seed; thin lines: the "
        "seeds."
    )
    left = [runs[0], arm(SHARING, seed=2, epochs=4, outcome="diverged")]
    assert interval_note([("GS", left), ("OG", runs[:1])]) == (
        "Bands: 95 % confidence interval over validation tasks where there is one seed: OG; no "
        "bands where fewer than two seeds are left: GS; thin lines: the seeds."
    )


def test_the_inner_loops_caption_counts_the_seeds_that_are_averaged() -> None:
    broken = comparison([arm(ORIGINAL, seed=2), arm(SHARING, seed=2, epochs=4, outcome="diverged")])
    note = draw_inner_loop([usual(1), broken]).note.get_text()
    assert "Means over 1 to 2 seeds." in note


def test_a_diverged_seed_is_shown_and_not_averaged() -> None:
    broken = comparison([arm(SHARING, seed=2, epochs=4, outcome="diverged")])
    whole = comparison([arm(SHARING, seed=1, epochs=9)])
    axes = draw_validation([whole, broken]).figure.axes[0]
    color = STYLES[SHARING].color
    (mean,) = lines(axes, color)
    assert len(data(mean)[0]) == 9
    crosses = [line for line in axes.lines if line.get_marker() == "X"]
    assert [data(line)[0].tolist() for line in crosses] == [[4.0]]


def test_diverged_arms_are_shown_as_far_as_they_came() -> None:
    arms = [arm(ORIGINAL, epochs=4, outcome="diverged"), arm(SHARING, epochs=9)]
    drawing = draw_validation([comparison(arms)])
    (line,) = lines(drawing.figure.axes[0], STYLES[ORIGINAL].color)
    assert data(line)[0].tolist() == [1, 2, 3, 4]
    assert "original diverged after epoch 4" in drawing.description
    at_once = [arm(ORIGINAL, epochs=0, outcome="diverged"), arm(SHARING, epochs=2)]
    assert "original diverged at once" in draw_validation([comparison(at_once)]).description


def test_the_legend_is_the_papers() -> None:
    description = draw_validation([usual()]).description
    assert "gradient-sharing max 50.4 % ep 12 test 48.4 ± 0.9 %" in description
    svg = draw_validation([usual()]).svg()
    for text in ("gradient-sharing", "max 50.4 %", "ep 12", "test 48.4 ± 0.9 %", "chance"):
        assert f">{text}</text>" in svg


def test_a_single_epoch_is_bars() -> None:
    drawing = draw_validation([usual(epochs=1)])
    axes = drawing.figure.axes[0]
    bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    assert len(bars) == 3
    assert axes.get_xlim() == (0.5, 1.5)
    assert "Bars: 95 %" in drawing.note.get_text()


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_bars_are_the_same_intervals_as_bands(seeds: int) -> None:
    results = [usual(seed, epochs=1) for seed in range(1, seeds + 1)]
    axes = draw_validation(results).figure.axes[0]
    bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    for number, bar in enumerate(bars):
        found = [one.arms[number].validation[0] for one in results]
        (segment,) = bar.lines[2][0].get_segments()
        if seeds == 1:
            (alone,) = found
            half = alone.ci95 or 0
            expected = 100 * (alone.accuracy - half), 100 * (alone.accuracy + half)
        else:
            expected = over_seeds([100 * v.accuracy for v in found])
        assert tuple(segment[:, 1]) == pytest.approx(expected, rel=1e-6)


def test_many_epochs_are_smoothed_and_stay_clear_of_markers() -> None:
    results = usual(epochs=1500)
    drawing = draw_validation([results])
    axes = drawing.figure.axes[0]
    color = STYLES[SHARING].color
    (pale,) = lines(axes, color, thick=False)
    (smooth,) = lines(axes, color)
    raw = data(pale)[1]
    assert len(raw) == len(data(smooth)[1]) == 1500
    np.testing.assert_allclose(data(smooth)[1][700], raw[685:716].mean())
    marked: Any = smooth.get_markevery()
    start, every = marked
    assert len(range(start, 1500, every)) <= MARKED_EPOCHS
    assert "Running mean over 31 epochs." in drawing.note.get_text()


def test_the_running_mean_of_a_constant_is_the_constant() -> None:
    curve = validation_curve(arm(ORIGINAL, epochs=300, gain=0, noise=0))
    np.testing.assert_allclose(running_mean(curve, 7).values, 20)


def test_the_running_mean_keeps_the_start_and_calms_the_end() -> None:
    values = np.arange(300.0)
    mean = running_mean(Curve(values + 1, values, np.ones(300)), 31).values
    np.testing.assert_allclose(mean[:285], values[:285])
    assert mean[-1] == values[-16:].mean()
    assert running_mean(Curve(values + 1, values**2, np.ones(300)), 31).values[0] == 0


def test_weights_are_not_smoothed() -> None:
    run = arm(SHARING, epochs=300)
    axes = draw_sharing([comparison([run])]).figure.axes[0]
    (line,) = lines(axes, STYLES[SHARING].color)
    np.testing.assert_allclose(data(line)[1], [p.m or 0 for p in run.sharing])


def test_m_and_lambda() -> None:
    results = usual()
    drawing = draw_sharing([results])
    left, right = drawing.figure.axes
    sharing, control = results.arms[1:]
    (m,) = lines(left, STYLES[SHARING].color)
    np.testing.assert_allclose(data(m)[1], [p.m or 0 for p in sharing.sharing])
    assert lines(left, STYLES[RATE_CONTROL].color) == []
    (gate,) = lines(right, STYLES[RATE_CONTROL].color)
    np.testing.assert_allclose(data(gate)[1], [p.lambda_ or 0 for p in control.sharing])
    assert left.get_ylim() == right.get_ylim()
    low, high = left.get_ylim()
    assert 0 <= low < 0.18
    assert 0.5 < high <= 1
    assert "rate-control ends at σ(m) –, σ(λ) 0.19" in drawing.description


def test_weights_that_hardly_move_are_not_blown_up() -> None:
    point = SharingPoint(epoch=1, m=0.501, lambda_=0.499)
    still = arm(SHARING, epochs=1).model_copy(update={"sharing": (point,)})
    low, high = draw_sharing([comparison([still])]).figure.axes[0].get_ylim()
    assert high - low == pytest.approx(0.2)


def test_the_inner_loops_gap() -> None:
    results = usual()
    axes = draw_inner_loop([results]).figure.axes
    assert [a.get_title(loc="left") for a in axes[:3]] == [ORIGINAL, SHARING, RATE_CONTROL]
    run = results.arms[1]
    support, query = lines(axes[1], STYLES[SHARING].color)
    np.testing.assert_allclose(
        data(support)[1], [100 * (p.support_accuracy_after or 0) for p in run.inner_loop]
    )
    np.testing.assert_allclose(
        data(query)[1], [100 * (p.query_accuracy_after or 0) for p in run.inner_loop]
    )
    _, loss = lines(axes[4], STYLES[SHARING].color)
    np.testing.assert_allclose(data(loss)[1], [p.query_loss_after or 0 for p in run.inner_loop])
    assert axes[3].get_ylabel() == "cross-entropy (nats)"


def test_one_exploding_loss_does_not_flatten_the_others() -> None:
    run = arm(ORIGINAL, epochs=5)
    points = list(run.inner_loop)
    points[4] = points[4].model_copy(update={"query_loss_after": 1e9, "support_loss_after": None})
    wild = run.model_copy(update={"inner_loop": tuple(points)})
    axes = draw_inner_loop([comparison([wild, arm(SHARING, epochs=5)])]).figure.axes
    assert axes[2].get_ylim()[1] == pytest.approx(4 * np.log(5))


def test_figures_without_data_are_not_drawn() -> None:
    bare = arm(ORIGINAL, epochs=2).model_copy(update={"inner_loop": ()})
    assert [drawing.name for drawing in draw_all([comparison([bare])])] == ["validation"]
    assert [drawing.name for drawing in draw_all([usual(epochs=2)])] == [
        "validation",
        "sharing",
        "inner_loop",
    ]


def test_an_arm_always_looks_the_same_and_like_no_other() -> None:
    styles = arm_styles([SHARING, "one-control", ORIGINAL, "two-control"])
    assert styles[SHARING] == STYLES[SHARING]
    assert styles["one-control"] == FURTHER_STYLES[0]
    assert styles["two-control"] == FURTHER_STYLES[1]
    few = [*STYLES.values(), *FURTHER_STYLES[:3]]
    for aspect in ("color", "line", "marker"):
        assert len({getattr(style, aspect) for style in few}) == len(few)


def test_twelve_further_arms_can_be_told_apart_in_grey() -> None:
    names = [f"arm-{number}" for number in range(12)]
    styles = arm_styles([*STYLES, *names])
    assert len(styles) == 15
    assert len({(style.line, style.marker) for style in styles.values()}) == 15
    assert len({(style.color, style.marker) for style in styles.values()}) == 15
    assert {name: styles[name] for name in STYLES} == STYLES
    own = {style.color for style in STYLES.values()}
    assert own.isdisjoint(styles[name].color for name in names)
    # "X" and "x" mark what diverged or did not train.
    assert not any(style.marker.lower() == "x" for style in styles.values())


def test_files_are_written_and_reproducible(tmp_path: Path) -> None:
    drawing = draw_validation([usual(epochs=3)])
    png, svg = drawing.save(tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert png.stat().st_size > 20_000
    root = ElementTree.fromstring(svg.read_text())
    assert root.tag.endswith("svg")
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10
    assert draw_validation([usual(epochs=3)]).svg() == svg.read_text()
    assert not re.search(r"20\d\d-\d\d-\d\d", svg.read_text())


def test_names_from_users_are_no_formulas(tmp_path: Path) -> None:
    names = ["$\\frac{", "_hidden", "</svg><script>alert(1)</script>", "漢字"]
    results = comparison([arm(name, epochs=2) for name in names], dataset="a & b $x$")
    for drawing in draw_all([results]):
        drawing.save(tmp_path)
        assert "<script>" not in drawing.svg()
    assert "$\\frac{" in (tmp_path / "validation.svg").read_text()


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    draw_validation([usual(epochs=2)]).svg()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("seeds", "note"),
    [
        ((1, 1), ""),
        ((3, 3), "Test accuracies: ± over seeds and test tasks."),
        ((3, 0), "Test accuracies: ± over seeds and test tasks."),
        (
            (3, 1),
            "Test accuracies: ± over seeds and test tasks, of one seed over test tasks alone.",
        ),
    ],
)
def test_the_legend_says_what_its_intervals_are_over(seeds: tuple[int, int], note: str) -> None:
    runs = [
        [arm(name, seed=seed) for seed in range(count)]
        for name, count in zip((ORIGINAL, SHARING), seeds, strict=True)
    ]
    assert legend_note(runs) == note
