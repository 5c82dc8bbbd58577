"""The tables of a study, as plain rows of text: column to cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from gradshare.config import ORIGINAL, RATE_CONTROL
from gradshare.experiments import wording
from gradshare.experiments.paper.conditions import ARM, SEED, Condition, each_at_its_best
from gradshare.experiments.paper.evidence import (
    LONG,
    Difference,
    Pace,
    change,
    difference,
    fits,
    mean_test_accuracy,
    paces,
    papers_speedups,
)
from gradshare.experiments.paper.plan import Study
from gradshare.experiments.results import Arm
from gradshare.experiments.speedup import ratio_interval
from gradshare.experiments.table import Row
from gradshare.training.statistics import student95

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
    pace = (
        "Iterations to shares of the original’s gain over chance, on smoothed validation curves, "
        "and how much sooner than the original"
    )
    soon = [(pace, pace_rows(conditions, conditions))]
    if study.sweep == "inner_lr":  # of a larger task batch an arm sees more, which is no choice
        best, taken = each_at_its_best(conditions)
        tables.append(
            (
                "The same of each arm at the setting that is best for it by validation accuracy",
                best_rows(study, conditions, best, taken),
            )
        )
        soon.append(
            (f"{pace}, each at the setting that is best for it", pace_rows([best], conditions))
        )
    if study.sweep == "task_batch":  # the paper's claim: it grows with the number of tasks
        first, *larger = conditions
        if rows := change_rows(larger, first):
            caption = f"How much larger these differences are than at {_at(first)}"
            tables.append((f"{caption}, seed by seed and task by task", rows))
    return [
        *tables,
        *soon,
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


def change_rows(conditions: Sequence[Condition], first: Condition) -> list[Row]:
    """How much larger the differences between arms are in some conditions than in the first."""
    return [
        {
            **condition.labels,
            "arm": arm,
            **_against_yardsticks(condition, arm, partial(change, condition, first)),
        }
        for condition in conditions
        for arm in condition.arms
        if arm != ORIGINAL
    ]


def best_rows(
    study: Study, conditions: Sequence[Condition], best: Condition, taken: Mapping[str, Condition]
) -> list[Row]:
    """The same where every arm is at the setting of a sweep that is best for it; where not all that
    are planned for it are finished, of how many.

    Args:
        study: the sweep.
        conditions: its finished comparisons.
        best: the comparison of each arm at its best.
        taken: by the arm's name the condition that it was taken from.
    """
    return [
        {
            "arm": arm,
            "at": ", ".join(filter(None, (_at(taken[arm]), _chosen_among(study, conditions, arm)))),
            **_accuracy(best, arm),
        }
        for arm in best.arms
    ]


def _at(condition: Condition) -> str:
    return " ".join(condition.labels.values())


def _chosen_among(study: Study, conditions: Sequence[Condition], arm: str) -> str:
    """Such as "best of 2 of 6 settings"; empty where the arm is finished at all of them."""
    planned = {
        " ".join(label for axis, label in labels.items() if axis not in (ARM, SEED))
        for labels in study.combinations()
        if labels.get(ARM) == arm
    }
    finished = {_at(condition) for condition in conditions if condition.runs(arm)}
    if planned <= finished:
        return ""
    return f"best of {len(finished)} of {wording.counted(len(planned | finished), 'setting')}"


def pace_rows(conditions: Sequence[Condition], study: Sequence[Condition]) -> list[Row]:
    """How soon every arm reached 80, 90 and 95 % of the original's gain over chance.

    Args:
        conditions: of which.
        study: all conditions of their study, from which the time of an epoch is told.
    """
    rows = []
    for condition in conditions:
        for arm in condition.arms:
            found = paces(condition, arm, study)
            row = {**condition.labels, "arm": arm}
            row["iterations to 80 / 90 / 95 %"] = " / ".join(_iterations(pace) for pace in found)
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
    row |= _against_yardsticks(condition, arm, partial(difference, condition))
    last = [run.validation[-1].accuracy for run in runs if run.validation]
    row["last validation"] = (
        _bracketed(wording.percent(math.fsum(last) / len(last)), _of_seeds(len(last), len(runs)))
        if last
        else wording.NOTHING
    )
    return row


def _against_yardsticks(
    condition: Condition, arm: str, compared: Callable[[str, str], Difference | None]
) -> Row:
    """A column for each yardstick: of an arm and it, by their names, what is compared."""
    row = {}
    for yardstick in YARDSTICKS:
        found = None if arm == yardstick else compared(arm, yardstick)
        row[f"− {yardstick}"] = (
            wording.NOTHING if found is None else _difference(found, len(condition.runs(arm)))
        )
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


def _iterations(pace: Pace) -> str:
    """The mean over the seeds; "≤" where one was there at its first validation."""
    if (otherwise := _absent(pace)) is not None:
        return otherwise
    known = [count for count in pace.iterations if count is not None]
    text = f"{'≤ ' if any(pace.at_once) else ''}{round(math.fsum(known) / len(known)):,}"
    return _bracketed(text, _of_seeds(len(known), len(pace.told)))


def _sooner(ratios: Sequence[float], pace: Pace) -> str:
    """(original - arm) / arm of the geometric mean, with its interval unless it is a bound."""
    if (otherwise := _absent(pace)) is not None:
        return otherwise
    if not ratios:
        return wording.NOTHING
    return f"{pace.bound} {_mean_ratio(ratios, len(pace.told), bare=bool(pace.bound))}".lstrip()


def _absent(pace: Pace) -> str | None:
    """What stands in place of a figure where the arm did not get there in every seed."""
    told = sum(pace.told)
    if not told:
        return wording.NOTHING
    if not pace.arrived:
        return _bracketed("never", _of_seeds(told, len(pace.told)))
    return None if pace.arrived == told else f"{pace.arrived} of {told} got there"


def _papers(condition: Condition, arm: str) -> str:
    ratios = papers_speedups(condition, arm)
    known = [1 + ratio for ratio in ratios if ratio is not None]
    if not ratios:
        return wording.NOTHING
    if not known:
        longest = max(len(run.validation) for run in condition.runs(arm))
        return "too short" if longest < LONG else "not flat"
    return _mean_ratio(known, len(ratios))


def _mean_ratio(ratios: Sequence[float], seeds: int, *, bare: bool = False) -> str:
    """Their geometric mean less 1 as "41 % (−3 to 105)", or "41 % (−3 to 105, 2 of 3)".

    Args:
        ratios: original / arm, of one seed each.
        seeds: how many there are.
        bare: without the interval.
    """
    found = ratio_interval(ratios)
    interval = ""
    if not bare and found.low is not None and found.high is not None:
        ends = [wording.speedup(end - 1).removesuffix(" %") for end in (found.low, found.high)]
        interval = " to ".join(ends)
    return _bracketed(wording.speedup(found.ratio - 1), interval, _of_seeds(len(ratios), seeds))


def _bracketed(text: str, *words: str) -> str:
    """A text with more in brackets, where there is more to say."""
    said = ", ".join(filter(None, words))
    return f"{text} ({said})" if said else text


def _of_seeds(count: int, seeds: int) -> str:
    """How many seeds something is of, if not of all."""
    return "" if count == seeds else f"{count} of {seeds}"


def _gate(runs: Sequence[Arm], field: str) -> str:
    last = [getattr(run.sharing[-1], field) for run in runs if run.sharing]
    known = [value for value in last if value is not None]
    if not known:
        return wording.NOTHING
    mean = student95(known)
    return f"{mean.mean:.3f}" if mean.ci95 is None else f"{mean.mean:.3f} ± {mean.ci95:.3f}"
