"""The figures of a comparison: learning curves and differences by task.

An arm has the same colour, line style and marker in each figure.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradshare.comparison.plan import shown
from gradshare.comparison.results import ArmRun, Results, Values
from gradshare.comparison.summary import difference, mean_score
from gradshare.training.records import VALIDATION

MOST_ARMS: Final = 8

LARGEST: Final = 1e100
"""Larger values are left out, as those that are not finite: matplotlib's ticks would overflow."""

INK: Final = "#1f2328"
PALE: Final = "#6e7781"
# Okabe and Ito's, which the colour-blind can tell apart, without the yellow; then two more.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", PALE)
LINES: Final = ((0, (5, 1.6)), "-", (0, (6, 1.5, 1.2, 1.5)), (0, (1.2, 1.4)), (0, (9, 2)))
MARKERS: Final = "so^DvP*<>pX"

STYLE: Final[Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "text.color": INK,
    # Names come from users: a "$" in one of them begins no formula.
    "text.parse_math": False,
    # Text stays text, since the reader's fonts have letters that the one of this machine lacks.
    "svg.fonttype": "none",
    # The same results give the same file.
    "svg.hashsalt": "gradshare",
}


class Drawing(NamedTuple):
    """A figure with its caption."""

    heading: str
    figure: Figure
    caption: str

    def svg(self) -> bytes:
        """The figure as an SVG file; the same results give the same bytes."""
        buffer = BytesIO()
        with style():
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return buffer.getvalue()


Looks = Mapping[str, Mapping[str, Any]]
"""Each arm's colour, line style and marker, as matplotlib's arguments."""


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for these figures, whatever the user's own are."""
    with mpl.style.context(["default", STYLE]), warnings.catch_warnings():
        # The page's reader may have the font; only the width of the text is then a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def drawn(results: Results) -> list[str]:
    """The arms that are drawn: of too many the baseline, the controls and those with the best test
    scores.
    """
    metric = results.metrics[results.score]

    def place(arm: str) -> tuple[bool, bool, float]:
        found = mean_score(results.of(arm), results.score)
        rank = math.inf if found is None else metric.rank(found.mean)
        return arm != results.baseline, arm not in results.controls, rank

    chosen = sorted(results.arms, key=place)[:MOST_ARMS]
    return [arm for arm in results.arms if arm in chosen]


def draw_all(results: Results) -> list[Drawing]:
    """The figures that the results have numbers for."""
    looks = {
        arm: {"color": color, "linestyle": line, "marker": marker}
        for arm, color, line, marker in zip(
            drawn(results), COLORS, LINES * 2, MARKERS, strict=False
        )
    }
    with style():
        drawings = [draw(results, looks) for draw in (_curves, _differences)]
    return [drawing for drawing in drawings if drawing is not None]


def _curves(results: Results, looks: Looks) -> Drawing | None:
    """The score on the validation tasks over epochs, of each seed and its mean."""
    metric, several = results.metrics[results.score], len(results.seeds) > 1
    means, seeds = {}, {}
    for arm in looks:
        runs = results.of(arm)
        seeds[arm] = [metric.factor * _history(run, results.score) for run in runs]
        rows = [
            y for run, (y, _) in zip(runs, seeds[arm], strict=True) if run.outcome != "diverged"
        ]
        rows = rows or [y for y, _ in seeds[arm]]
        mean = np.mean([y[: min(map(len, rows))] for y in rows], axis=0)
        if np.isfinite(mean).any():
            means[arm] = mean
    if not means:
        return None
    figure, axes = _figure(means, looks)
    axes.set_xlabel("epoch")
    axes.margins(y=0.25)
    for arm in means:
        color = looks[arm]["color"]
        for y, half in seeds[arm]:
            x = 1 + np.arange(y.size)
            if several:
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.5)
            else:
                axes.fill_between(x, y - half, y + half, color=color, alpha=0.15, linewidth=0)
    values = np.concatenate(list(means.values()))
    unit = metric.unit
    if metric.chance is None and 0 < 30 * np.nanmin(values) < np.nanmax(values):
        axes.set_yscale("log")
        unit = f"{unit}, logarithmic".removeprefix(", ")
    axes.set_ylabel(f"validation {shown(results.score, 32)}" + (f" ({unit})" if unit else ""))
    caption = f"The validation {shown(results.score, 32)} after each epoch. "
    if several:
        caption += "Thin lines: the seeds. Thick lines: the mean of those that did not diverge."
    else:
        caption += "Bands: 95 % confidence interval over validation tasks."
    low, high = axes.get_ylim()
    chance = math.nan if metric.chance is None else metric.factor * metric.chance
    if 2 * low - high < chance < 2 * high - low:  # farther away it would flatten the curves
        axes.axhline(chance, color=PALE, linewidth=1.0, linestyle=":")
        caption += " Dotted: chance."
    return Drawing("Learning curves", figure, caption)


def _differences(results: Results, looks: Looks) -> Drawing | None:
    """The score of each arm minus the baseline's on each test task, sorted."""
    metric, baseline = results.metrics[results.score], results.baseline
    curves = {}
    for arm in looks:
        rows = difference(results, arm, baseline).rows if arm != baseline else ()
        values = _sane(metric.factor * np.mean(rows, axis=0)) if rows else np.array([])
        if np.isfinite(values).any():
            curves[arm] = np.sort(values[np.isfinite(values)])
    if not curves:
        return None
    figure, axes = _figure(curves, looks)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel(f"test tasks{results.where}, sorted by the difference")
    unit = metric.unit_of_differences
    label = f"{shown(results.score, 20)} − {baseline}"
    axes.set_ylabel(f"{label} ({unit})" if unit else label)
    side = "Above" if metric.best == "high" else "Below"
    caption = (
        f"The difference from {baseline} on each test task, the mean over the seeds in which both "
        f"trained. {side} zero the arm is better."
    )
    return Drawing("Differences by task", figure, caption)


def _history(run: ArmRun, score: str) -> Values:
    """A run's validation scores and half their intervals (2, epochs)."""
    intervals = [record.metrics[VALIDATION][score] for record in run.history]
    rows = np.array([[one.mean, one.ci95] for one in intervals], dtype=float).reshape(-1, 2)
    return _sane(rows.T)


def _sane(values: Values) -> Values:
    """Values with NaN for those that cannot be drawn."""
    return np.where(np.abs(values) < LARGEST, values, math.nan)


def _figure(curves: Mapping[str, Values], looks: Looks) -> tuple[Figure, Axes]:
    """A figure with a line for each arm, its axes, and a legend above it."""
    columns = min(len(curves), 2 if max(map(len, curves)) <= 40 else 1)
    figure = Figure(figsize=(7.2, 3.2 + 0.2 * len(curves) / columns), layout="constrained")
    axes = figure.subplots()
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    for place, (arm, y) in enumerate(curves.items()):
        every = -(-y.size // 8)
        axes.plot(
            1 + np.arange(y.size),
            y,
            **looks[arm],
            label=arm,
            markeredgecolor="white",
            markeredgewidth=0.7,
            # Markers lie apart, so that one sees each of several lines that coincide.
            markevery=(place * every // len(curves), every),
        )
    handles = [Line2D([], [], **looks[arm]) for arm in curves]
    figure.legend(handles, list(curves), loc="outside upper left", ncols=columns)
    return figure, axes
