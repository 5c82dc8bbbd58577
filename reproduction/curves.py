"""Curves over epochs, in grids of panels as in the paper's appendix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, get_args

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradshare.comparison.figures import INK, style
from gradshare.comparison.summary import span
from gradshare.training.statistics import student95
from reproduction import wording
from reproduction.conditions import Condition, Results, mean_test_accuracy
from reproduction.drawing import DASHES, KNOWN, LEVEL_LINE, Drawing, Look, looks, noted, sample
from reproduction.plan import ARM
from reproduction.records import Run
from reproduction.statistics import Floats

Quantity = Literal["validation", "sharing"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

Heading = tuple[str, ...]
"""Of a row or column of panels: its title, then the labels that its cells have in common."""

Arms = Mapping[str, Sequence[Run]]
Entries = list[tuple[Artist, str]]
"""Of a legend."""

MARKED_EPOCHS: Final = 10

START: Final = 0.5
"""σ(0): where m and λ start (Algorithm 1)."""

NOTES: Final = {
    "validation": "Legend: highest validation accuracy (its epoch), test accuracy. Bands: 95 % "
    "intervals over the seeds (thin lines), or over validation tasks if there is one seed. Dotted: "
    "chance.",
    "sharing": "Means over the inner steps; legend: at the last epoch. Dotted: the start, σ(0).",
    "inner loop": "On validation tasks, means over the seeds. Shaded: the gap between support and "
    "query images after adaptation, which is the inner loop’s over-fitting.",
}


SMALL: Final[Any] = {
    "font.size": 6.5,
    "axes.titlesize": 7.5,
    "legend.fontsize": 5.5,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
}
"""matplotlib's settings where there are many panels."""


def draw_curves(
    name: str,
    title: str,
    results: Results,
    rows: Sequence[Heading],
    columns: Sequence[Heading],
    quantity: Quantity,
) -> Iterator[Drawing]:
    """One figure of validation accuracy, or of σ(m) and σ(λ), over epochs; none without a curve.

    Args:
        name: of the figure.
        title: what all panels have in common.
        results: finished cells.
        rows: of panels. A panel has the cells with all labels of its row and column.
        columns: of panels.
        quantity: what is drawn.
    """
    draw_panel, label = {
        "validation": (_validation_panel, "validation accuracy (%)"),
        "sharing": (_sharing_panel, "mean over inner steps"),
    }[quantity]
    panels = {
        f"{row}\n{label}".strip(): {
            column: _arms(results, {*in_row, *in_column}, quantity)
            for column, *in_column in columns
        }
        for row, *in_row in rows
    }
    if any(arms for row in panels.values() for arms in row.values()):
        yield noted(name, _grid(panels, draw_panel), title, NOTES[quantity])


def _arms(results: Results, labels: set[str], quantity: Quantity) -> Arms:
    """The runs with some labels that have a quantity, by arm: those of `KNOWN` first."""
    arms: dict[str, list[Run]] = {arm: [] for arm in KNOWN}
    for cell, run in sorted(results.items(), key=lambda one: one[1].seed):
        if labels <= {*cell.labels.values()} and (quantity == "validation" or run.learned):
            arms.setdefault(cell.labels[ARM], []).append(run)
    return {arm: runs for arm, runs in arms.items() if any(run.epochs for run in runs)}


def _validation_panel(axes: Axes, arms: Arms) -> Entries:
    entries: Entries = []
    for place, (arm, look) in enumerate(looks(arms).items()):
        draw_runs(axes, arms[arm], _validation, look, place)
        entries.append((sample(look), f"{arm} {_results(arms[arm])}"))
    axes.axhline(100 * next(iter(arms.values()))[0].chance, **LEVEL_LINE)
    return entries


def _validation(run: Run) -> Floats:
    """Validation accuracy in percent, and half its interval over the tasks (2, epochs)."""
    return 100 * np.array([run.validation, run.ci95], dtype=float)


