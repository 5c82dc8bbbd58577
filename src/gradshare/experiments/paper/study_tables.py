"""The tables of a study, as plain rows of text: column to cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradshare.experiments import wording
from gradshare.experiments.paper.conditions import Condition
from gradshare.experiments.paper.evidence import (
    Difference,
    difference,
    mean_test_accuracy,
    over_fitting,
    paces,
    papers_speedups,
)
from gradshare.experiments.results import ORIGINAL, RATE_CONTROL, Arm
from gradshare.experiments.seeds import over_seeds
from gradshare.experiments.table import Row
from gradshare.training.statistics import Interval

YARDSTICKS: Final = (ORIGINAL, RATE_CONTROL)
"""What every arm is compared with: the method without sharing, and with all of it but that."""


def accuracy_rows(conditions: Sequence[Condition]) -> list[Row]:
    """Test accuracy of every arm, and its differences, task by task, to the original and to the
    control; in brackets the smallest difference that could have been seen.
    """
    rows = []
    for condition in conditions:
        for arm in condition.arms:
            runs = condition.runs(arm)
            accuracy = mean_test_accuracy(runs)
            row = _head(condition, arm)
            row["seeds"] = str(len(runs))
            row["outcome"] = _outcome(runs)
            row["test accuracy"] = (
                wording.NOTHING if accuracy is None else wording.accuracy(accuracy)
            )
            for yardstick in YARDSTICKS:
                found = None if arm == yardstick else difference(condition, arm, yardstick)
                row[f"− {yardstick}"] = wording.NOTHING if found is None else _difference(found)
            rows.append(row)
    return rows


def pace_rows(conditions: Sequence[Condition]) -> list[Row]:
    """How soon every arm reached 80, 90 and 95 % of the original's gain over chance."""
    rows = []
    for condition in conditions:
        for arm in condition.arms:
            row = _head(condition, arm)
            found = paces(condition, arm)
            row["iterations to 80 / 90 / 95 %"] = " / ".join(
                _mean_iterations(p.iterations) for p in found
            )
            own = arm == ORIGINAL
            row["sooner, in iterations"] = (
                wording.NOTHING if own else " / ".join(_ratio(p.speedup) for p in found)
            )
            row["sooner, in seconds"] = (
                wording.NOTHING if own else " / ".join(_ratio(p.wall) for p in found)
            )
            row["paper’s speed-up"] = wording.NOTHING if own else _papers(condition, arm)
            rows.append(row)
    return rows


def mechanism_rows(conditions: Sequence[Condition]) -> list[Row]:
    """Over-fitting of the inner loop early and late, and where the gates ended."""
    rows = []
    for condition in conditions:
        for arm in condition.arms:
            runs = condition.runs(arm)
            fit = over_fitting(runs)
            row = _head(condition, arm)
            row["over-fitting, first third"] = (
                wording.NOTHING if fit is None else wording.points(fit.early)
            )
            row["over-fitting, last third"] = (
                wording.NOTHING if fit is None else wording.points(fit.late)
            )
            row["σ(m) at the end"] = _gate(runs, "m")
            row["σ(λ) at the end"] = _gate(runs, "lambda_")
            rows.append(row)
    return rows


def _head(condition: Condition, arm: str) -> Row:
    return {**condition.labels, "arm": arm}


def _outcome(runs: Sequence[Arm]) -> str:
    """Such as "trained", or "trained in 2 of 3, diverged in 1"."""
    kinds = {
        kind: sum(run.outcome == kind for run in runs)
        for kind in ("trained", "not trained", "diverged")
    }
    found = {kind: count for kind, count in kinds.items() if count}
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{kind} in {count}" for kind, count in found.items())


def _difference(found: Difference) -> str:
    text = wording.points(found.interval)
    if found.detectable is None:
        return text
    return f"{text} ({100 * found.detectable:.1f})"


def _mean_iterations(iterations: Sequence[int | None]) -> str:
    """The mean over the seeds that got there, and how many did if not all."""
    known = [count for count in iterations if count is not None]
    if not known:
        return wording.NOTHING
    text = f"{round(math.fsum(known) / len(known)):,}"
    return text if len(known) == len(iterations) else f"{text} ({len(known)} of {len(iterations)})"


def _ratio(found: Interval | None) -> str:
    return wording.NOTHING if found is None else wording.mean_speedup(found)


def _papers(condition: Condition, arm: str) -> str:
    ratios = papers_speedups(condition, arm)
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return "not flat"
    text = wording.mean_speedup(over_seeds(known))
    return text if len(known) == len(ratios) else f"{text} ({len(known)} of {len(ratios)})"


def _gate(runs: Sequence[Arm], field: str) -> str:
    last = [getattr(run.sharing[-1], field) for run in runs if run.sharing]
    known = [value for value in last if value is not None]
    if not known:
        return wording.NOTHING
    mean = over_seeds(known)
    return f"{mean.mean:.3f}" if mean.ci95 is None else f"{mean.mean:.3f} ± {mean.ci95:.3f}"
