"""The paper's figures, drawn from results: validation accuracy, m and λ, inner-loop over-fitting.

An arm looks the same in every figure. It is told from the others by its colour (Okabe and Ito's,
which the colour-blind can tell apart), by its line style and by its marker, so that a grey print
loses nothing.
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
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnchoredOffsetbox, DrawingArea, HPacker, TextArea, VPacker
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from gradshare.experiments import wording
from gradshare.experiments.results import ORIGINAL, RATE_CONTROL, SHARING, Arm, Results
from gradshare.experiments.seeds import over_seeds, runs_by_arm

Floats = npt.NDArray[np.float64]
LegendEntry = tuple[Line2D, tuple[str, ...]]

INK: Final = "#1f2328"
PALE: Final = "#6e7781"
GRID: Final = "#e3e6ea"

MARKED_EPOCHS: Final = 10
"""So many markers on a curve at most: more would hide it."""

SMOOTHED_FROM: Final = 200
"""From so many epochs on, a running mean is drawn over the pale curve: the noise of hundreds of
epochs is a solid block in which one arm hides another."""

CLIPPED_LOSS: Final = 4.0
"""Losses above so many times the loss of guessing are left out: one bad epoch would flatten the
rest."""

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
)


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


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for everything drawn here, as they were afterwards."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes in PNG; that is no error.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def draw_all(results: Sequence[Results]) -> tuple[Drawing, ...]:
    """Every figure that the results have data for, in the order of the report."""
    drawings = [draw_validation(results)]
    runs = [run for one in results for run in one.arms]
    if any(run.sharing for run in runs):
        drawings.append(draw_sharing(results))
    if any(run.inner_loop for run in runs):
        drawings.append(draw_inner_loop(results))
    return tuple(drawings)


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


# Curves -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One value over epochs.

    Attributes:
        epochs: (n,) ascending.
        values: (n,) finite.
        ci95: (n,) half the band's width; NaN where it is not known.
    """

    epochs: Floats
    values: Floats
    ci95: Floats

    @classmethod
    def of(cls, points: Iterable[tuple[int, float | None, float | None]]) -> Curve:
        """From (epoch, value, ci95); epochs without a value are left out."""
        known = [(e, v, np.nan if c is None else c) for e, v, c in points if v is not None]
        table = np.asarray(known, dtype=np.float64).reshape(-1, 3)
        return cls(table[:, 0], table[:, 1], table[:, 2])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds with its 95 % interval, at the epochs that every seed has."""
    if not curves:
        return Curve.of([])
    tables = [dict(zip(c.epochs, c.values, strict=True)) for c in curves]
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    points = []
    for epoch in shared:
        interval = over_seeds([table[epoch] for table in tables])
        points.append((int(epoch), interval.mean, interval.ci95))
    return Curve.of(points)


def smoothing_window(epochs: int) -> int:
    """How many epochs the running mean takes together: odd, and 1 for a run that is not long."""
    return 1 if epochs < SMOOTHED_FROM else epochs // 50 | 1


def running_mean(curve: Curve, window: int) -> Curve:
    """The mean of each value and its neighbours, half of the window on both sides.

    At the start, as many on both sides as there are before: the first epochs, in which curves are
    steep and which matter most, keep their values. At the end, those that there are.
    """
    count = curve.values.size
    places = np.arange(count)
    before = np.minimum(window // 2, places)
    after = np.minimum(before, count - 1 - places)

    def mean(values: Floats) -> Floats:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray((sums[places + after + 1] - sums[places - before]) / (before + after + 1))

    return Curve(curve.epochs, mean(curve.values), mean(curve.ci95))


def validation_curve(run: Arm) -> Curve:
    """Validation accuracy in percent, with its interval over tasks."""
    return Curve.of(
        (v.epoch, 100 * v.accuracy, None if v.ci95 is None else 100 * v.ci95)
        for v in run.validation
    )


# Validation accuracy ------------------------------------------------------------------------------


def draw_validation(results: Sequence[Results]) -> Drawing:
    """Validation accuracy over epochs with 95 % bands, as the paper's Figures 2, 4 and 6."""
    arms = runs_by_arm(results)
    styles = arm_styles(arms)
    with style():
        figure = Figure(figsize=(6.8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        entries: list[LegendEntry] = []
        for order, (name, runs) in enumerate(arms.items()):
            _draw_runs(axes, runs, validation_curve, styles[name], order, len(arms), noisy=True)
            entries.append((_sample(styles[name]), (_shown(name), *_achieved(runs))))
        chances = sorted({run.chance for runs in arms.values() for run in runs})
        for chance in chances:
            axes.axhline(100 * chance, **LEVEL_LINE)
        chance_text = wording.listing([wording.percent(chance) for chance in chances])
        entries.append((Line2D([], [], **LEVEL_LINE), ("chance", chance_text)))
        axes.set_ylabel("validation accuracy (%)")
        axes.set_ylim(bottom=min(axes.get_ylim()[0], 100 * chances[0] - 1))
        _epoch_axis(axes, max(run.epochs for runs in arms.values() for run in runs))
        axes.add_artist(_legend_above(axes, entries))
        note = _note(figure, results, band_note(results))
    legend = "; ".join(" ".join(filter(None, words)) for _, words in entries)
    return Drawing("validation", figure, f"Validation accuracy over epochs. {legend}.", note)


def band_note(results: Sequence[Results]) -> str:
    """What the bands of the curves are intervals over."""
    arms = runs_by_arm(results).values()
    most = max(len(runs) for runs in arms)
    longest = max(run.epochs for runs in arms for run in runs)
    band = "Bars" if longest <= 1 else "Bands"
    if most == 1:
        note = f"{band}: 95 % confidence interval over validation tasks; one seed."
    else:
        note = (
            f"{band}: 95 % confidence interval of the mean over {most} seeds (Student’s t); "
            "thin lines: the seeds."
        )
    window = smoothing_window(longest)
    return note if window == 1 else f"{note} Running mean over {window} epochs."


def _note(figure: Figure, results: Sequence[Results], note: str) -> Text:
    """Below a figure: method and dataset, then the note, in lines that fit."""
    subject = f"{wording.method(results[0].method)} on {_shown(results[0].dataset)}."
    text = textwrap.fill(f"{subject} {note}", 110)
    return figure.supxlabel(text, fontsize=7.5, color=PALE)


def _draw_runs(
    axes: Axes,
    runs: Sequence[Arm],
    curve_of: Callable[[Arm], Curve],
    look: ArmStyle,
    order: int,
    arms: int,
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
        noisy: whether a long curve is smoothed.
    """
    sound = [run for run in runs if run.outcome != "diverged"]
    if len(runs) > 1 and max(run.epochs for run in runs) < SMOOTHED_FROM:
        for run in runs:
            curve = curve_of(run)
            axes.plot(
                curve.epochs, curve.values, color=look.color, linewidth=0.7, alpha=0.55, zorder=2
            )
    if len(runs) == 1:
        _draw_curve(axes, curve_of(runs[0]), look, order, arms, noisy=noisy)
    elif sound:
        mean = mean_curve([curve_of(run) for run in sound])
        _draw_curve(axes, mean, look, order, arms, noisy=noisy)
    for run in runs:
        curve = curve_of(run)
        if run.outcome == "diverged" and curve.epochs.size:
            axes.plot(
                curve.epochs[-1:],
                curve.values[-1:],
                linestyle="none",
                marker="X",
                markersize=9,
                markerfacecolor=look.color,
                markeredgecolor="white",
                zorder=5,
            )


def _draw_curve(
    axes: Axes, curve: Curve, look: ArmStyle, order: int, arms: int, *, noisy: bool
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
    axes.fill_between(
        curve.epochs,
        curve.values - curve.ci95,
        curve.values + curve.ci95,
        where=banded.tolist(),
        color=look.color,
        alpha=0.16,
        linewidth=0,
        zorder=2,
    )
    every = -(-curve.epochs.size // MARKED_EPOCHS)
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


def _achieved(runs: Sequence[Arm]) -> tuple[str, str, str]:
    """The paper's legend: highest validation accuracy with its epoch, and the test accuracy."""
    best = [run.best for run in runs if run.best is not None and run.outcome != "diverged"]
    tests = [run.test for run in runs if run.test is not None]
    validation = when = test = ""
    if best:
        epochs = sorted(point.epoch for point in best)
        span = str(epochs[0]) if epochs[0] == epochs[-1] else f"{epochs[0]}–{epochs[-1]}"
        mean = over_seeds([point.accuracy for point in best])
        validation, when = f"max {wording.accuracy(mean)}", f"ep {span}"
    if tests:
        if len(runs) > 1:
            reached = over_seeds([point.accuracy for point in tests])
        else:
            reached = tests[0].interval
        test = f"test {wording.accuracy(reached)}"
    return validation, when, ", ".join([*([test] if test else []), *_failures(runs)])


def _failures(runs: Sequence[Arm]) -> list[str]:
    """Such as "diverged after epoch 3"; of several seeds, "1 of 3 did not train"."""
    diverged = [run for run in runs if run.outcome == "diverged"]
    untrained = [run for run in runs if run.outcome == "not trained"]
    of = "" if len(runs) == 1 else f" of {len(runs)} "
    words = []
    if diverged:
        after = f" after epoch {diverged[0].epochs}" if diverged[0].epochs else " at once"
        words.append(f"{len(diverged)}{of}diverged" if of else f"diverged{after}")
    if untrained:
        words.append(f"{len(untrained)}{of}did not train" if of else "did not train")
    return words


# m and λ ------------------------------------------------------------------------------------------

START: Final = 0.5
"""σ(0): where m and λ start (Algorithm 1)."""

LEAST_SPAN: Final = 0.2
"""Of the axis of weights: a finer one would make a drama of the third decimal."""


def draw_sharing(results: Sequence[Results]) -> Drawing:
    """Mean σ(m_k) and σ(λ_k) over epochs, as the paper's Figures 3 and 5."""
    arms = {
        name: runs
        for name, runs in runs_by_arm(results).items()
        if any(run.sharing for run in runs)
    }
    styles = arm_styles(runs_by_arm(results))
    panels = (
        ("m", "weight of the newest gradients", "σ(m), mean over inner steps"),
        ("lambda_", "weight of the shared gradient", "σ(λ), mean over inner steps"),
    )
    with style():
        figure = Figure(figsize=(6.8, 3.5), layout="constrained")
        both = figure.subplots(1, 2, sharey=True, sharex=True)
        for axes, (field, title, label) in zip(both, panels, strict=True):
            for order, (name, runs) in enumerate(arms.items()):

                def curve_of(run: Arm, field: str = field) -> Curve:
                    return Curve.of((p.epoch, getattr(p, field), None) for p in run.sharing)

                drawn = [run for run in runs if curve_of(run).epochs.size]
                _draw_runs(axes, drawn, curve_of, styles[name], order, len(arms), noisy=False)
            axes.axhline(START, **LEVEL_LINE)
            axes.set_title(title)
            axes.set_ylabel(label)
            axes.yaxis.set_tick_params(labelleft=True)
            _epoch_axis(axes, max(p.epoch for r in arms.values() for run in r for p in run.sharing))
        both[0].set_ylim(*_weight_limits(arms))
        both[0].yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        handles = [_sample(styles[name]) for name in arms]
        handles.append(Line2D([], [], **LEVEL_LINE))
        labels = [*(_shown(name) for name in arms), "start"]
        figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)))
        note = _note(figure, results, "")
    last = "; ".join(
        f"{name} ends at σ(m) {_ending(runs, 'm')}, σ(λ) {_ending(runs, 'lambda_')}"
        for name, runs in arms.items()
    )
    return Drawing("sharing", figure, f"Mean σ(m) and σ(λ) over epochs: {last}.", note)


