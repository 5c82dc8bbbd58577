"""Curves over epochs, in grids of panels as in the paper's appendix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
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
from gradshare.comparison.table import span
from gradshare.training.statistics import student95
from reproduction import wording
from reproduction.conditions import Condition, Results, mean_test_accuracy
from reproduction.drawing import (
    DASHES,
    KNOWN,
    LEVEL_LINE,
    Drawing,
    draw_runs,
    finished,
    looks,
    mean_curve,
    sample,
    sound_runs,
)
from reproduction.plan import ARM
from reproduction.records import Run
from reproduction.statistics import Floats

Quantity = Literal["validation", "sharing"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

Heading = tuple[str, frozenset[str]]
"""A row or column of panels: its title, and the labels that its cells have in common."""

Arms = Mapping[str, Sequence[Run]]
Entry = tuple[Artist, str]
"""Of a legend."""

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
    **{"font.size": 6.5, "axes.titlesize": 7.5, "legend.fontsize": 5.5, "legend.handlelength": 2.4},
    **{"lines.linewidth": 1.2, "lines.markersize": 3.5},
}
"""matplotlib's settings where there are many panels."""


def heading(title: str, *labels: str) -> Heading:
    """A row or column of panels."""
    return title, frozenset(labels)


def draw_curves(
    name: str,
    title: str,
    results: Results,
    rows: Sequence[Heading],
    columns: Sequence[Heading],
    quantity: Quantity,
) -> list[Drawing]:
    """Validation accuracy, or σ(m) and σ(λ), over epochs, in one figure; none without a curve.

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
    arms = [[_arms(results, row[1] | column[1], quantity) for column in columns] for row in rows]
    panels = [[partial(draw_panel, arms=own) if own else None for own in row] for row in arms]
    if not any(map(any, arms)):
        return []
    figure = _grid(panels, [row[0] for row in rows], [c[0] for c in columns], [label] * len(rows))
    return [finished(name, figure, title, NOTES[quantity])]


def _arms(results: Results, labels: frozenset[str], quantity: Quantity) -> Arms:
    """The runs with some labels that have a quantity, by arm: those of `KNOWN` first."""
    arms: dict[str, list[Run]] = {arm: [] for arm in KNOWN}
    for cell, run in sorted(results.items(), key=lambda one: one[1].seed):
        if labels <= {*cell.labels.values()} and (quantity == "validation" or run.learned):
            arms.setdefault(cell.labels[ARM], []).append(run)
    return {arm: runs for arm, runs in arms.items() if any(run.epochs for run in runs)}


def _validation_panel(axes: Axes, arms: Arms) -> list[Entry]:
    entries: list[Entry] = []
    for place, (arm, look) in enumerate(looks(arms).items()):
        draw_runs(axes, arms[arm], _validation, look, place)
        entries.append((sample(look), f"{arm} {_came_to(arms[arm])}"))
    axes.axhline(100 * next(iter(arms.values()))[0].chance, **LEVEL_LINE)
    return entries


def _validation(run: Run) -> Floats:
    """Validation accuracy in percent, and half its interval over the tasks (2, epochs)."""
    return 100 * np.array([run.validation, run.ci95], dtype=float)


def _came_to(runs: Sequence[Run]) -> str:
    """The paper's legend, as "48.1 % (133), test 67.7 ± 1.8 %", and which runs failed.

    The numbers are of the runs that trained, if there are any.
    """
    counts = {o: sum(run.outcome == o for run in runs) for o in ("diverged", "not trained")}
    words = [f"{count} of {len(runs)} {outcome}" for outcome, count in counts.items() if count]
    told = [run for run in runs if run.trained] or sound_runs(runs)
    best = [(run.best.mean, run.best_epoch) for run in told if run.best and run.best_epoch]
    if best:
        values, epochs = zip(*best, strict=True)
        mean = student95(values)._replace(ci95=None)
        words.append(f"{wording.accuracy(mean)} ({span(epochs)})")
    test = mean_test_accuracy(told)
    words += [] if test is None else [f"test {wording.accuracy(test)}"]
    return ", ".join(words)


def _sharing_panel(axes: Axes, arms: Arms) -> list[Entry]:
    entries: list[Entry] = []
    for place, (arm, own) in enumerate(looks(arms).items()):
        for gate, look in (("lambda", own), ("m", {**own, "linestyle": DASHES, "marker": "D"})):
            runs = [run for run in arms[arm] if gate in run.learned]
            if runs:
                gates = partial(_gate_curve, gate=gate)
                draw_runs(axes, runs, gates, look, place)
                last = math.fsum(run.gate(gate)[-1] for run in runs) / len(runs)
                symbol = {"lambda": "λ", "m": "m"}[gate]
                entries.append((sample(look), f"{arm} σ({symbol}) {last:.2f}"))
    axes.axhline(START, **LEVEL_LINE)
    axes.set_ylim(0, 1)
    return entries


def _gate_curve(run: Run, gate: str) -> Floats:
    values = np.array(run.gate(gate))
    return np.stack([values, np.full_like(values, np.nan)])


def draw_inner_loop(name: str, title: str, condition: Condition) -> Drawing:
    """Support and query accuracy and loss before and after adaptation, a column for each arm."""
    arms = condition.arms
    panels = [
        [
            partial(_fit_panel, runs=arms[arm], quantity=quantity, color=look["color"])
            for arm, look in looks(arms).items()
        ]
        for quantity in ("accuracy", "loss")
    ]
    labels = ["accuracy (%)", "cross entropy (nats)"]
    figure = _grid(panels, ["", ""], list(arms), labels)
    return finished(name, figure, title, NOTES["inner loop"])


def _fit_panel(axes: Axes, runs: Sequence[Run], quantity: str, color: str) -> list[Entry]:
    """Accuracy or loss before (thin) and after (thick) adaptation, and the gap between them."""
    after = {}
    entries: list[Entry] = []
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
    axes.set_ylim(bottom=0)
    return entries


def _grid(
    panels: Sequence[Sequence[Callable[[Axes], list[Entry]] | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: Sequence[str],
) -> Figure:
    """Panels over epochs, each with its legend above it.

    Args:
        panels: a function for each that draws it and returns its legend; None if it was not run.
        rows: the titles of the rows.
        columns: the titles of the columns.
        labels: of the y axis of each row.
    """
    single = len(rows) == len(columns) == 1
    with style(), mpl.rc_context({} if single else SMALL):
        size = (7.2, 4.4) if single else (max(7.2, 2.9 * len(columns)), 1.2 + 2.1 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(rows), len(columns), sharey="row", squeeze=False)
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            here, draw = axes[i, j], panels[i][j]
            here.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
            lines = 0
            if draw is None:
                here.text(0.5, 0.5, "not run", transform=here.transAxes, ha="center", color=INK)
            else:
                entries = draw(here)
                lines = len(entries)
                handles, texts = [list(part) for part in zip(*entries, strict=True)] or ([], [])
                here.legend(handles, texts, loc="lower left", bbox_to_anchor=(0, 1))
            if i == 0:
                here.set_title(column, pad=6 + 8.5 * lines)
            if j == 0:
                here.set_ylabel(f"{row}\n{labels[i]}".strip())
            if i == len(rows) - 1:
                here.set_xlabel("epoch")
    return figure
