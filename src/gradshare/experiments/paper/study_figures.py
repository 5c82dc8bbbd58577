"""The figures of a study: accuracy against a setting, arms beside each other, or curves."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gradshare.config import ORIGINAL
from gradshare.experiments import wording
from gradshare.experiments.drawing import (
    LEVEL_LINE,
    PALE,
    ArmStyle,
    Drawing,
    arm_styles,
    draw_chance,
    draw_difference,
    in_lines,
    put_below,
    sample,
    style,
)
from gradshare.experiments.figures import draw_all
from gradshare.experiments.paper.conditions import ARM, SEED, Condition, swept_value
from gradshare.experiments.paper.evidence import difference, differences, mean_test_accuracy
from gradshare.experiments.paper.panels import (
    Heading,
    Panels,
    draw_sharing_panels,
    draw_validation_panels,
)
from gradshare.experiments.paper.plan import Cell, Study
from gradshare.experiments.paper.study_tables import YARDSTICKS
from gradshare.experiments.results import Arm, Results

MANY_CONDITIONS: Final = 4
"""With more comparisons than so many, their curves are panels of one figure."""

MANY_ARMS: Final = 6
"""From so many arms on their curves would hide each other, and they are put beside each other."""

SETTINGS: Final = {"inner_lr": "inner rate", "task_batch": "tasks in a batch (T)"}


def draw_study(
    name: str,
    study: Study,
    conditions: Sequence[Condition],
    results: Mapping[Cell, Results],
) -> list[Drawing]:
    """Every figure of a study.

    Args:
        name: of the study; it begins the figures' names.
        study: what it is.
        conditions: its finished comparisons.
        results: of its finished cells.
    """
    if _planned_conditions(study) > MANY_CONDITIONS and study.curves:
        finished = {arm for condition in conditions for arm in condition.arms}
        arms = [arm for arm in study.axes.get(ARM, {}) if arm in finished]
        return _draw_panels(name, study, arms, results)
    drawings = [] if study.sweep is None else [_draw_sweep(name, study, conditions)]
    for condition in conditions if study.curves else ():
        prefix = "-".join((name, *condition.labels.values()))
        if len(study.axes.get(ARM, {})) >= MANY_ARMS:
            drawings.append(_draw_arms(prefix, study, condition))
        else:
            drawings += [
                _of_study(prefix, study, condition, drawing)
                for drawing in draw_all(condition.results)
            ]
    return drawings


def _of_study(prefix: str, study: Study, condition: Condition, drawing: Drawing) -> Drawing:
    """The drawing of a comparison, which says itself what study and condition it is of."""
    where = _where(study, condition)
    drawing.note.set_text(in_lines(drawing.figure, f"{where} {drawing.note.get_text()}"))
    description = f"{where} {drawing.description}"
    return Drawing(f"{prefix}-{drawing.name}", drawing.figure, description, drawing.note)


def _planned_conditions(study: Study) -> int:
    """How many comparisons a study has when it is finished.

    What is drawn hangs on what is planned: while a study runs its figures keep their names.
    """
    return math.prod(len(axis) for name, axis in study.axes.items() if name not in (ARM, SEED))


def _draw_panels(
    name: str, study: Study, arms: Sequence[str], results: Mapping[Cell, Results]
) -> list[Drawing]:
    """A column for each label of the study's first axis, a row for each combination of the others,
    as in the paper's Figures 6 and 7.
    """
    first, *others = (axis for axis in study.axes if axis not in (ARM, SEED))
    columns = [Heading(wording.method(label), frozenset({label})) for label in study.axes[first]]
    rows = [
        Heading(", ".join(labels), frozenset(labels))
        for labels in itertools.product(*(study.axes[axis] for axis in others))
    ]
    drawings = []
    for draw, what in (
        (draw_validation_panels, "validation"),
        (draw_sharing_panels, "sharing"),
    ):
        learning = [arm for arm in arms if what == "validation" or arm != ORIGINAL]
        title = textwrap.fill(_sentence(study), 76)
        panels = Panels(f"{name}-{what}", title, results, rows, columns, learning)
        if any(run.sharing or what == "validation" for runs in panels.all_runs() for run in runs):
            drawings.append(draw(panels))
    return drawings


def _draw_sweep(name: str, study: Study, conditions: Sequence[Condition]) -> Drawing:
    """Test accuracy of each arm against one setting: means over seeds, and the seeds."""
    setting = study.sweep
    assert setting is not None
    arms = dict.fromkeys(arm for condition in conditions for arm in condition.arms)
    styles = arm_styles(arms)
    values = [swept_value(condition, setting) for condition in conditions]
    with style():
        figure = Figure(figsize=(6.8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for place, arm in enumerate(arms):
            # A little apart, or the arms would cover each other.
            apart = 1.035 ** (place - (len(arms) - 1) / 2)
            _draw_line(axes, conditions, setting, arm, styles[arm], apart)
        chance = conditions[0].results[0].arms[0].chance
        guessing, level = draw_chance(axes, [chance])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlabel(SETTINGS.get(setting, setting))
        axes.set_ylabel("test accuracy (%)")
        handles = [sample(styles[arm]) for arm in arms]
        handles.append(guessing)
        names = [*arms, f"chance {level}"]
        if any(not run.trained for c in conditions for arm in arms for run in c.runs(arm)):
            handles.append(Line2D([], [], linestyle="none", marker="x", color=PALE, markersize=5))
            names.append("a run that did not train")
        figure.legend(handles, names, loc="outside upper left", ncols=3)
        counts = sorted({len(c.runs(arm)) for c in conditions for arm in c.arms})
        note = put_below(figure, f"{_sentence(study)} {_bars(counts)}")
    said = "; ".join(
        f"{arm}: "
        + ", ".join(
            f"{wording.accuracy(accuracy)} at {swept_value(condition, setting):g}"
            for condition in conditions
            if (accuracy := mean_test_accuracy(condition.runs(arm))) is not None
        )
        for arm in arms
    )
    return Drawing(
        name, figure, f"Test accuracy against {SETTINGS.get(setting, setting)}: {said}.", note
    )


def _draw_line(
    axes: Axes,
    conditions: Sequence[Condition],
    setting: str,
    arm: str,
    look: ArmStyle,
    apart: float,
) -> None:
    """One arm of a sweep."""
    points, alone = [], []
    for condition in conditions:
        runs = condition.runs(arm)
        accuracy = mean_test_accuracy(runs)
        if accuracy is None:
            continue
        x = apart * swept_value(condition, setting)
        points.append((x, 100 * accuracy.mean, 100 * (accuracy.ci95 or 0.0)))
        alone += [points[-1][:2]] * (len(runs) == 1)
        trained = [100 * _accuracy(run) for run in runs if run.trained and len(runs) > 1]
        untrained = [100 * _accuracy(run) for run in runs if not run.trained]
        for shown, marker, size, order in (
            (trained, look.marker, 2.5, 2),
            (untrained, "x", 5.0, 5),  # over the mean, which may lie on it
        ):
            axes.plot(
                [x] * len(shown),
                shown,
                linestyle="none",
                marker=marker,
                markersize=size,
                color=look.color if marker != "x" else PALE,
                alpha=0.8,
                zorder=order,
            )
    xs, ys, halves = np.asarray(points).reshape(-1, 3).T
    axes.errorbar(
        xs,
        ys,
        yerr=halves,
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markeredgecolor="white",
        markeredgewidth=0.8,
        elinewidth=1.0,
        capsize=2.5,
        zorder=3,
    )
    # Hollow: the interval of one seed says nothing about another seed.
    hollow_x, hollow_y = np.asarray(alone).reshape(-1, 2).T
    axes.plot(
        hollow_x,
        hollow_y,
        linestyle="none",
        marker=look.marker,
        color=look.color,
        markerfacecolor="white",
        zorder=4,
    )


def _draw_arms(name: str, study: Study, condition: Condition) -> Drawing:
    """The difference of every arm to the original and to the control, task by task."""
    arms = condition.arms
    styles = arm_styles(arms)
    with style():
        figure = Figure(figsize=(6.8, 1.3 + 0.3 * len(arms)), layout="constrained")
        panels = figure.subplots(1, len(YARDSTICKS), sharey=True)
        for axes, yardstick in zip(panels, YARDSTICKS, strict=True):
            for place, arm in enumerate(arms):
                found = difference(condition, arm, yardstick)
                if arm == yardstick or found is None:
                    continue
                look = styles[arm]
                draw_difference(
                    axes,
                    place,
                    found.interval,
                    [pair.mean for pair in differences(condition, arm, yardstick)],
                    color=look.color,
                    marker=look.marker,
                    hollow=found.count == 1,
                )
            axes.axvline(0, **LEVEL_LINE)
            axes.set_title(f"against {yardstick}")
            axes.set_xlabel("difference in test accuracy (points)")
        panels[0].set_yticks(range(len(arms)), arms)
        panels[0].invert_yaxis()
        counts = sorted({len(condition.runs(arm)) for arm in arms})
        note = put_below(figure, f"{_where(study, condition)} {_bars(counts)}")
    said = "; ".join(
        f"{arm} {wording.points(found.interval)}"
        for arm in arms
        if (found := difference(condition, arm, YARDSTICKS[0])) and arm != YARDSTICKS[0]
    )
    return Drawing(name, figure, f"Differences to the {YARDSTICKS[0]}: {said}.", note)


def _accuracy(run: Arm) -> float:
    return run.chance if run.test is None else run.test.accuracy


def _sentence(study: Study) -> str:
    text = f"{study.heading}{f' ({study.note})' if study.note else ''}"
    return text if text.endswith("?") else f"{text}."


def _where(study: Study, condition: Condition) -> str:
    """What study and which of its conditions, with what has to be said wherever it stands."""
    place = ", ".join(condition.labels.values())
    return f"{_sentence(study)} {place}." if place else _sentence(study)


def _bars(counts: Sequence[int]) -> str:
    """What the points are means over and the bars intervals of.

    Args:
        counts: how many seeds the arms have, ascending, each once.
    """
    if counts == [1]:
        return "One seed; bars: 95\u00a0% intervals over test tasks alone."
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    of_one = "; of one seed (hollow) over test tasks alone" if counts[0] == 1 else ""
    return (
        f"Means over {seeds} seeds; bars: 95\u00a0% intervals over seeds and test tasks{of_one}; "
        "small marks: the seeds."
    )
