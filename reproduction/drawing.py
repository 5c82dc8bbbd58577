"""What all figures have in common: the looks of arms, curves with their bands, differences."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradshare.training.statistics import student95
from reproduction.conditions import ORIGINAL, RATE_CONTROL, SHARING, Difference
from reproduction.records import Run
from reproduction.statistics import Floats

INK: Final = "#1f2328"
PALE: Final = "#6e7781"

STYLE: Final[Any] = {
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "grid.color": "#e3e6ea",
    "legend.fontsize": "small",
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.borderpad": 0.1,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
}

MARKED_EPOCHS: Final = 10


class Look(NamedTuple):
    """An arm's colour, line style and marker, the same in each figure."""

    color: str
    line: Any
    marker: str


DASHES: Final = (0, (5.0, 1.6))
LEVEL_LINE: Final[Any] = {"color": PALE, "linewidth": 1.0, "linestyle": ":", "zorder": 1}

# Okabe and Ito's colours, which the colour-blind can tell apart, then a few more.
LOOKS: Final = {
    ORIGINAL: Look("#0072B2", DASHES, "s"),
    SHARING: Look("#D55E00", "-", "o"),
    RATE_CONTROL: Look("#009E73", (0, (6.0, 1.5, 1.2, 1.5)), "^"),
}
FURTHER_LOOKS: Final = (
    Look("#CC79A7", (0, (3.0, 1.2, 1.2, 1.2, 1.2, 1.2)), "D"),
    Look("#E69F00", (0, (8.0, 2.0)), "v"),
    Look("#56B4E9", (0, (2.0, 1.0)), "P"),
    Look(INK, (0, (4.0, 1.0, 1.0, 1.0)), "*"),
    Look("#AA3377", (0, (10.0, 1.5, 1.2, 1.5)), "<"),
    Look("#999933", (0, (1.2, 0.8)), ">"),
    Look("#6A5ACD", (0, (5.0, 1.2, 5.0, 1.2, 1.2, 1.2)), "p"),
    Look("#A6611A", (0, (3.0, 2.5)), "h"),
    Look("#7F7F7F", (0, (12.0, 1.5)), "d"),
    Look("#CC79A7", (0, (8.0, 1.5, 2.5, 1.5)), "8"),
)


class Drawing(NamedTuple):
    """A figure and the name of its file."""

    name: str
    figure: Figure


@contextmanager
def style(size: float = 9.0) -> Iterator[None]:
    """matplotlib's settings for these figures, with fonts of a size in points."""
    with mpl.style.context(["default", {**STYLE, "font.size": size}]):
        yield


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
    """The look of each arm; those without one of their own get the further ones in turn."""
    further = iter(FURTHER_LOOKS)
    return {arm: LOOKS[arm] if arm in LOOKS else next(further) for arm in arms}


def sample(look: Look) -> Line2D:
    """An arm in the legend."""
    return Line2D([], [], color=look.color, linestyle=look.line, marker=look.marker)


def put_below(figure: Figure, text: str) -> None:
    """Write a note below a figure, in lines that fit its width."""
    lines = textwrap.fill(text, round(16.2 * figure.get_figwidth()))
    figure.supxlabel(lines, fontsize=7.0, color=PALE)


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
