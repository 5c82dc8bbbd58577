"""What all figures have in common: the looks of arms, curves with their bands, differences."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradshare.comparison.figures import COLORS, LINES, MARKERS, PALE, style
from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.training.statistics import student95
from reproduction.records import Run
from reproduction.statistics import Floats

KNOWN: Final = (ORIGINAL, SHARING, RATE_CONTROL)
"""Arms with a look of their own, in the order in which they are drawn."""

DASHES: Final = LINES[0]
LEVEL_LINE: Final[Any] = {"color": PALE, "linewidth": 1.0, "linestyle": ":", "zorder": 1}

MARKED_EPOCHS: Final = 10


Look = Mapping[str, Any]
"""An arm's colour, line style and marker as matplotlib's arguments, the same in each figure."""


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
    """The look of each arm; those of `KNOWN` come first."""
    arms = list(arms)
    return {
        arm: {
            "color": COLORS[i % len(COLORS)],
            "linestyle": LINES[(i + i // len(COLORS)) % len(LINES)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for i, arm in enumerate(dict.fromkeys((*KNOWN, *arms)))
        if arm in arms
    }


def sample(look: Look) -> Line2D:
    """An arm in the legend."""
    return Line2D([], [], **look)


def finished(name: str, figure: Figure, title: str, note: str) -> Drawing:
    """A drawing with its title and a note below it, in lines that fit its width."""
    lines = textwrap.fill(f"{title} {note}", round(16.2 * figure.get_figwidth()))
    with style():
        figure.supxlabel(lines, fontsize=7.0, color=PALE)
    return Drawing(name, figure)


def mean_curve(curves: Iterable[Floats]) -> Floats:
    """The mean of curves over epochs, one a seed, as far as the shortest of them.

    Returns:
        The means, and half their 95 % intervals, which are NaN for one seed (2, epochs).
    """
    means = [student95(seeds) for seeds in zip(*curves, strict=False)]
    return np.array([mean[:2] for mean in means], dtype=float).reshape(-1, 2).T


def sound_runs(runs: Sequence[Run]) -> Sequence[Run]:
    """The runs that an arm's mean is over: those that did not diverge, or all if each did."""
    return [run for run in runs if run.outcome != "diverged"] or runs


def draw_runs(
    axes: Axes, runs: Sequence[Run], curve_of: Callable[[Run], Floats], look: Look, place: int
) -> None:
    """Draw an arm: its seeds thin and their mean thick, or its only seed.

    Args:
        axes: where.
        runs: the arm's, one a seed.
        curve_of: what is drawn of a run: values and half their intervals (2, epochs).
        look: the arm's.
        place: of the arm among the arms; markers of close curves lie apart.
    """
    color = look["color"]
    for run in runs:
        values = curve_of(run)[0]
        epochs = np.arange(1, values.size + 1)
        if len(runs) > 1:
            axes.plot(epochs, values, color=color, linewidth=0.7, alpha=0.55)
        if run.outcome == "diverged":
            axes.plot(epochs[-1:], values[-1:], "X", color=color, markersize=8)
    mean = mean_curve(curve_of(run)[0] for run in sound_runs(runs))
    values, half = mean if len(runs) > 1 else curve_of(runs[0])
    epochs = np.arange(1, values.size + 1)
    axes.fill_between(epochs, values - half, values + half, color=color, alpha=0.16, linewidth=0)
    every = max(1, -(-values.size // MARKED_EPOCHS))
    apart = (place * every // 4 % every, every)
    axes.plot(epochs, values, **look, markeredgecolor="white", markevery=apart)
