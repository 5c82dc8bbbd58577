"""Differences between arms, paired by seed and task, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradshare.comparison.results import ArmRun, Results, Values
from gradshare.training.statistics import Z95, Interval, confidence95, student95

# The standard normal quantile of a power of 80 %.
Z80 = 0.8416
GAIN = 0.95


@dataclass(frozen=True)
class Difference:
    """A metric of first − second, over the seeds in which both trained.

    Attributes:
        first: an arm.
        second: another.
        metric: the metric's name.
        interval: the mean difference; over seeds and test tasks of several seeds, over test tasks
            of one. None if no seed has both.
        per_seed: the mean difference in each seed.
        better: 1 if first is better and the interval excludes 0, −1 if it is worse, else 0.
    """

    first: str
    second: str
    metric: str
    interval: Interval | None
    per_seed: tuple[float, ...]
    better: int

    @property
    def detectable(self) -> float | None:
        """The smallest difference that would have been seen with a power of 80 %."""
        if self.interval is None or self.interval.ci95 is None:
            return None
        return self.interval.ci95 * (1 + Z80 / Z95)


def difference(results: Results, first: str, second: str, metric: str | None = None) -> Difference:
    """Compare two arms by a metric; by default the score."""
    name = metric or results.score
    others = {run.seed: run for run in results.of(second) if run.trained}
    rows = [
        np.asarray(run.test[name]) - np.asarray(others[run.seed].test[name])
        for run in results.of(first)
        if run.trained and run.seed in others
    ]
    interval = over_seeds_and_tasks(rows) if rows else None
    better = 0
    if interval is not None and interval.ci95 is not None and abs(interval.mean) > interval.ci95:
        better = 1 if (interval.mean > 0) == (results.metric(name).best == "high") else -1
    return Difference(
        first, second, name, interval, tuple(float(row.mean()) for row in rows), better
    )


def test_score(runs: Sequence[ArmRun], metric: str) -> Interval | None:
    """The mean of a metric over the runs of an arm that were tested."""
    rows = [np.asarray(run.test[metric]) for run in runs if run.test and run.outcome != "diverged"]
    return over_seeds_and_tasks(rows) if rows else None


test_score.__test__ = False  # type: ignore[attr-defined]  # pytest collects by this prefix


def over_seeds_and_tasks(rows: Sequence[Values]) -> Interval:
    """The mean of values (tasks,), one row for each seed, with the same tasks in each.

    The variance over seeds of their means and that over tasks of theirs are added. The interaction
    of seeds and tasks is in both, so the interval errs on the wide side. A single seed says
    nothing about others: the interval is then over tasks.
    """
    values = np.stack(rows)
    by_task = confidence95(values.mean(0).tolist())
    if len(values) == 1:
        return by_task
    by_seed = student95(values.mean(1).tolist())
    parts = [interval.ci95 for interval in (by_task, by_seed) if interval.ci95 is not None]
    return Interval(by_seed.mean, math.hypot(*parts), len(values))


def epochs_to_gain(results: Results, run: ArmRun) -> int | None:
    """The first epoch in which a run's validation score reaches 95 % of the baseline's gain.

    The gain is that of the baseline's run of the same seed, from chance (or from its first epoch,
    where there is no chance) to its best.
    """
    baseline = next((r for r in results.of(results.baseline) if r.seed == run.seed), None)
    if baseline is None or not baseline.history or baseline.outcome != "trained":
        return None
    metric, score = results.metric(results.score), results.score
    scores = [record.mean(score) for record in baseline.history]
    start = metric.chance if metric.chance is not None else scores[0]
    level = start + GAIN * (min(scores, key=metric.rank) - start)
    reached = (r.epoch for r in run.history if metric.rank(r.mean(score)) <= metric.rank(level))
    return next(reached, None)
