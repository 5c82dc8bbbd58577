"""What sharing adds to its control, in every condition of every study, and on average.

The rate-control has everything that sharing has except the shared gradient, so that this difference
is the part of sharing's effect that is due to sharing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.figure import Figure

from gradshare.experiments import wording
from gradshare.experiments.drawing import INK, LEVEL_LINE, PALE, STYLES, Drawing, style
from gradshare.experiments.paper.conditions import Condition, conditions
from gradshare.experiments.paper.evidence import (
    Difference,
    difference,
    differences,
    mean_difference,
)
from gradshare.experiments.paper.plan import Cell, Plan
from gradshare.experiments.results import RATE_CONTROL, SHARING, Results
from gradshare.experiments.table import Row

CAPTION: Final = (
    "Test accuracy of sharing less that of its rate-control, task by task, wherever both were run "
    "and one of them learned something; in brackets the smallest difference that would have been "
    "seen about four times in five. The mean is over conditions, each counted once, and its "
    "interval too (Student’s t)"
)


@dataclass(frozen=True)
class Contrast:
    """Sharing and its control in one condition.

    Attributes:
        place: the study and the condition, as "batches, batch-1".
        found: sharing's test accuracy less the control's.
        by_seed: the same of each seed.
    """

    place: str
    found: Difference
    by_seed: tuple[float, ...]


def contrasts(plan: Plan, results: Mapping[Cell, Results]) -> list[Contrast]:
    """Every condition in which sharing and its control were run, and at least one run learned.

    A condition that a study borrows stands under the study that lends it alone.
    """
    found = []
    for study in plan.studies:
        own = {cell: one for cell, one in results.items() if cell.study == study}
        for condition in conditions(plan, own, study):
            if _learned(condition) and (both := difference(condition, SHARING, RATE_CONTROL)):
                by_seed = tuple(d.mean for d in differences(condition, SHARING, RATE_CONTROL))
                place = ", ".join((study, *condition.labels.values()))
                found.append(Contrast(place, both, by_seed))
    return found


def contrast_rows(found: Sequence[Contrast]) -> list[Row]:
    """A row for every condition; with several of them, their mean last."""
    rows = [
        {
            "condition": one.place,
            "seeds": str(one.found.count),
            "sharing − rate-control": wording.difference(one.found.interval, one.found.detectable),
        }
        for one in found
    ]
    if mean := _mean(found):
        rows.append(
            {
                "condition": f"mean of {len(found)} conditions",
                "seeds": "",
                "sharing − rate-control": wording.difference(mean.interval, mean.detectable),
            }
        )
    return rows


def draw_contrasts(found: Sequence[Contrast]) -> Drawing:
    """Every condition's difference with its interval and its seeds, their mean below."""
    mean = _mean(found)
    look = STYLES[SHARING]
    with style():
        lines = len(found) + (mean is not None)
        figure = Figure(figsize=(6.8, 1.4 + 0.27 * lines), layout="constrained")
        axes = figure.add_subplot()
        for place, one in enumerate(found):
            several = len(one.by_seed) > 1
            axes.errorbar(
                100 * one.found.interval.mean,
                place,
                xerr=100 * (one.found.interval.ci95 or 0.0),
                color=look.color,
                marker=look.marker,
                # Hollow: the interval of one seed says nothing about another seed.
                markerfacecolor=look.color if several else "white",
                elinewidth=1.3,
                capsize=3,
                zorder=3,
            )
            if several:
                each = [100 * value for value in one.by_seed]
                axes.plot(each, [place] * len(each), "|", color=look.color, markersize=7)
        names = [one.place for one in found]
        if mean is not None:
            names.append("mean of all conditions")
            axes.errorbar(
                100 * mean.interval.mean,
                len(found),
                xerr=100 * (mean.interval.ci95 or 0.0),
                color=INK,
                marker="D",
                elinewidth=2.0,
                capsize=4,
                zorder=3,
            )
        axes.axvline(0, **LEVEL_LINE)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("test accuracy, sharing − rate-control (points)")
        text = (
            "Bars: 95 % intervals, over seeds and test tasks where there are several seeds (small "
            "marks), over test tasks where there is one (hollow), and over conditions for the mean."
        )
        note = figure.supxlabel(textwrap.fill(text, 110), fontsize=7.5, color=PALE)
    said = "; ".join(f"{row['condition']} {row[list(row)[-1]]}" for row in contrast_rows(found))
    return Drawing("contrast", figure, f"What sharing adds to its control: {said}.", note)


def _mean(found: Sequence[Contrast]) -> Difference | None:
    """Over conditions; None of fewer than two."""
    return mean_difference([one.found.interval.mean for one in found]) if len(found) > 1 else None


def _learned(condition: Condition) -> bool:
    return any(run.trained for arm in (SHARING, RATE_CONTROL) for run in condition.runs(arm))
