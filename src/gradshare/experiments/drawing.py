"""How everything is drawn: the arms' looks, their curves, axes and legends, and the files.

An arm looks the same in every figure. It is told from the others by its colour (Okabe and Ito's,
which the colour-blind can tell apart, and beyond six arms a few more), by its line style and by its
marker, so that a grey print loses nothing.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.experiments import wording
from gradshare.experiments.curves import (
    SMOOTHED_FROM,
    Curve,
    mean_curve,
    running_mean,
    smoothing_window,
)
from gradshare.experiments.results import Arm
from gradshare.training.files import make_folder, writing
from gradshare.training.statistics import Interval

INK: Final = "#1f2328"
PALE: Final = "#6e7781"
GRID: Final = "#e3e6ea"

NOTE_SIZE: Final = 7.5
NOTE_LETTERS: Final = 16.2
"""The size of a note below a figure, in points, and so many letters of it to an inch."""

MARKED_EPOCHS: Final = 10
"""So many markers on a curve at most: more would hide it."""

ACCURACIES: Final = (-2, 102)
"""Where accuracies in percent can be, and room for a line and its markers at the end."""

DPI: Final = 200

STYLE: Final[Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": PALE,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
    "text.color": INK,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    # Names come from users: a "$" in one of them is no formula.
    "text.parse_math": False,
    # Text stays text: it can be searched, copied and set in the page's own font.
    "svg.fonttype": "none",
    # The same results give the same file.
    "svg.hashsalt": "gradshare",
}


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn in every figure.

    Attributes:
        color: as #rrggbb.
        line: matplotlib's line style.
        marker: matplotlib's marker.
    """

    color: str
    line: Any
    marker: str


DASHES: Final = (0, (5.0, 1.6))
DASH_DOT: Final = (0, (6.0, 1.5, 1.2, 1.5))
DOTS: Final = (0, (1.2, 1.4))
LEVEL_LINE: Final[Mapping[str, Any]] = {
    "color": PALE,
    "linewidth": 1.0,
    "linestyle": DOTS,
    "zorder": 1,
}

STYLES: Final[Mapping[str, ArmStyle]] = {
    ORIGINAL: ArmStyle("#0072B2", DASHES, "s"),
    SHARING: ArmStyle("#D55E00", "-", "o"),
    RATE_CONTROL: ArmStyle("#009E73", DASH_DOT, "^"),
}
FURTHER_STYLES: Final = (
    ArmStyle("#CC79A7", (0, (3.0, 1.2, 1.2, 1.2, 1.2, 1.2)), "D"),
    ArmStyle("#E69F00", (0, (8.0, 2.0)), "v"),
    ArmStyle("#56B4E9", (0, (2.0, 1.0)), "P"),
    ArmStyle(INK, (0, (4.0, 1.0, 1.0, 1.0)), "*"),
    ArmStyle("#AA3377", (0, (10.0, 1.5, 1.2, 1.5)), "<"),
    ArmStyle("#999933", (0, (1.2, 0.8)), ">"),
    ArmStyle("#6A5ACD", (0, (5.0, 1.2, 5.0, 1.2, 1.2, 1.2)), "p"),
    ArmStyle("#A6611A", (0, (3.0, 2.5)), "h"),
    ArmStyle("#7F7F7F", (0, (12.0, 1.5)), "d"),
    # Their colours are there before, at another line and marker.
    ArmStyle("#CC79A7", (0, (8.0, 1.5, 2.5, 1.5)), "8"),
    ArmStyle("#E69F00", (0, (1.2, 2.4)), "H"),
    ArmStyle("#56B4E9", (0, (6.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)), "D"),
)
"""A grey print tells them by line and marker together, which no two of them share."""


