"""What all figures have in common: the looks of arms, curves with their bands, differences."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradshare.comparison.figures import COLORS, LINES, MARKERS, PALE, style
from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.training.statistics import student95
from reproduction.conditions import Difference
from reproduction.records import Run
from reproduction.statistics import Floats

KNOWN: Final = (ORIGINAL, SHARING, RATE_CONTROL)
"""Arms with a look of their own, in the order in which they are drawn."""

DASHES: Final = LINES[0]
LEVEL_LINE: Final[Any] = {"color": PALE, "linewidth": 1.0, "linestyle": ":", "zorder": 1}

MARKED_EPOCHS: Final = 10


class Look(NamedTuple):
    """An arm's colour, line style and marker, the same in each figure."""

    color: str
    line: Any
    marker: str


class Drawing(NamedTuple):
    """A figure and the name of its file."""

    name: str
    figure: Figure


def save_all(drawings: Iterable[Drawing], folder: Path) -> list[Path]:
    """Write drawings as PNG into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in drawings:
        paths.append(folder / f"{name}.png")
        with style():
            figure.savefig(paths[-1], dpi=120)
    return paths


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """The look of each arm, as in the report of a comparison."""
    arms = list(arms)
    places = {arm: i for i, arm in enumerate(dict.fromkeys((*KNOWN, *arms)))}
    return {
        arm: Look(COLORS[i % 8], LINES[(i + i // 8) % 5], MARKERS[i % 11])
        for arm, i in places.items()
        if arm in arms
    }


def sample(look: Look) -> Line2D:
    """An arm in the legend."""
    return Line2D([], [], color=look.color, linestyle=look.line, marker=look.marker)


def finished(name: str, figure: Figure, title: str, note: str) -> Drawing:
    """A drawing with its title and a note below it, in lines that fit its width."""
    lines = textwrap.fill(f"{title} {note}", round(16.2 * figure.get_figwidth()))
    with style():
        figure.supxlabel(lines, fontsize=7.0, color=PALE)
    return Drawing(name, figure)


class Curve(NamedTuple):
    """Values over epochs with half the height of their band, NaN where there is none; each (n,)."""

    epochs: Floats
    values: Floats
    half: Floats


def curve_from(values: Sequence[float | None], half: Sequence[float | None] = ()) -> Curve:
    """A curve of values from epoch 1 on; epochs with None are left out."""
    y = np.array(values, dtype=float)
    band = np.array(half or [None] * len(values), dtype=float)
    known = ~np.isnan(y)
    return Curve(np.arange(1.0, len(y) + 1)[known], y[known], band[known])


def validation_curve(run: Run) -> Curve:
    """Validation accuracy in percent, with its interval over tasks."""
    percent = [None if half is None else 100 * half for half in run.ci95]
    return curve_from([100 * value for value in run.validation], percent)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds with its 95 % interval, at the epochs that each seed has."""
    tables = [dict(zip(curve.epochs, curve.values, strict=True)) for curve in curves]
    epochs = sorted(set(tables[0]).intersection(*tables[1:]))
    means = [student95([table[epoch] for table in tables]) for epoch in epochs]
    half = np.array([mean.ci95 for mean in means], dtype=float)
    return Curve(np.array(epochs), np.array([mean.mean for mean in means]), half)


def sound_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs that an arm's mean is over: those that did not diverge."""
    return [run for run in runs if run.outcome != "diverged"]


def draw_runs(
    axes: Axes, runs: Sequence[Run], curve_of: Callable[[Run], Curve], look: Look, place: int
) -> None:
    """One arm: its seeds thin and their mean thick, or its only seed with its own band.

    Args:
        axes: where.
        runs: the arm's, one a seed.
        curve_of: what is drawn of a run.
        look: the arm's.
        place: of the arm among the arms; markers of close curves lie apart.
    """
    color = look.color
    curves = [curve_of(run) for run in runs]
    if len(runs) > 1:
        for curve in curves:
            axes.plot(curve.epochs, curve.values, color=color, linewidth=0.7, alpha=0.55)
    if len(runs) == 1:
        _draw_curve(axes, curves[0], look, place)
    elif sound := sound_runs(runs):
        _draw_curve(axes, mean_curve([curve_of(run) for run in sound]), look, place)
    for run, curve in zip(runs, curves, strict=True):
        if run.outcome == "diverged":
            axes.plot(curve.epochs[-1:], curve.values[-1:], "X", color=color, markersize=8)


def _draw_curve(axes: Axes, curve: Curve, look: Look, place: int) -> None:
    color, count = look.color, curve.epochs.size
    if count == 0:
        return
    epochs, middle, half = curve
    banded = np.isfinite(half).tolist()
    low, high = middle - half, middle + half
    axes.fill_between(epochs, low, high, where=banded, color=color, alpha=0.16, linewidth=0)
    every = -(-count // MARKED_EPOCHS)
    axes.plot(
        *(epochs, middle),
        color=color,
        linestyle=look.line,
        marker=look.marker,
        markeredgecolor="white",
        markevery=(place * every // 4 % every, every),
    )


def draw_difference(
    axes: Axes, place: float, found: Difference, by_seed: Sequence[float], look: Look
) -> None:
    """A difference of accuracies as a row, in points, with its interval and its seeds.

    The marker of a single seed is hollow: its interval says nothing about other seeds.
    """
    several = found.count > 1
    axes.errorbar(
        100 * found.interval.mean,
        place,
        xerr=100 * (found.interval.ci95 or 0.0),
        color=look.color,
        fmt=look.marker,
        markerfacecolor=look.color if several else "white",
        capsize=3,
    )
    seeds = [100 * value for value in by_seed] if several else []
    axes.plot(seeds, [place] * len(seeds), "|", color=look.color, alpha=0.7, markersize=7)
