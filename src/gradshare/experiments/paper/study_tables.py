"""The tables of a study, as plain rows of text: column to cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradshare.experiments import wording
from gradshare.experiments.paper.conditions import Condition, each_at_its_best
from gradshare.experiments.paper.evidence import (
    LONG,
    Difference,
    Pace,
    difference,
    fits,
    mean_test_accuracy,
    paces,
    papers_speedups,
)
from gradshare.experiments.paper.plan import Study
from gradshare.experiments.results import ORIGINAL, RATE_CONTROL, Arm
from gradshare.experiments.seeds import over_seeds
from gradshare.experiments.table import Row

YARDSTICKS: Final = (ORIGINAL, RATE_CONTROL)
"""What every arm is compared with: the method without sharing, and with all of it but that."""


def tables_of(study: Study, conditions: Sequence[Condition]) -> list[tuple[str, list[Row]]]:
    """Every table of a study: what it shows, and its rows.

    Args:
        study: what it is.
        conditions: its finished comparisons.
    """
    tables = [
        (
            "Test accuracy, and differences task by task; in brackets the smallest difference that "
            "would have been seen about four times in five",
            accuracy_rows(conditions),
        )
    ]
    if study.sweep == "inner_lr":  # of a larger task batch an arm sees more, which is no choice
        tables.append(
            (
                "The same of each arm at the setting that is best for it by validation accuracy",
                best_rows(conditions),
            )
        )
    return [
        *tables,
        (
            "Iterations to shares of the original’s gain over chance, on smoothed validation "
            "curves, and how much sooner than the original",
            pace_rows(conditions),
        ),
        (
            "Accuracy on support / query images after adaptation, on validation tasks, and the gap "
            "between them: the inner loop’s over-fitting; and where the gates ended",
            mechanism_rows(conditions),
        ),
    ]


def accuracy_rows(conditions: Sequence[Condition]) -> list[Row]:
    """Test accuracy of every arm, and its differences to the original and to the control."""
    return [
        {**condition.labels, "arm": arm, **_accuracy(condition, arm)}
        for condition in conditions
        for arm in condition.arms
    ]


def best_rows(conditions: Sequence[Condition]) -> list[Row]:
    """The same where every arm is at the setting of a sweep that is best for it."""
    best, taken = each_at_its_best(conditions)
    return [
        {"arm": arm, "at": " ".join(taken[arm].labels.values()), **_accuracy(best, arm)}
        for arm in best.arms
    ]


def pace_rows(conditions: Sequence[Condition]) -> list[Row]:
    """How soon every arm reached 80, 90 and 95 % of the original's gain over chance."""
    rows = []
    for condition in conditions:
        for arm in condition.arms:
            found = paces(condition, arm, conditions)
            row = {**condition.labels, "arm": arm}
            row["iterations to 80 / 90 / 95 %"] = " / ".join(
                _iterations(pace.iterations, pace.at_once) for pace in found
            )
            sooner = {
                "iterations": [_sooner(pace.ratios, pace) for pace in found],
                "seconds": [_sooner(pace.seconds, pace) for pace in found],
            }
            for unit, shares in sooner.items():
                row[f"sooner, in {unit}"] = (
                    wording.NOTHING if arm == ORIGINAL else " / ".join(shares)
                )
            row["paper’s speed-up"] = (
                wording.NOTHING if arm == ORIGINAL else _papers(condition, arm)
            )
            rows.append(row)
    return rows


def mechanism_rows(conditions: Sequence[Condition]) -> list[Row]:
    """Over-fitting of the inner loop early and late, and where the gates ended."""
    rows = []
    for condition in conditions:
        for arm in condition.arms:
            runs = condition.runs(arm)
            row = {**condition.labels, "arm": arm}
            for when, fit in zip(("first", "last"), fits(runs) or (None, None), strict=True):
                row[f"{when} third"] = (
                    wording.NOTHING
                    if fit is None
                    else f"{100 * fit.support:.1f} / {100 * fit.query:.1f}, "
                    f"gap {100 * fit.gap:.1f} %"
                )
            row["σ(m) at the end"] = _gate(runs, "m")
            row["σ(λ) at the end"] = _gate(runs, "lambda_")
            rows.append(row)
    return rows


def _accuracy(condition: Condition, arm: str) -> Row:
    runs = condition.runs(arm)
    accuracy = mean_test_accuracy(runs)
    row = {
        "seeds": str(len(runs)),
        "outcome": _outcome(runs),
        "test accuracy": wording.NOTHING if accuracy is None else wording.accuracy(accuracy),
    }
    for yardstick in YARDSTICKS:
        found = None if arm == yardstick else difference(condition, arm, yardstick)
        row[f"− {yardstick}"] = wording.NOTHING if found is None else _difference(found, len(runs))
    last = [100 * run.validation[-1].accuracy for run in runs if run.validation]
    row["last validation"] = f"{math.fsum(last) / len(last):.1f} %" if last else wording.NOTHING
    return row


def _outcome(runs: Sequence[Arm]) -> str:
    """Such as "trained", or "trained in 2, diverged in 1"."""
    kinds = ("trained", "not trained", "diverged")
    found = {kind: sum(run.outcome == kind for run in runs) for kind in kinds}
    found = {kind: count for kind, count in found.items() if count}
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{kind} in {count}" for kind, count in found.items())


def _difference(found: Difference, seeds: int) -> str:
    text = wording.difference(found.interval, found.detectable)
    return text if found.count == seeds else f"{text}, {wording.counted(found.count, 'seed')}"


def _iterations(iterations: Sequence[int | None], at_once: Sequence[bool]) -> str:
    """The mean over the seeds that got there, and how many did if not all; "≤" where one was there
    at its first validation.
    """
    known = [count for count in iterations if count is not None]
    if not known:
        return wording.NOTHING
    text = f"{'≤ ' if any(at_once) else ''}{round(math.fsum(known) / len(known)):,}"
    return _of_seeds(text, len(known), len(iterations))


def _sooner(ratios: Sequence[float], pace: Pace) -> str:
    """(original - arm) / arm of the geometric mean, and over how many seeds if not all."""
    if not ratios:
        return wording.NOTHING
    mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
    text = f"{pace.bound} {wording.speedup(mean - 1)}".lstrip()
    return _of_seeds(text, len(ratios), len(pace.iterations))


def _papers(condition: Condition, arm: str) -> str:
    ratios = papers_speedups(condition, arm)
    known = [ratio for ratio in ratios if ratio is not None]
    if not ratios:
        return wording.NOTHING
    if not known:
        longest = max(len(run.validation) for run in condition.runs(arm))
        return "too short" if longest < LONG else "not flat"
    text = wording.mean_speedup(over_seeds(known))
    return _of_seeds(text, len(known), len(ratios))


def _of_seeds(text: str, count: int, seeds: int) -> str:
    """How many seeds a mean is over, if not all."""
    return text if count == seeds else f"{text} ({count} of {seeds})"


def _gate(runs: Sequence[Arm], field: str) -> str:
    last = [getattr(run.sharing[-1], field) for run in runs if run.sharing]
    known = [value for value in last if value is not None]
    if not known:
        return wording.NOTHING
    mean = over_seeds(known)
    return f"{mean.mean:.3f}" if mean.ci95 is None else f"{mean.mean:.3f} ± {mean.ci95:.3f}"