def _results(runs: Sequence[Run]) -> str:
    """The paper's legend, as "48.1 % (133), test 67.7 ± 1.8 %", and which runs failed.

    The numbers are of the runs that trained, if there are any.
    """
    counts = {o: sum(run.outcome == o for run in runs) for o in ("diverged", "not trained")}
    words = [f"{count} of {len(runs)} {outcome}" for outcome, count in counts.items() if count]
    counted = [run for run in runs if run.trained] or sound_runs(runs)
    best = [(run.best.mean, run.best_epoch) for run in counted if run.best and run.best_epoch]
    if best:
        values, epochs = zip(*best, strict=True)
        mean = student95(values)._replace(ci95=None)
        words.append(f"{wording.accuracy(mean)} ({span(epochs)})")
    test = mean_test_accuracy(counted)
    words += [] if test is None else [f"test {wording.accuracy(test)}"]
    return ", ".join(words)


def _sharing_panel(axes: Axes, arms: Arms) -> Entries:
    entries: Entries = []
    for place, (arm, own) in enumerate(looks(arms).items()):
        dashed = {**own, "linestyle": DASHES, "marker": "D"}
        for gate, symbol, look in (("lambda", "λ", own), ("m", "m", dashed)):
            runs = [run for run in arms[arm] if gate in run.learned]
            if runs:
                draw_runs(axes, runs, partial(_gate_curve, gate=gate), look, place)
                last = math.fsum(run.gate(gate)[-1] for run in runs) / len(runs)
                entries.append((sample(look), f"{arm} σ({symbol}) {last:.2f}"))
    axes.axhline(START, **LEVEL_LINE)
    axes.set_ylim(0, 1)
    return entries


def _gate_curve(run: Run, gate: str) -> Floats:
    values = np.array(run.gate(gate))
    return np.stack([values, np.full_like(values, np.nan)])


def draw_inner_loop(name: str, title: str, condition: Condition) -> Drawing:
    """Support and query accuracy and loss before and after adaptation, a column for each arm."""
    panels = {
        label: {
            arm: (condition.arms[arm], quantity, look["color"])
            for arm, look in looks(condition.arms).items()
        }
        for quantity, label in (("accuracy", "accuracy (%)"), ("loss", "cross entropy (nats)"))
    }
    figure = _grid(panels, lambda axes, panel: _fit_panel(axes, *panel))
    for axes in figure.axes:  # once all are drawn, since the panels of a row share their limits
        axes.set_ylim(bottom=0)
    return noted(name, figure, title, NOTES["inner loop"])


def _fit_panel(axes: Axes, runs: Sequence[Run], quantity: str, color: str) -> Entries:
    """Accuracy or loss before (thin) and after (thick) adaptation, and the gap between them."""
    after = {}
    entries: Entries = []
    scale = 100 if quantity == "accuracy" else 1
    lines: dict[str, Any] = {"support": DASHES, "query": "-"}
    for images, line in lines.items():
        for moment, width in (("before", 0.8), ("after", 1.8)):
            fits = [run.fit[f"{images}_{quantity}_{moment}"] for run in sound_runs(runs)]
            after[images], _ = mean_curve(scale * np.array(fit, dtype=float) for fit in fits)
            epochs = np.arange(1, after[images].size + 1)
            axes.plot(epochs, after[images], color=color, linestyle=line, linewidth=width)
        if quantity == "accuracy":
            entries.append((Line2D([], [], color=INK, linestyle=line), f"{images}; thin: before"))
    axes.fill_between(epochs, after["support"], after["query"], color=color, alpha=0.14, lw=0)
    return entries


def _grid(panels: Mapping[str, Mapping[str, Any]], draw: Callable[[Axes, Any], Entries]) -> Figure:
    """Panels over epochs, each with its legend above it.

    Args:
        panels: what each shows, by the label of its row and the title of its column. Where that is
            empty, nothing was run.
        draw: draws a panel and returns its legend.
    """
    rows, columns = len(panels), len(next(iter(panels.values())))
    single = rows == columns == 1
    with style(), mpl.rc_context({} if single else SMALL):
        size = (7.2, 4.4) if single else (max(7.2, 2.9 * columns), 1.2 + 2.1 * rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharey="row", squeeze=False)
        for row, (label, shown) in zip(grid, panels.items(), strict=True):
            row[0].set_ylabel(label)
            for axes, (title, panel) in zip(row, shown.items(), strict=True):
                axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
                entries = draw(axes, panel) if panel else []
                if entries:
                    handles, texts = zip(*entries, strict=True)
                    axes.legend(handles, texts, loc="lower left", bbox_to_anchor=(0, 1))
                if not panel:
                    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color=INK)
                if axes in grid[0]:
                    axes.set_title(title, pad=6 + 8.5 * len(entries))
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
    return figure


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
