"""What sharing adds to its control, in each condition of each study, and on average.

The rate-control has all of sharing except the shared gradient, so this difference is the part of
sharing's effect that is due to sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gradshare.config import RATE_CONTROL, SHARING
from reproduction import wording
from reproduction.conditions import (
    Condition,
    Difference,
    Results,
    conditions,
    difference,
    differences,
    mean_test_accuracy,
    pooled_difference,
)
from reproduction.plan import Plan

WORTHWHILE: Final = 0.5
"""A study's mean is over the conditions in which sharing or its control gained at least this share,
over chance, of what was gained in the study's best: near the floor no difference can show."""


@dataclass(frozen=True)
class Contrast:
    """Sharing and its control in one condition, or on average over those of a study.

    Attributes:
        place: the study and the condition, as "batches, batch-1", or "batches, mean of 4".
        found: sharing's test accuracy less the control's.
        by_seed: the same for each seed; empty for a mean.
    """

    place: str
    found: Difference
    by_seed: tuple[float, ...] = ()

    def __str__(self) -> str:
        """The difference in words."""
        return wording.difference(self.found.interval, self.found.detectable)


def contrasts(plan: Plan, results: Results) -> list[Contrast]:
    """Each condition in which sharing and its control were run and a run learned something; after
    those of a study their mean, if there are several.

    A borrowed condition stands under its own study alone, and counts in the means of both.
    """
    own = {cell: run for cell, run in results.items() if not cell.borrowed}
    found = []
    for study in plan.studies:
        for condition, both, _ in _told(conditions(plan, own, study)):
            by_seed = tuple(d.mean for d in differences(condition, SHARING, RATE_CONTROL))
            place = ", ".join((study, *condition.labels.values()))
            found.append(Contrast(place, both, by_seed))
        if mean := _mean(study, _told(conditions(plan, results, study))):
            found.append(mean)
    return found


def contrast_rows(found: Sequence[Contrast]) -> list[dict[str, str]]:
    """A row for each condition and each mean."""
    return [
        {
            "condition": one.place,
            "seeds": str(one.found.count),
            "sharing − rate-control": str(one),
        }
        for one in found
    ]


def _told(every: Sequence[Condition]) -> list[tuple[Condition, Difference, float]]:
    """The conditions in which sharing can be told from its control, with the difference and what
    the better one gained over chance.
    """
    return [
        (condition, both, gain)
        for condition in every
        if (gain := _gain(condition)) > 0
        and (both := difference(condition, SHARING, RATE_CONTROL)) is not None
    ]


def _mean(study: str, told: Sequence[tuple[Condition, Difference, float]]) -> Contrast | None:
    """The mean over the conditions with the most seeds of those that are not near the floor; None
    for a single condition or seed.
    """
    enough = WORTHWHILE * max((gain for _, _, gain in told), default=0.0)
    worthwhile = [(one, both.count) for one, both, gain in told if gain >= enough]
    most = max((seeds for _, seeds in worthwhile), default=0)
    whole = [one for one, seeds in worthwhile if seeds == most]
    mean = pooled_difference(whole, SHARING, RATE_CONTROL) if len(whole) > 1 else None
    if mean is None or mean.count < 2:
        return None
    return Contrast(f"{study}, mean of {len(whole)}", mean)


def _gain(condition: Condition) -> float:
    """What the better of both gained over chance, in test accuracy; 0 if neither learned or one was
    not run.
    """
    both = [condition.runs(arm) for arm in (SHARING, RATE_CONTROL)]
    if not all(both) or not any(run.trained for runs in both for run in runs):
        return 0.0
    means = [mean for runs in both if (mean := mean_test_accuracy(runs)) is not None]
    return max((mean.mean for mean in means), default=0.0) - both[0][0].chance
