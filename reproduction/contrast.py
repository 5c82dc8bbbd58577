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
    mean_test_accuracy,
    pooled_difference,
)
from reproduction.plan import Plan

WORTHWHILE: Final = 0.5
"""A study's mean is over the conditions in which sharing or its control gained at least this share,
over chance, of what was gained in the study's best: near chance no difference can show."""


@dataclass(frozen=True)
class Contrast:
    """Sharing and its control in one condition, or on average over those of a study.

    Attributes:
        place: the study and the condition, as "batches, batch-1", or "batches, mean of 4".
        found: sharing's test accuracy minus the control's.
        is_mean: whether it is an average over conditions.
    """

    place: str
    found: Difference
    is_mean: bool = False


def contrasts(plan: Plan, results: Results) -> list[Contrast]:
    """Each condition in which sharing and its control were run and one of them learned something.
    The mean of a study follows its conditions, if there are several.

    A borrowed condition is listed under its own study alone, and counts in the means of both.
    """
    own = {cell: run for cell, run in results.items() if not cell.borrowed}
    found = []
    for study in plan.studies:
        for condition in conditions(plan, own, study):
            both = difference(condition, SHARING, RATE_CONTROL)
            if both is not None and _gain(condition) > 0:
                found.append(Contrast(", ".join((study, *condition.labels.values())), both))
        if mean := _mean(study, conditions(plan, results, study)):
            found.append(mean)
    return found


def contrast_rows(found: Sequence[Contrast]) -> list[dict[str, str]]:
    """A row for each condition and each mean."""
    return [
        {
            "condition": one.place,
            "seeds": str(one.found.seeds),
            "sharing − rate-control": wording.difference(one.found),
        }
        for one in found
    ]


def _mean(study: str, every: Sequence[Condition]) -> Contrast | None:
    """The mean over the conditions that are not near chance and have the most seeds of these; None
    for a single condition or seed.
    """
    gains = [_gain(condition) for condition in every]
    enough = WORTHWHILE * max(gains, default=0.0)
    far = [one for one, gain in zip(every, gains, strict=True) if gain > 0 and gain >= enough]
    seeds = [len(one.pairs(SHARING, RATE_CONTROL)) for one in far]
    whole = [one for one, count in zip(far, seeds, strict=True) if count == max(seeds)]
    mean = pooled_difference(whole, SHARING, RATE_CONTROL) if len(whole) > 1 else None
    if mean is None or mean.seeds < 2:
        return None
    return Contrast(f"{study}, mean of {len(whole)}", mean, is_mean=True)


def _gain(condition: Condition) -> float:
    """What the better of both gained over chance, in test accuracy; 0 if neither learned, or no
    seed has both.
    """
    runs = [*condition.runs(SHARING), *condition.runs(RATE_CONTROL)]
    compared = difference(condition, SHARING, RATE_CONTROL) is not None
    if not compared or not any(run.trained for run in runs):
        return 0.0
    means = [mean_test_accuracy(condition.runs(arm)) for arm in (SHARING, RATE_CONTROL)]
    return max(mean.mean for mean in means if mean is not None) - runs[0].chance
