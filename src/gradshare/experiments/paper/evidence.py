"""What a comparison of arms shows, and what it could not have shown.

Test accuracies are compared task by task: all arms see the same test tasks. Intervals are over
seeds where there are several, and over test tasks where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gradshare.experiments.paper.conditions import Condition
from gradshare.experiments.results import ORIGINAL, Arm, Share
from gradshare.experiments.seeds import over_seeds, student975
from gradshare.experiments.speedup import (
    SHARES,
    first_epoch,
    level,
    paired_difference,
    paper_speedup,
)
from gradshare.training.statistics import Z95, Interval, best_epoch

SMOOTHED_OVER: Final = 3
"""Validations that a smoothed curve takes together."""

FLAT: Final = 0.05
"""A curve has flattened when its last quarter lies at most this share of the whole gain over chance
above the quarter before."""

# The 80 % quantile of Student's t for 1, 2, … 10 degrees of freedom, and of the normal.
STUDENT80: Final = (1.3764, 1.0607, 0.9785, 0.9410, 0.9195, 0.9057, 0.8960, 0.8889, 0.8834, 0.8791)
NORMAL80: Final = 0.8416


@dataclass(frozen=True)
class Difference:
    """One arm's test accuracy less another's.

    Attributes:
        interval: the mean difference over seeds, or over tasks where there is one seed.
        seeds: how many seeds have both arms.
        detectable: the smallest true difference that so many seeds, or tasks, that differ so much
            would show to be other than zero four times in five; None from a single value.
    """

    interval: Interval
    seeds: int
    detectable: float | None

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero."""
        ci95 = self.interval.ci95
        return ci95 is not None and abs(self.interval.mean) > ci95


def differences(condition: Condition, first: str, second: str) -> list[Interval]:
    """Test accuracy of first - second for each seed that has both, over the test tasks."""
    pairs = []
    for one in condition.results:
        mine, theirs = one.arm(first), one.arm(second)
        if mine is not None and theirs is not None:
            paired = paired_difference(mine, theirs)
            if paired is not None:
                pairs.append(paired.interval)
    return pairs


def difference(condition: Condition, first: str, second: str) -> Difference | None:
    """Test accuracy of first - second; None where no seed has both."""
    pairs = differences(condition, first, second)
    if not pairs:
        return None
    if len(pairs) == 1:
        (interval,) = pairs
        factor = (Z95 + NORMAL80) / Z95
    else:
        interval = over_seeds([pair.mean for pair in pairs])
        freedom = len(pairs) - 1
        factor = (student975(freedom) + _student80(freedom)) / student975(freedom)
    detectable = None if interval.ci95 is None else factor * interval.ci95
    return Difference(interval, len(pairs), detectable)


def mean_test_accuracy(runs: Sequence[Arm]) -> Interval | None:
    """Mean over seeds of the test accuracies, or the one of a single seed with its own interval.

    A run that diverged before it was ever validated has learned nothing and guesses.
    """
    if len(runs) == 1:
        return runs[0].test.interval if runs[0].test else None
    values = [run.chance if run.test is None else run.test.accuracy for run in runs]
    return over_seeds(values) if values else None


def smoothed(arm: Arm) -> Arm:
    """The arm with a validation curve that is a centred running mean; the first and last values
    have neighbours on one side only and keep their own.
    """
    curve = arm.validation
    half = SMOOTHED_OVER // 2
    points = []
    for place, point in enumerate(curve):
        reach = min(half, place, len(curve) - 1 - place)
        near = curve[place - reach : place + reach + 1]
        mean = math.fsum(v.accuracy for v in near) / len(near)
        points.append(point.model_copy(update={"accuracy": mean}))
    best = best_epoch([p.epoch for p in points], [p.accuracy for p in points]) if points else None
    return arm.model_copy(update={"validation": tuple(points), "best_epoch": best})


def flattened(arm: Arm) -> bool:
    """Whether a run was long enough for its best epoch to mean something."""
    accuracies = [point.accuracy for point in arm.validation]
    quarter = len(accuracies) // 4
    if quarter == 0 or not arm.trained:
        return False
    last = math.fsum(accuracies[-quarter:]) / quarter
    before = math.fsum(accuracies[-2 * quarter : -quarter]) / quarter
    return last - before <= FLAT * (max(accuracies) - arm.chance)


@dataclass(frozen=True)
class Pace:
    """How soon an arm reached a share of the original's gain over chance.

    Attributes:
        share: of the gain, in percent.
        iterations: for each seed; None where it never did.
        speedup: (original - arm) / arm in iterations, over the seeds in which both did.
        wall: the same in seconds.
    """

    share: Share
    iterations: tuple[int | None, ...]
    speedup: Interval | None
    wall: Interval | None


def paces(condition: Condition, arm: str) -> list[Pace]:
    """For each share, on smoothed curves, how soon an arm was there, and beside the original."""
    found = []
    for share in SHARES:
        iterations: list[int | None] = []
        ratios: list[float] = []
        walls: list[float] = []
        for one in condition.results:
            mine, original = one.arm(arm), one.arm(ORIGINAL)
            if mine is None or original is None:
                continue
            mine, original = smoothed(mine), smoothed(original)
            accuracy = level(original, share)
            if accuracy is None:
                continue
            here, there = first_epoch(mine, accuracy), first_epoch(original, accuracy)
            an_epoch = one.config["iterations_per_epoch"]
            assert isinstance(an_epoch, int)
            iterations.append(None if here is None else here * an_epoch)
            if here is not None and there is not None:
                ratios.append((there - here) / here)
                fast, slow = _seconds_at(mine, here), _seconds_at(original, there)
                if fast and slow:
                    walls.append((slow - fast) / fast)
        found.append(
            Pace(
                share,
                tuple(iterations),
                over_seeds(ratios) if ratios else None,
                over_seeds(walls) if walls else None,
            )
        )
    return found


def papers_speedups(condition: Condition, arm: str) -> list[float | None]:
    """The paper's formula for each seed; None where a curve has not flattened."""
    ratios: list[float | None] = []
    for one in condition.results:
        mine, original = one.arm(arm), one.arm(ORIGINAL)
        if mine is None or original is None:
            continue
        flat = flattened(mine) and flattened(original)
        ratios.append(paper_speedup(original, mine) if flat else None)
    return ratios


@dataclass(frozen=True)
class OverFitting:
    """Support less query accuracy after adaptation, on the validation tasks.

    Attributes:
        early: mean over the first third of the epochs.
        late: over the last third.
    """

    early: Interval
    late: Interval


def over_fitting(runs: Sequence[Arm]) -> OverFitting | None:
    """Of an arm's runs; None where none was ever validated."""
    gaps = [
        [
            point.support_accuracy_after - point.query_accuracy_after
            for point in run.inner_loop
            if point.support_accuracy_after is not None and point.query_accuracy_after is not None
        ]
        for run in runs
    ]
    gaps = [gap for gap in gaps if gap]
    if not gaps:
        return None

    def mean(part: Callable[[list[float]], list[float]]) -> Interval:
        return over_seeds([math.fsum(part(gap)) / len(part(gap)) for gap in gaps])

    return OverFitting(
        early=mean(lambda gap: gap[: math.ceil(len(gap) / 3)]),
        late=mean(lambda gap: gap[-math.ceil(len(gap) / 3) :]),
    )


def _seconds_at(arm: Arm, epoch: int) -> float | None:
    return next((point.seconds for point in arm.validation if point.epoch == epoch), None)


def _student80(freedom: int) -> float:
    return STUDENT80[freedom - 1] if freedom <= len(STUDENT80) else NORMAL80