def draw_difference(
    axes: Axes,
    place: float,
    difference: Interval,
    by_seed: Sequence[float],
    *,
    color: str,
    marker: str,
    hollow: bool,
) -> None:
    """A difference of accuracies as a row of a figure, in points, with its interval and its seeds.

    Args:
        axes: to draw on.
        place: of the row.
        difference: its mean and interval, as fractions.
        by_seed: that of each seed, drawn as small marks.
        color: as #rrggbb.
        marker: matplotlib's marker.
        hollow: the interval is of one seed, and says nothing about another.
    """
    axes.errorbar(
        100 * difference.mean,
        place,
        xerr=100 * (difference.ci95 or 0.0),
        color=color,
        marker=marker,
        markerfacecolor="white" if hollow else color,
        markersize=6,
        elinewidth=1.3,
        capsize=3,
        linestyle="none",
        zorder=3,
    )
    seeds = [100 * value for value in by_seed]
    axes.plot(seeds, [place] * len(seeds), "|", color=color, alpha=0.7, markersize=7)


@dataclass(frozen=True)
class Drawing:
    """A figure and what it is about.

    Attributes:
        name: of its files, without their suffix.
        figure: to be saved under `style()`, see `save`.
        description: for a reader who cannot see it.
        note: the line below the axes.
    """

    name: str
    figure: Figure
    description: str
    note: Text

    def svg(self, *, with_note: bool = True) -> str:
        """The figure as SVG, without the time it was made.

        Args:
            with_note: False for a page that says in its own words what the note says.
        """
        buffer = StringIO()
        with style():
            self.note.set_visible(with_note)
            self.figure.savefig(
                buffer,
                format="svg",
                metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
            )
            self.note.set_visible(True)
        return buffer.getvalue()

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write `name.png` and `name.svg` into an existing folder."""
        png, svg = folder / f"{self.name}.png", folder / f"{self.name}.svg"
        with style():
            self.figure.savefig(png, dpi=DPI)
        svg.write_text(self.svg(), encoding="utf-8")
        return png, svg


def save_all(drawings: Iterable[Drawing], folder: Path) -> list[Path]:
    """Write drawings into a folder, which is made if it is not there.

    Returns:
        What was written.

    Raises:
        RunError: the folder cannot be written.
    """
    make_folder(folder)
    with writing(folder):
        return [path for drawing in drawings for path in drawing.save(folder)]


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for everything drawn here, as they were afterwards."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes in PNG; that is no error.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def arm_styles(names: Iterable[str]) -> dict[str, ArmStyle]:
    """Each arm's style; arms without one of their own get the further ones in turn."""
    styles = {}
    unknown = 0
    for name in names:
        if name in STYLES:
            styles[name] = STYLES[name]
        else:
            styles[name] = FURTHER_STYLES[unknown % len(FURTHER_STYLES)]
            unknown += 1
    return styles


def sound_runs(runs: Sequence[Arm]) -> list[Arm]:
    """Those of an arm's seeds that its mean is over: all that did not diverge."""
    return [run for run in runs if run.outcome != "diverged"]


def seeds_are_drawn(runs: Sequence[Arm]) -> bool:
    """Whether an arm's seeds are drawn beside their mean: several, neither long nor mere points."""
    return len(runs) > 1 and 1 < max(run.epochs for run in runs) < SMOOTHED_FROM


def draw_runs(
    axes: Axes,
    runs: Sequence[Arm],
    curve_of: Callable[[Arm], Curve],
    look: ArmStyle,
    order: int,
    arms: int,
    last: int,
    *,
    noisy: bool,
) -> None:
    """One arm: its seeds thin and their mean thick, or its only seed with its own band.

    Args:
        axes: where.
        runs: the arm's, one a seed.
        curve_of: what is drawn of a run.
        look: the arm's style.
        order: the arm's place among the arms.
        arms: how many there are.
        last: the last epoch of the longest of them.
        noisy: whether a long curve is smoothed.
    """
    sound = sound_runs(runs)
    if seeds_are_drawn(runs):
        for run in runs:
            curve = curve_of(run)
            axes.plot(
                curve.epochs, curve.values, color=look.color, linewidth=0.7, alpha=0.55, zorder=2
            )
    if len(runs) == 1:
        draw_curve(axes, curve_of(runs[0]), look, order, arms, last, noisy=noisy)
    elif sound:
        mean = mean_curve([curve_of(run) for run in sound])
        draw_curve(axes, mean, look, order, arms, last, noisy=noisy)
    for run in runs:
        curve = curve_of(run)
        if run.outcome == "diverged" and curve.epochs.size:
            axes.plot(
                curve.epochs[-1:],
                curve.values[-1:],
                linestyle="none",
                marker="X",
                markersize=1.8 * mpl.rcParams["lines.markersize"],
                markerfacecolor=look.color,
                markeredgecolor="white",
                zorder=5,
            )