def _weight_limits(arms: Mapping[str, Sequence[Arm]]) -> tuple[float, float]:
    """From the lowest to the highest weight and their start, but no narrower than `LEAST_SPAN`."""
    points = [point for runs in arms.values() for run in runs for point in run.sharing]
    values = [v for point in points for v in (point.m, point.lambda_) if v is not None]
    low, high = min([START, *values]), max([START, *values])
    margin = max(0.05 * (high - low), (LEAST_SPAN - (high - low)) / 2)
    return max(0.0, low - margin), min(1.0, high + margin)


def _ending(runs: Sequence[Arm], field: str) -> str:
    """The last value, averaged over seeds, with two decimals."""
    last = [getattr(run.sharing[-1], field) for run in runs if run.sharing]
    known = [value for value in last if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else wording.NOTHING


# The inner loop's over-fitting --------------------------------------------------------------------


def draw_inner_loop(results: Sequence[Results]) -> Drawing:
    """Support and query accuracy and loss before and after adaptation, a column for each arm."""
    everything = runs_by_arm(results)
    arms = {n: [r for r in runs if r.inner_loop] for n, runs in everything.items()}
    arms = {name: runs for name, runs in arms.items() if runs}
    styles = arm_styles(everything)
    with style():
        width = max(4.6, 1.0 + 2.25 * len(arms))
        figure = Figure(figsize=(width, 4.9), layout="constrained")
        grid = figure.subplots(2, len(arms), sharex=True, sharey="row", squeeze=False)
        for column, (name, runs) in enumerate(arms.items()):
            grid[0, column].set_title(_shown(name), color=styles[name].color)
            for row, quantity in enumerate(("accuracy", "loss")):
                _draw_gap(grid[row, column], runs, quantity, styles[name].color)
            last = max(run.inner_loop[-1].epoch for r in arms.values() for run in r)
            _epoch_axis(grid[1, column], last, ticks=4)
        grid[0, 0].set_ylabel("accuracy (%)")
        grid[1, 0].set_ylabel("cross-entropy (nats)")
        grid[0, 0].set_ylim(0, 100)
        _limit_loss(grid[1, 0], arms)
        handles: list[Any] = [
            Line2D([], [], color=INK, linestyle=DASHES),
            Line2D([], [], color=INK),
            (
                Line2D([], [], color=INK, linestyle=DASHES, linewidth=0.8, alpha=0.6),
                Line2D([], [], color=INK, linewidth=0.8, alpha=0.6),
            ),
            Patch(color=INK, alpha=0.14, linewidth=0),
        ]
        labels = [
            "support, adapted",
            "query, adapted",
            "both before",
            "gap: over-fitting",
        ]
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=4 if len(arms) > 2 else 2,
            handler_map={tuple: HandlerTuple(ndivide=None)},
        )
        most = max(len(runs) for runs in arms.values())
        means = f"Means over {most} seeds." if most > 1 else ""
        window = smoothing_window(last)
        means += f" Running means over {window} epochs." if window > 1 else ""
        note = _note(figure, results, means.strip())
    return Drawing(
        "inner_loop",
        figure,
        "Accuracy and loss on support and query images before and after adaptation, over epochs, "
        f"for {wording.listing(list(arms))}.",
        note,
    )


