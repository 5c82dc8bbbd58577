"""What sharing adds to its control, in every condition of every study, and on average.

The rate-control has everything that sharing has except the shared gradient, so that this difference
is the part of sharing's effect that is due to sharing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.figure import Figure

from gradshare.config import RATE_CONTROL, SHARING
from gradshare.experiments import wording
from gradshare.experiments.drawing import (
    INK,
    LEVEL_LINE,
    STYLES,
    Drawing,
    draw_difference,
    put_below,
    style,
)
from gradshare.experiments.paper.conditions import Condition, conditions
from gradshare.experiments.paper.evidence import (
    Difference,
    difference,
    differences,
    mean_test_accuracy,
    pooled_difference,
)
from gradshare.experiments.paper.plan import Cell, Plan
from gradshare.experiments.results import Results
from gradshare.experiments.table import Row

WORTHWHILE: Final = 0.5
"""A study's mean is over the conditions in which one of both gained at least this share, over
chance, of what was gained in the study's best: near the floor no difference can show."""

CAPTION: Final = (
    "Test accuracy of sharing less that of its rate-control, task by task, wherever both were run "
    "and one of them learned something; in brackets the smallest difference that would have been "
    "seen about four times in five. The interval of a single seed is over test tasks alone: with "
    "other rounding the same run comes out a point or two higher or lower. The mean of a study is "
    "over those of its conditions in which one of both gained at least half of what was gained in "
    "the best, borrowed ones too; while a study runs, over those with the most seeds, of which "
    "there must be two"
)


@dataclass(frozen=True)
class Contrast:
    """Sharing and its control in one condition, or on average over those of a study.

    Attributes:
        place: the study and the condition, as "batches, batch-1", or "batches, mean of 4".
        found: sharing's test accuracy less the control's.
        by_seed: the same of each seed; empty of a mean.
    """

    place: str
    found: Difference
    by_seed: tuple[float, ...] = ()


def contrasts(plan: Plan, results: Mapping[Cell, Results]) -> list[Contrast]:
    """Every condition in which sharing and its control were run, and at least one run learned;
    after those of a study their mean, where it is of several.

    A condition that a study borrows stands under the study that lends it alone, and counts in the
    means of both.

    Args:
        plan: that the studies are of.
        results: what finished cells came to, borrowed ones too.
    """
    own = {cell: one for cell, one in results.items() if plan.owns(cell)}
    found = []
    for study in plan.studies:
        for condition, both, _ in _told(conditions(plan, own, study)):
            by_seed = tuple(d.mean for d in differences(condition, SHARING, RATE_CONTROL))
            place = ", ".join((study, *condition.labels.values()))
            found.append(Contrast(place, both, by_seed))
        if mean := _mean(study, _told(conditions(plan, results, study))):
            found.append(mean)
    return found


def _told(every: Sequence[Condition]) -> list[tuple[Condition, Difference, float]]:
    """The conditions in which sharing can be told from its control: with the difference between
    both and what the better one gained over chance.
    """
    return [
        (condition, both, gain)
        for condition in every
        if (gain := _gain(condition)) > 0
        and (both := difference(condition, SHARING, RATE_CONTROL)) is not None
    ]


def _mean(study: str, told: Sequence[tuple[Condition, Difference, float]]) -> Contrast | None:
    """Over the conditions with the most seeds of those that are not near the floor: of a seed that
    one condition lacks, a mean over all of them would know nothing. None of a single condition or
    seed, whose mean would say too much.
    """
    enough = WORTHWHILE * max((gain for _, _, gain in told), default=0.0)
    worthwhile = [(one, both.count) for one, both, gain in told if gain >= enough]
    most = max((seeds for _, seeds in worthwhile), default=0)
    whole = [one for one, seeds in worthwhile if seeds == most]
    mean = pooled_difference(whole, SHARING, RATE_CONTROL) if len(whole) > 1 else None
    if mean is None or mean.count < 2:
        return None
    return Contrast(f"{study}, mean of {len(whole)}", mean)


def contrast_rows(found: Sequence[Contrast]) -> list[Row]:
    """A row for every condition and every mean."""
    return [
        {
            "condition": one.place,
            "seeds": str(one.found.count),
            "sharing − rate-control": _in_words(one),
        }
        for one in found
    ]


def draw_contrasts(found: Sequence[Contrast]) -> Drawing:
    """Every condition's difference with its interval and its seeds, and the means of studies."""
    shared = STYLES[SHARING]
    with style():
        figure = Figure(figsize=(6.8, 1.4 + 0.27 * len(found)), layout="constrained")
        axes = figure.add_subplot()
        for place, one in enumerate(found):
            color, marker = (shared.color, shared.marker) if one.by_seed else (INK, "D")
            several = one.found.count > 1
            draw_difference(
                axes,
                place,
                one.found.interval,
                one.by_seed if several else (),
                color=color,
                marker=marker,
                hollow=not several,
            )
        axes.axvline(0, **LEVEL_LINE)
        cut = any(one.found.count == 2 for one in found)
        if cut:
            # Student's t makes the bar of two seeds so wide that no other could be read beside it.
            reach = [abs(difference) for one in found for difference in one.by_seed]
            reach += [
                abs(one.found.interval.mean) + (one.found.interval.ci95 or 0.0)
                for one in found
                if one.found.count != 2
            ]
            axes.set_xlim(-105 * max(reach), 105 * max(reach))
        axes.set_yticks(range(len(found)), [one.place for one in found])
        axes.invert_yaxis()
        axes.set_xlabel("test accuracy, sharing − rate-control (points)")
        text = (
            "Bars: 95\u00a0% intervals, over seeds (small marks) and test tasks; hollow: one seed, "
            "over test tasks alone. Diamonds: means over a study’s conditions, without those near "
            "the floor."
        )
        text += " Bars of two seeds may run out of the figure." if cut else ""
        note = put_below(figure, text)
    said = "; ".join(f"{one.place} {_in_words(one)}" for one in found)
    return Drawing("contrast", figure, f"What sharing adds to its control: {said}.", note)


def _in_words(one: Contrast) -> str:
    return wording.difference(one.found.interval, one.found.detectable)


def _gain(condition: Condition) -> float:
    """What the better of both gained over chance, in test accuracy; 0 where neither learned or one
    was not run.
    """
    both = [condition.runs(arm) for arm in (SHARING, RATE_CONTROL)]
    if not all(both) or not any(run.trained for runs in both for run in runs):
        return 0.0
    means = [mean for runs in both if (mean := mean_test_accuracy(runs)) is not None]
    return max((mean.mean for mean in means), default=0.0) - both[0][0].chance