def draw_curve(
    axes: Axes, curve: Curve, look: ArmStyle, order: int, arms: int, last: int, *, noisy: bool
) -> None:
    """A line with markers and a band; error bars where a single epoch leaves no band to see."""
    if curve.epochs.size == 0:
        return
    window = smoothing_window(curve.epochs.size)
    if noisy and window > 1:
        axes.plot(curve.epochs, curve.values, color=look.color, linewidth=0.5, alpha=0.25, zorder=2)
        curve = running_mean(curve, window)
    banded = np.isfinite(curve.ci95)
    if curve.epochs.size == 1:
        # Side by side, or the arms' bars would cover each other.
        shift = 0.08 * (order - (arms - 1) / 2)
        axes.errorbar(
            curve.epochs + shift,
            curve.values,
            yerr=curve.ci95 if banded.all() else None,
            color=look.color,
            marker=look.marker,
            markersize=6,
            elinewidth=1.3,
            capsize=3,
            linestyle="none",
            zorder=4,
        )
        return
    # A running mean's band is smooth enough for fewer corners, which halves the file of a figure.
    corners = slice(None, None, max(1, window // 4) if noisy else 1)
    middle, half = curve.values[corners], curve.ci95[corners]
    axes.fill_between(
        curve.epochs[corners],
        middle - half,
        middle + half,
        where=banded[corners].tolist(),
        color=look.color,
        alpha=0.16,
        linewidth=0,
        zorder=2,
    )
    every = -(-last // MARKED_EPOCHS)
    axes.plot(
        curve.epochs,
        curve.values,
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markeredgecolor="white",
        markeredgewidth=0.8,
        # Each arm starts elsewhere, so that the markers of close curves do not coincide.
        markevery=(min(order * every // arms, curve.epochs.size - 1), every),
        zorder=4 if look is STYLES[SHARING] else 3,
    )


def draw_chance(axes: Axes, chances: Sequence[float]) -> tuple[Line2D, str]:
    """Draw the accuracy of guessing below curves in percent, unless it is so far below that it
    would take more of the figure than they. None of it is where no accuracy can be.

    Args:
        axes: with the curves, which the limits fit.
        chances: of the runs, ascending.

    Returns:
        A sample for a legend, and what follows "chance" there.
    """
    text = wording.listing([wording.percent(chance) for chance in chances])
    low, high = np.clip(axes.get_ylim(), *ACCURACIES)
    if (low, high) != axes.get_ylim():
        axes.set_ylim(low, high)  # the band of two seeds may reach far beyond
    if low - 100 * chances[0] > high - low:
        return Line2D([], [], linestyle="none"), f"{text} (below)"
    for chance in chances:
        axes.axhline(100 * chance, **LEVEL_LINE)
    axes.set_ylim(bottom=min(low, 100 * chances[0] - 1))
    return Line2D([], [], **LEVEL_LINE), text


def epoch_axis(axes: Axes, last: int, ticks: int = 8) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    if last <= 1:
        axes.set_xlim(0.5, 1.5)


def sample(look: ArmStyle) -> Line2D:
    """An arm in the legend."""
    return Line2D(
        [],
        [],
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markeredgecolor="white",
        markeredgewidth=0.8,
    )


def put_below(figure: Figure, text: str) -> Text:
    """A note below a figure, in lines that fit its width."""
    return figure.supxlabel(in_lines(figure, text), fontsize=NOTE_SIZE, color=PALE)


def in_lines(figure: Figure, text: str) -> str:
    """A note's text in lines that fit a figure's width."""
    return textwrap.fill(text, round(NOTE_LETTERS * figure.get_figwidth()))


def shown(name: str) -> str:
    """A name as a figure has room for; matplotlib leaves a label out that begins with "_"."""
    return textwrap.shorten(name.lstrip("_") or "unnamed", 36, placeholder="…")
