"""The figures of the studies at CPU scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gradshare.comparison.figures import INK, style
from gradshare.config import SHARING
from reproduction import wording
from reproduction.conditions import (
    YARDSTICKS,
    Condition,
    Difference,
    Results,
    difference,
    mean_test_accuracy,
    swept_value,
)
from reproduction.contrast import contrasts
from reproduction.curves import QUANTITIES, draw_curves, draw_inner_loop
from reproduction.drawing import LEVEL_LINE, Drawing, Look, looks, noted, sample
from reproduction.plan import ARM, SEED, Plan, Study
from reproduction.report import studies_of

MANY_CONDITIONS: Final = 4
"""A study with more conditions than this has their curves as panels of one figure."""

MANY_ARMS: Final = 6
"""From this number of arms on, differences are drawn: curves would hide each other."""

SETTINGS: Final = {"inner_lr": "inner rate", "task_batch": "tasks in a batch (T)"}

BARS: Final = (
    "Bars: 95 % intervals over seeds (small marks) and test tasks; hollow: of one "
    "seed, over test tasks alone."
)


def draw_studies(plan: Plan, results: Results) -> Iterator[Drawing]:
    """Each figure of each study, after that of what sharing adds to its control."""
    yield from _draw_contrasts(plan, results)
    for name, study, conditions in studies_of(plan, results):
        own = {cell: run for cell, run in results.items() if cell.study == name}
        yield from _draw_study(name, study, conditions, own)


def _draw_study(
    name: str, study: Study, conditions: Sequence[Condition], results: Results
) -> Iterator[Drawing]:
    axes = {axis: labels for axis, labels in study.axes.items() if axis not in (ARM, SEED)}
    # The planned conditions count, so that figures keep their names while a study runs.
    if study.curves and math.prod(map(len, axes.values())) > MANY_CONDITIONS:
        first, *others = axes.values()
        columns = [(wording.METHODS.get(label, label), label) for label in first]
        rows = [(", ".join(labels), *labels) for labels in itertools.product(*others)]
        for quantity in QUANTITIES:
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
        panel = [("", *condition.labels.values())]
        for quantity in QUANTITIES:
            yield from draw_curves(f"{prefix}-{quantity}", title, results, panel, panel, quantity)
        yield draw_inner_loop(f"{prefix}-inner_loop", title, condition)


def _sentence(study: Study) -> str:
    text = f"{study.heading}{f' ({study.note})' if study.note else ''}"
    return text if text.endswith("?") else f"{text}."


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
                for trained, marker in ((True, look["marker"]), (False, "x")):
                    seeds = [
                        100 * (run.tested.mean if run.tested else run.chance)
                        for run in runs
                        if run.trained == trained and (len(runs) > 1 or not trained)
                    ]
                    axes.plot([x] * len(seeds), seeds, marker, color=look["color"], markersize=3)
            xs, ys, halves = np.asarray(points).reshape(-1, 3).T
            axes.errorbar(xs, ys, halves, **look, capsize=2.5)
            hollow = {**look, "linestyle": "none", "markerfacecolor": "white"}
            axes.plot(*np.reshape(alone, (-1, 2)).T, **hollow)
        axes.axhline(100 * conditions[0].first_run.chance, **LEVEL_LINE)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([swept_value(c, setting) for c in conditions]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlabel(SETTINGS[setting])
        axes.set_ylabel("test accuracy (%)")
        figure.legend(map(sample, styles.values()), styles, loc="outside upper left", ncols=3)
    note = f"Means over seeds. {BARS} ×: a run that did not train. Dotted: chance."
    return noted(name, figure, _sentence(study), note)


MEAN: Final[Look] = {"color": INK, "linestyle": "-", "marker": "D"}
"""The look of a mean over conditions, of which the seeds are not drawn."""


def _draw_arms(name: str, title: str, condition: Condition) -> Drawing:
    """The difference of each arm to the original and to the control, task by task."""
    panels = {
        f"against {yardstick}": {
            arm: (found, look)
            for arm, look in looks(condition.arms).items()
            if arm != yardstick and (found := difference(condition, arm, yardstick)) is not None
        }
        for yardstick in YARDSTICKS
    }
    return _draw_bars(name, title, panels, list(condition.arms))


def _draw_contrasts(plan: Plan, results: Results) -> Iterator[Drawing]:
    """What sharing adds to its control: each condition, and the means of studies."""
    shared = looks([SHARING])[SHARING]
    bars = {
        one.place: (one.found, MEAN if one.is_mean else shared) for one in contrasts(plan, results)
    }
    if bars:
        title = "Sharing − rate-control. Diamonds: means over a study’s conditions."
        yield _draw_bars("contrast", title, {"": bars}, list(bars))


def _draw_bars(
    name: str,
    title: str,
    panels: Mapping[str, Mapping[str, tuple[Difference, Look]]],
    rows: Sequence[str],
) -> Drawing:
    with style():
        figure = Figure(figsize=(6.8, 1.4 + 0.28 * len(rows)), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (heading, bars) in zip(grid, panels.items(), strict=True):
            for row, bar in bars.items():
                _draw_bar(axes, rows.index(row), *bar)
            axes.axvline(0, **LEVEL_LINE)
            axes.set_title(heading)
            axes.set_xlabel("difference in test accuracy (points)")
        grid[0].set_yticks(range(len(rows)), rows)
        grid[0].invert_yaxis()
    return noted(name, figure, title, BARS)


def _draw_bar(axes: Axes, place: int, found: Difference, look: Look) -> None:
    """A difference in points as a row, with its interval and its seeds.

    The marker of a single seed is hollow: its interval says nothing about other seeds.
    """
    mean, half = (100 * (value or 0.0) for value in found.interval[:2])
    fill = look["color"] if found.seeds > 1 else "white"
    alone = {**look, "linestyle": "none"}
    axes.errorbar(mean, place, xerr=half, **alone, markerfacecolor=fill, capsize=3)
    if found.seeds > 1 and look is not MEAN:
        seeds = [100 * value for value in found.by_seed]
        axes.plot(seeds, [place] * len(seeds), "|", color=look["color"], alpha=0.7, markersize=7)