def _draw_gap(axes: Axes, runs: Sequence[Arm], quantity: str, color: str) -> None:
    """Support and query before (thin) and after (thick) adaptation, and the gap between them."""
    after = {}
    for images, line in (("support", DASHES), ("query", "-")):
        for moment, width, alpha in (("before", 0.8, 0.6), ("after", 1.8, 1.0)):
            curve = _inner_curve(runs, f"{images}_{quantity}_{moment}")
            curve = running_mean(curve, smoothing_window(curve.epochs.size))
            axes.plot(
                curve.epochs,
                curve.values,
                color=color,
                linestyle=line,
                linewidth=width,
                alpha=alpha,
                marker="o" if curve.epochs.size == 1 else None,
                markersize=6 if moment == "after" else 3,
                markerfacecolor="white" if images == "support" else color,
            )
            after[images] = curve
    shared, one, two = np.intersect1d(
        after["support"].epochs, after["query"].epochs, return_indices=True
    )
    axes.fill_between(
        shared,
        after["support"].values[one],
        after["query"].values[two],
        color=color,
        alpha=0.14,
        linewidth=0,
    )


def _inner_curve(runs: Sequence[Arm], field: str) -> Curve:
    scale = 100 if "accuracy" in field else 1
    curves = []
    for run in runs:
        values = [(point.epoch, getattr(point, field)) for point in run.inner_loop]
        curves.append(Curve.of((e, None if v is None else scale * v, None) for e, v in values))
    sound = [c for run, c in zip(runs, curves, strict=True) if run.outcome != "diverged"]
    return mean_curve(sound or curves)


