"""Differences between arms, paired by seed and task, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from gradshare.comparison.results import ArmRun, Results, Values
from gradshare.training.records import best_record
from gradshare.training.statistics import Z95, Interval, over_seeds_and_tasks

POWER = 0.8
GAIN = 0.95


@dataclass(frozen=True)
class Difference:
    """The score of first − second, over the seeds in which both trained.

    Attributes:
        rows: the differences by task (tasks,), one row for each of these seeds.
        interval: their mean; over seeds and test tasks of several seeds, over test tasks of one.
            None if no seed has both.
        better: 1 if first is better and the interval excludes 0, −1 if it is worse, else 0.
    """

    first: str
    second: str
    rows: tuple[Values, ...]
    interval: Interval | None
    better: int

    @property
    def seeds(self) -> int:
        """The number of seeds in which both trained."""
        return len(self.rows)

    @property
    def detectable(self) -> float | None:
        """The smallest difference that would have been seen with a power of 80 %."""
        if self.interval is None or self.interval.ci95 is None:
            return None
        return self.interval.ci95 * (1 + NormalDist().inv_cdf(POWER) / Z95)


def difference(results: Results, first: str, second: str) -> Difference:
    """Compare two arms by the score."""
    others = {run.seed: run for run in results.of(second) if run.trained}
    rows = tuple(
        np.subtract(run.test[results.score], others[run.seed].test[results.score])
        for run in results.of(first)
        if run.trained and run.seed in others
    )
    interval = over_seeds_and_tasks(rows) if rows else None
    better = 0
    if interval is not None and interval.ci95 is not None and abs(interval.mean) > interval.ci95:
        high = results.metrics[results.score].best == "high"
        better = 1 if (interval.mean > 0) == high else -1
    return Difference(first, second, rows, interval, better)


def counted(runs: Sequence[ArmRun]) -> list[ArmRun]:
    """The runs of an arm that its test values are means over: those that trained. If none did,
    those that were tested and did not diverge.
    """
    trained = [run for run in runs if run.trained]
    return trained or [run for run in runs if run.test and run.outcome != "diverged"]


def mean_score(runs: Sequence[ArmRun], metric: str) -> Interval | None:
    """The mean of a metric over the runs of an arm that count; None if there are none."""
    rows = [np.asarray(run.test[metric]) for run in counted(runs)]
    return over_seeds_and_tasks(rows) if rows else None


def epochs_to_gain(results: Results, run: ArmRun) -> int | None:
    """The first epoch in which a run's validation score reaches 95 % of the baseline's gain.

    The gain is that of the baseline's run of the same seed, to its best, from chance. A metric
    without chance counts from the first epoch.
    """
    baseline = next((r for r in results.of(results.baseline) if r.seed == run.seed), None)
    if baseline is None or not baseline.history or baseline.outcome != "trained":
        return None
    metric, score = results.metrics[results.score], results.score
    start = metric.chance if metric.chance is not None else baseline.history[0].mean(score)
    best = best_record(baseline.history, metric, score).mean(score)
    level = metric.rank(start + GAIN * (best - start))
    return next((r.epoch for r in run.history if metric.rank(r.mean(score)) <= level), None)
