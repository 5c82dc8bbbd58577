"""The figures of the studies at CPU scale: curves, sweeps of a setting, differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from gradshare.training.statistics import student95
from reproduction import wording
from reproduction.conditions import (
    YARDSTICKS,
    Condition,
    Difference,
    Results,
    difference,
    differences,
    mean_test_accuracy,
    swept_value,
)
from reproduction.contrast import contrasts
from reproduction.drawing import (
    DASHES,
    INK,
    LEVEL_LINE,
    LOOKS,
    Curve,
    Drawing,
    Look,
    curve_from,
    draw_difference,
    draw_runs,
    looks,
    mean_curve,
    put_below,
    sample,
    sound_runs,
    style,
    validation_curve,
)
from reproduction.plan import ARM, SEED, Plan, Study
from reproduction.records import Run
from reproduction.report import studies_of

Quantity = Literal["validation", "sharing"]

Heading = tuple[str, frozenset[str]]
"""A row or column of panels: its title, and the labels that its cells have in common."""

Arms = Mapping[str, Sequence[Run]]
Entry = tuple[Artist, str]
"""Of a legend."""

MANY_CONDITIONS: Final = 4
"""The curves of more comparisons than this are panels of one figure."""

MANY_ARMS: Final = 6
"""The curves of so many arms would hide each other; their differences are drawn instead."""

SETTINGS: Final = {"inner_lr": "inner rate", "task_batch": "tasks in a batch (T)"}

START: Final = 0.5
"""σ(0): where m and λ start (Algorithm 1)."""

NOTES: Final = {
    "validation": "Legend: highest validation accuracy (its epoch), test accuracy. Bands: 95 % "
    "intervals, of several seeds (thin lines) over the seeds, of one over validation tasks. Dotted: "
    "chance.",
    "sharing": "Means over the inner steps; legend: at the last epoch. Dotted: the start, σ(0).",
    "inner loop": "On validation tasks, means over the seeds. Shaded: the gap between support and "
    "query images after adaptation, which is the inner loop’s over-fitting.",
    "differences": "Bars: 95 % intervals over seeds (small marks) and test tasks; hollow: of one "
    "seed, over test tasks alone.",
}


def heading(title: str, *labels: str) -> Heading:
    """A row or column of panels."""
    return title, frozenset(labels)


def draw_studies(plan: Plan, results: Results) -> list[Drawing]:
    """Each figure of each study, after that of what sharing adds to its control."""
    drawings = _draw_contrasts(plan, results)
    for name, study, conditions in studies_of(plan, results):
        own = {cell: run for cell, run in results.items() if cell.study == name}
        drawings += _draw_study(name, study, conditions, own)
    return drawings


def _draw_study(
    name: str, study: Study, conditions: Sequence[Condition], results: Results
) -> Iterator[Drawing]:
    axes = {axis: labels for axis, labels in study.axes.items() if axis not in (ARM, SEED)}
    quantities: tuple[Quantity, ...] = ("validation", "sharing")
    # This depends on what is planned: while a study runs its figures keep their names.
    if study.curves and math.prod(map(len, axes.values())) > MANY_CONDITIONS:
        first, *others = axes.values()
        columns = [heading(wording.METHODS.get(label, label), label) for label in first]
        rows = [heading(", ".join(labels), *labels) for labels in itertools.product(*others)]
        for quantity in quantities:
            title = _sentence(study)
            yield from draw_curves(f"{name}-{quantity}", title, results, rows, columns, quantity)
        return
    if study.sweep is not None:
        yield _draw_sweep(name, study, study.sweep, conditions)
    for condition in conditions if study.curves else ():
        prefix = "-".join((name, *condition.labels.values()))
        place = ", ".join(condition.labels.values())
        title = f"{_sentence(study)} {place}." if place else _sentence(study)
        if len(study.axes.get(ARM, {})) >= MANY_ARMS:
            yield _draw_arms(prefix, title, condition)
            continue
        panel = [heading("", *condition.labels.values())]
        for quantity in quantities:
            yield from draw_curves(f"{prefix}-{quantity}", title, results, panel, panel, quantity)
        yield _draw_inner_loop(f"{prefix}-inner_loop", title, condition)


def _sentence(study: Study) -> str:
    text = f"{study.heading}{f' ({study.note})' if study.note else ''}"
    return text if text.endswith("?") else f"{text}."


# Curves -------------------------------------------------------------------------------------------


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
    return [_finished(name, figure, title, NOTES[quantity])]


def _arms(results: Results, labels: frozenset[str], quantity: Quantity) -> Arms:
    """The runs with some labels that have a quantity, by arm: those of `LOOKS` first."""
    arms: dict[str, list[Run]] = {arm: [] for arm in LOOKS}
    for cell, run in sorted(results.items(), key=lambda one: one[1].seed):
        if labels <= {*cell.labels.values()} and (quantity == "validation" or run.learned):
            arms.setdefault(cell.labels[ARM], []).append(run)
    return {arm: runs for arm, runs in arms.items() if any(run.epochs for run in runs)}


def _validation_panel(axes: Axes, arms: Arms) -> list[Entry]:
    entries: list[Entry] = []
    for place, (arm, look) in enumerate(looks(arms).items()):
        draw_runs(axes, arms[arm], validation_curve, look, place)
        entries.append((sample(look), f"{arm} {_came_to(arms[arm])}"))
    axes.axhline(100 * next(iter(arms.values()))[0].chance, **LEVEL_LINE)
    return entries


def _came_to(runs: Sequence[Run]) -> str:
    """The paper's legend, as "48.1 % (133), test 67.7 ± 1.8 %", and which runs failed.

    The numbers are of the runs that trained, if there are any.
    """
    counts = {o: sum(run.outcome == o for run in runs) for o in ("diverged", "not trained")}
    words = [f"{count} of {len(runs)} {outcome}" for outcome, count in counts.items() if count]
    told = [run for run in runs if run.trained] or sound_runs(runs)
    best = [(run.best.mean, run.best_epoch) for run in told if run.best is not None]
    if best:
        epochs = sorted({epoch for _, epoch in best if epoch is not None})
        span = "–".join(map(str, epochs[:: max(1, len(epochs) - 1)]))
        words.append(f"{wording.percent(student95([value for value, _ in best]).mean)} ({span})")
    test = mean_test_accuracy(told)
    words += [] if test is None else [f"test {wording.accuracy(test)}"]
    return ", ".join(words)


def _sharing_panel(axes: Axes, arms: Arms) -> list[Entry]:
    entries: list[Entry] = []
    for place, (arm, own) in enumerate(looks(arms).items()):
        for gate, look in (("lambda", own), ("m", Look(own.color, DASHES, "D"))):
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


def _gate_curve(run: Run, gate: str) -> Curve:
    return curve_from(run.gate(gate))


def _draw_inner_loop(name: str, title: str, condition: Condition) -> Drawing:
    """Support and query accuracy and loss before and after adaptation, a column for each arm."""
    arms = condition.arms

    panels = [
        [
            partial(_fit_panel, runs=arms[arm], quantity=quantity, color=look.color)
            for arm, look in looks(arms).items()
        ]
        for quantity in ("accuracy", "loss")
    ]
    labels = ["accuracy (%)", "cross entropy (nats)"]
    figure = _grid(panels, ["", ""], list(arms), labels)
    return _finished(name, figure, title, NOTES["inner loop"])


def _fit_panel(axes: Axes, runs: Sequence[Run], quantity: str, color: str) -> list[Entry]:
    """Accuracy or loss before (thin) and after (thick) adaptation, and the gap between them."""
    after = {}
    entries: list[Entry] = []
    scale = 100 if quantity == "accuracy" else 1
    lines: dict[str, Any] = {"support": DASHES, "query": "-"}
    for images, line in lines.items():
        for moment, width in (("before", 0.8), ("after", 1.8)):
            found = [run.fit[f"{images}_{quantity}_{moment}"] for run in sound_runs(runs) or runs]
            curves = [curve_from([None if v is None else scale * v for v in f]) for f in found]
            curve = mean_curve(curves)
            axes.plot(*curve[:2], color=color, linestyle=line, linewidth=width)
            after[images] = curve
        if quantity == "accuracy":
            entries.append((Line2D([], [], color=INK, linestyle=line), f"{images}; thin: before"))
    support, query = after["support"], after["query"]
    shared, one, two = np.intersect1d(support.epochs, query.epochs, return_indices=True)
    axes.fill_between(shared, support.values[one], query.values[two], color=color, alpha=0.14, lw=0)
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
    with style(9.0 if single else 6.5):
        figure = Figure(
            figsize=(7.2, 4.4 if single else 1.2 + 2.1 * len(rows)), layout="constrained"
        )
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
                here.set_title(column, pad=4 + 1.4 * lines * (8.0 if single else 6.0))
            if j == 0:
                here.set_ylabel(f"{row}\n{labels[i]}".strip())
            if i == len(rows) - 1:
                here.set_xlabel("epoch")
    return figure


def _finished(name: str, figure: Figure, title: str, note: str) -> Drawing:
    with style():
        put_below(figure, f"{title} {note}")
    return Drawing(name, figure)


# A setting, and differences -----------------------------------------------------------------------


def _draw_sweep(name: str, study: Study, setting: str, conditions: Sequence[Condition]) -> Drawing:
    """Test accuracy of each arm against one setting: means over seeds, and the seeds."""
    styles = looks(dict.fromkeys(arm for condition in conditions for arm in condition.arms))
    with style():
        figure = Figure(figsize=(6.8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for place, (arm, look) in enumerate(styles.items()):
            # A little apart, or the arms would cover each other.
            apart = 1.035 ** (place - (len(styles) - 1) / 2)
            points, alone = [], []
            for condition in conditions:
                runs = condition.runs(arm)
                if (mean := mean_test_accuracy(runs)) is None:
                    continue
                x = apart * swept_value(condition, setting)
                points.append((x, 100 * mean.mean, 100 * (mean.ci95 or 0.0)))
                alone += [points[-1][:2]] * (len(runs) == 1)
                for trained, marker in ((True, look.marker), (False, "x")):
                    seeds = [
                        100 * (run.tested.mean if run.tested else run.chance)
                        for run in runs
                        if run.trained == trained and (len(runs) > 1 or not trained)
                    ]
                    axes.plot([x] * len(seeds), seeds, marker, color=look.color, markersize=3)
            xs, ys, halves = np.asarray(points).reshape(-1, 3).T
            axes.errorbar(
                *(xs, ys, halves),
                color=look.color,
                linestyle=look.line,
                marker=look.marker,
                capsize=2.5,
            )
            axes.plot(*np.reshape(alone, (-1, 2)).T, look.marker, color=look.color, mfc="white")
        axes.axhline(100 * _chance(conditions), **LEVEL_LINE)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([swept_value(c, setting) for c in conditions]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlabel(SETTINGS.get(setting, setting))
        axes.set_ylabel("test accuracy (%)")
        figure.legend(map(sample, styles.values()), styles, loc="outside upper left", ncols=3)
    note = f"Means over seeds. {NOTES['differences']} ×: a run that did not train. Dotted: chance."
    return _finished(name, figure, _sentence(study), note)


def _chance(conditions: Sequence[Condition]) -> float:
    return next(iter(conditions[0].arms.values()))[0].chance


Bar = tuple[Difference, Sequence[float], Look]
"""A difference, that of each seed, and how it is drawn."""


def _draw_arms(name: str, title: str, condition: Condition) -> Drawing:
    """The difference of each arm to the original and to the control, task by task."""
    panels: dict[str, list[Bar | None]] = {}
    for yardstick in YARDSTICKS:
        bars = panels.setdefault(f"against {yardstick}", [])
        for arm, look in looks(condition.arms).items():
            found = None if arm == yardstick else difference(condition, arm, yardstick)
            by_seed = [seed.mean for seed in differences(condition, arm, yardstick)]
            bars.append(None if found is None else (found, by_seed, look))
    return _draw_bars(name, title, panels, list(condition.arms))


def _draw_contrasts(plan: Plan, results: Results) -> list[Drawing]:
    """What sharing adds to its control: each condition, and the means of studies."""
    found = contrasts(plan, results)
    shared = LOOKS["gradient-sharing"]
    bars = [
        (one.found, one.by_seed, shared if one.by_seed else Look(INK, "-", "D")) for one in found
    ]
    title = "Sharing − rate-control. Diamonds: means over a study’s conditions."
    return (
        [_draw_bars("contrast", title, {"": bars}, [one.place for one in found])] if found else []
    )


def _draw_bars(
    name: str, title: str, panels: Mapping[str, Sequence[Bar | None]], rows: Sequence[str]
) -> Drawing:
    with style():
        figure = Figure(figsize=(6.8, 1.4 + 0.28 * len(rows)), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (heading, bars) in zip(grid, panels.items(), strict=True):
            for place, bar in enumerate(bars):
                if bar is not None:
                    draw_difference(axes, place, *bar)
            axes.axvline(0, **LEVEL_LINE)
            axes.set_title(heading)
            axes.set_xlabel("difference in test accuracy (points)")
        grid[0].set_yticks(range(len(rows)), rows)
        grid[0].invert_yaxis()
    return _finished(name, figure, title, NOTES["differences"])
