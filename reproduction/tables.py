"""The tables of a study, as rows of text by column."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from gradshare.config import ORIGINAL
from gradshare.training.statistics import student95
from reproduction import wording
from reproduction.conditions import (
    YARDSTICKS,
    Condition,
    Difference,
    change,
    difference,
    each_at_its_best,
    mean_test_accuracy,
)
from reproduction.pace import LONG, Pace, cost_of_epoch, fits, paces, papers_speedups
from reproduction.plan import Study
from reproduction.records import Run
from reproduction.wording import NOTHING, bracketed, of_seeds

Row = dict[str, str]


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table, ending in a newline."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables_of(study: Study, conditions: Sequence[Condition]) -> list[tuple[str, list[Row]]]:
    """Each table of a study: its caption and its rows.

    Args:
        study: what it is.
        conditions: its finished comparisons.
    """
    accuracies = (
        "Test accuracy, and differences task by task; in brackets the smallest difference that "
        "would have been seen about four times in five"
    )
    pace = (
        "Iterations to shares of the original’s gain over chance, on smoothed validation curves, "
        "and how much sooner than the original"
    )
    fit = (
        "Accuracy on support / query images after adaptation, on validation tasks, and the gap "
        "between them: the inner loop’s over-fitting; and where the gates ended"
    )
    pace_of = partial(_pace, study=conditions)
    tables = [(accuracies, _rows(conditions, _accuracy))]
    soon = [(pace, _rows(conditions, pace_of))]
    if (
        study.sweep == "inner_lr"
    ):  # not task_batch: a larger one costs more, so it is not a free choice
        best, taken = each_at_its_best(conditions)
        rows = [{"arm": arm, "at": _at(taken[arm]), **_accuracy(best, arm)} for arm in best.arms]
        at_best = "at the setting that is best for it"
        tables.append((f"The same of each arm {at_best} by validation accuracy", rows))
        soon.append((f"{pace}, each {at_best}", _rows([best], pace_of)))
    if study.sweep == "task_batch":  # the paper claims that it grows with the number of tasks
        first, *larger = conditions
        if rows := _change_rows(larger, first):
            caption = f"How much larger these differences are than at {_at(first)}"
            tables.append((f"{caption}, seed by seed and task by task", rows))
    return [*tables, *soon, (fit, _rows(conditions, _fit))]


def _rows(conditions: Sequence[Condition], columns: Callable[[Condition, str], Row]) -> list[Row]:
    """A row for each arm of each condition."""
    return [
        {**condition.labels, "arm": arm, **columns(condition, arm)}
        for condition in conditions
        for arm in condition.arms
    ]


def _accuracy(condition: Condition, arm: str) -> Row:
    """Test accuracy of an arm, and its differences to the original and to the control."""
    runs = condition.runs(arm)
    accuracy = mean_test_accuracy(runs)
    last = [run.validation[-1] for run in runs if run.validation]
    validated = NOTHING
    if last:
        mean = wording.accuracy(student95(last)._replace(ci95=None))
        validated = bracketed(mean, of_seeds(len(last), len(runs)))
    return {
        "seeds": str(len(runs)),
        "outcome": _outcome(runs),
        "test accuracy": NOTHING if accuracy is None else wording.accuracy(accuracy),
        **_against_yardsticks(condition, arm, partial(difference, condition)),
        "last validation": validated,
    }


def _change_rows(conditions: Sequence[Condition], first: Condition) -> list[Row]:
    """How much larger the differences between arms are in some conditions than in the first."""

    def changes(condition: Condition, arm: str) -> Row:
        return _against_yardsticks(condition, arm, partial(change, condition, first))

    return [row for row in _rows(conditions, changes) if row["arm"] != ORIGINAL]


def _against_yardsticks(
    condition: Condition, arm: str, compared: Callable[[str, str], Difference | None]
) -> Row:
    """A column for each yardstick.

    Args:
        condition: of the arm.
        arm: its name.
        compared: compares two arms by their names.
    """
    row = dict.fromkeys((f"− {yardstick}" for yardstick in YARDSTICKS), NOTHING)
    for yardstick in YARDSTICKS:
        found = None if arm == yardstick else compared(arm, yardstick)
        if found is not None:
            text = wording.difference(found)
            some = found.seeds < len(condition.runs(arm))
            seeds = f", {wording.counted(found.seeds, 'seed')}" if some else ""
            row[f"− {yardstick}"] = f"{text}{seeds}"
    return row


def _at(condition: Condition) -> str:
    return " ".join(condition.labels.values())


def _outcome(runs: Sequence[Run]) -> str:
    """Such as "trained", or "trained in 2, diverged in 1"."""
    counts = Counter[str](run.outcome for run in runs)
    if len(counts) == 1:
        return runs[0].outcome
    kinds = ("trained", "not trained", "diverged")
    return ", ".join(f"{kind} in {counts[kind]}" for kind in kinds if counts[kind])


def _pace(condition: Condition, arm: str, study: Sequence[Condition]) -> Row:
    """How soon an arm reached 80, 90 and 95 % of the original's gain over chance.

    Args:
        condition: in which.
        arm: its name.
        study: all conditions of the study, from which the time of an epoch is known.
    """
    found = paces(condition, arm)
    cost = cost_of_epoch(condition, arm, study)
    columns = {
        "sooner, in iterations": " / ".join(_sooner(pace, 1.0) for pace in found),
        "sooner, in seconds": " / ".join(_sooner(pace, cost) for pace in found),
        "paper’s speed-up": _papers(condition, arm),
    }
    return {
        "iterations to 80 / 90 / 95 %": " / ".join(_iterations(pace) for pace in found),
        **(dict.fromkeys(columns, NOTHING) if arm == ORIGINAL else columns),
    }


def _iterations(pace: Pace) -> str:
    """The mean over the seeds; "≤" where one was there at its first validation."""
    if (otherwise := _absent(pace)) is not None:
        return otherwise
    known = [count for count in pace.iterations if count is not None]
    text = f"{'≤ ' if pace.at_once else ''}{round(math.fsum(known) / len(known)):,}"
    return bracketed(text, of_seeds(len(known), pace.seeds))


def _sooner(pace: Pace, cost: float | None) -> str:
    """(original - arm) / arm of the geometric mean, with its interval unless it is a bound.

    Args:
        pace: of the arm.
        cost: of the arm's iteration, where the original's costs 1; None if it is not known.
    """
    if (otherwise := _absent(pace)) is not None:
        return otherwise
    if cost is None or not pace.ratios:
        return NOTHING
    seeds = of_seeds(len(pace.ratios), pace.seeds)
    ratios = [ratio / cost for ratio in pace.ratios]
    return f"{pace.bound} {wording.mean_speedup(ratios, seeds, interval=not pace.bound)}".lstrip()


def _absent(pace: Pace) -> str | None:
    """The text in place of a number where the arm did not get there in each seed."""
    known = len(pace.iterations)
    if not known:
        return NOTHING
    if not pace.arrived:
        return bracketed("never", of_seeds(known, pace.seeds))
    return None if pace.arrived == known else f"{pace.arrived} of {known} got there"


def _papers(condition: Condition, arm: str) -> str:
    """The paper's speed-up, or why it has no meaning."""
    ratios = papers_speedups(condition, arm)
    known = [1 + ratio for ratio in ratios if ratio is not None]
    if not ratios:
        return NOTHING
    if not known:
        return "too short" if max(r.epochs for r in condition.runs(arm)) < LONG else "not flat"
    return wording.mean_speedup(known, of_seeds(len(known), len(ratios)))


def _fit(condition: Condition, arm: str) -> Row:
    """Over-fitting of the inner loop early and late, and where the gates ended."""
    runs = condition.runs(arm)
    thirds = dict.fromkeys(("first third", "last third"), NOTHING)
    for third, (support, query) in zip(thirds, fits(runs), strict=False):
        both = f"{100 * support:.1f} / {100 * query:.1f}"
        thirds[third] = f"{both}, gap {100 * (support - query):.1f} %"
    gates = {"σ(m) at the end": _gate(runs, "m"), "σ(λ) at the end": _gate(runs, "lambda")}
    return thirds | gates


def _gate(runs: Sequence[Run], name: str) -> str:
    last = [values[-1] for run in runs if (values := run.gate(name))]
    if not last:
        return NOTHING
    mean = student95(last)
    return f"{mean.mean:.3f}" if mean.ci95 is None else f"{mean.mean:.3f} ± {mean.ci95:.3f}"