def _limit_loss(axes: Axes, arms: Mapping[str, Sequence[Arm]]) -> None:
    """Start the losses at 0, and leave out those that would flatten the others."""
    chance = next(iter(arms.values()))[0].chance
    guessing = float(-np.log(chance))
    axes.set_ylim(0, min(axes.get_ylim()[1], CLIPPED_LOSS * guessing))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


# Axes and legends ---------------------------------------------------------------------------------


def _epoch_axis(axes: Axes, last: int, ticks: int = 8) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    if last <= 1:
        axes.set_xlim(0.5, 1.5)


def _legend_above(axes: Axes, entries: Sequence[LegendEntry]) -> AnchoredOffsetbox:
    """A legend above the axes, where it covers no data, with its numbers in columns."""
    size = mpl.rcParams["legend.fontsize"]
    width, height = 3.2 * size, 0.8 * size
    samples = []
    for line, _ in entries:
        area = DrawingArea(width, height)
        line.set_data([0, width / 2, width], [height / 2] * 3)
        line.set_markevery([1])
        area.add_artist(line)
        samples.append(area)
    columns = []
    for column in range(max(len(words) for _, words in entries)):
        cells = [words[column] if column < len(words) else "" for _, words in entries]
        texts: list[Artist] = [TextArea(cell, textprops={"fontsize": size}) for cell in cells]
        columns.append(VPacker(children=texts, pad=0, sep=0.35 * size))
    # Samples are packed with empty texts, so that their rows are as high as those of the words.
    rows: list[Artist] = [
        HPacker(children=[area, TextArea("", textprops={"fontsize": size})], align="center", pad=0)
        for area in samples
    ]
    packed = HPacker(
        children=[VPacker(children=rows, pad=0, sep=0.35 * size), *columns],
        align="top",
        pad=0,
        sep=1.1 * size,
    )
    return AnchoredOffsetbox(
        "lower left",
        child=packed,
        frameon=False,
        pad=0,
        borderpad=0.8,
        bbox_to_anchor=(-0.01, 1.0),
        bbox_transform=axes.transAxes,
    )


def _sample(look: ArmStyle) -> Line2D:
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


def _shown(name: str) -> str:
    """A name as a figure has room for; matplotlib leaves a label out that begins with "_"."""
    return textwrap.shorten(name.lstrip("_") or "unnamed", 36, placeholder="…")
