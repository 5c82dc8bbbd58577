"""Comparisons of finished cells: those that differ only in their arm and seed are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gradshare import Interval
from gradshare.config import ORIGINAL, RATE_CONTROL
from gradshare.training.statistics import over_seeds_and_tasks
from reproduction.plan import ARM, Cell, Plan
from reproduction.records import Run
from reproduction.statistics import Floats, detectable_difference

YARDSTICKS: Final = (ORIGINAL, RATE_CONTROL)
"""The arms that others are compared with. The control has all of sharing but the gradient."""

Results = Mapping[Cell, Run]


@dataclass(frozen=True)
class Condition:
    """The finished cells of a study that differ only in their arm and seed.

    Attributes:
        labels: what they have in common, by axis.
        arms: the runs of each arm, in the order of their seeds; at most one a seed.
    """

    labels: Mapping[str, str]
    arms: Mapping[str, tuple[Run, ...]]

    @property
    def first_run(self) -> Run:
        """The first run of the first arm, for what all runs have in common."""
        return next(iter(self.arms.values()))[0]

    def runs(self, arm: str) -> tuple[Run, ...]:
        """The runs of an arm."""
        return self.arms.get(arm, ())

    def pairs(self, first: str, second: str) -> list[tuple[Run, Run]]:
        """The runs of two arms with the same seed."""
        others = {run.seed: run for run in self.runs(second)}
        return [(run, others[run.seed]) for run in self.runs(first) if run.seed in others]


def with_borrowed(plan: Plan, results: Results) -> dict[Cell, Run]:
    """The finished cells of each study: first those that it borrows, with the labels that they have
    in this study, then its own.
    """
    shown = {}
    for name, study in plan.studies.items():
        if (loan := study.borrows) is not None:
            for cell, run in results.items():
                if set(loan.of) <= {cell.study, *cell.labels.values()}:
                    known = {**cell.labels, **loan.labels}
                    labels = {axis: known[axis] for axis in study.axes}
                    shown[replace(cell, study=name, labels=labels, borrowed=True)] = run
        shown |= {cell: run for cell, run in results.items() if cell.study == name}
    return shown


def conditions(plan: Plan, results: Results, study: str) -> list[Condition]:
    """The comparisons of a study, in the order of the plan; those of a sweep by its values."""
    grouped: dict[tuple[tuple[str, str], ...], list[tuple[str, Run]]] = {}
    for cell, run in results.items():
        if cell.study == study:
            grouped.setdefault(tuple(cell.common.items()), []).append((cell.labels[ARM], run))
    every = [_condition(dict(common), runs) for common, runs in grouped.items()]
    sweep = plan.studies[study].sweep
    return every if sweep is None else sorted(every, key=lambda one: swept_value(one, sweep))


def _condition(labels: Mapping[str, str], runs: Sequence[tuple[str, Run]]) -> Condition:
    arms: dict[str, list[Run]] = {}
    for arm, run in sorted(runs, key=lambda one: one[1].seed):
        arms.setdefault(arm, []).append(run)
    return Condition(labels, {arm: tuple(of) for arm, of in arms.items()})


def swept_value(condition: Condition, setting: str) -> float:
    """The value of a sweep's setting in a condition; the inner rate is what inner steps take."""
    settings = condition.first_run.settings
    scale = settings["inner_lr_scale"] if setting == "inner_lr" else 1
    return float(settings[setting] * scale)


def each_at_its_best(swept: Sequence[Condition]) -> tuple[Condition, dict[str, Condition]]:
    """Compare each arm at the setting of a sweep that is best for it.

    The setting is chosen by validation accuracy, so the test accuracy is unbiased. Seeds differ in
    difficulty, so settings are compared on the seeds that the arm has at all of them, if any.

    Returns:
        The comparison, and for each arm the condition that it was taken from.
    """
    names = dict.fromkeys(arm for condition in swept for arm in condition.arms)
    chosen = {arm: _best(swept, arm) for arm in names}
    runs = [(arm, run) for arm, condition in chosen.items() for run in condition.runs(arm)]
    return _condition({}, runs), chosen


def _best(swept: Sequence[Condition], arm: str) -> Condition:
    """The condition in which an arm has the highest validation accuracy."""
    having = [condition for condition in swept if condition.runs(arm)]
    seeds = set[int].intersection(*({r.seed for r in one.runs(arm)} for one in having))

    def validated(condition: Condition) -> float:
        runs = [run for run in condition.runs(arm) if not seeds or run.seed in seeds]
        return math.fsum(run.best.mean if run.best else run.chance for run in runs) / len(runs)

    return max(having, key=validated)


@dataclass(frozen=True)
class Difference:
    """One arm's test accuracy minus another's.

    Attributes:
        interval: the mean difference, over seeds and tasks.
        by_seed: the mean over the tasks, for each seed that has both arms.
        detectable: see `detectable_difference`.
    """

    interval: Interval
    by_seed: tuple[float, ...]
    detectable: float | None

    @property
    def seeds(self) -> int:
        """How many seeds have both arms."""
        return len(self.by_seed)


def difference(condition: Condition, first: str, second: str) -> Difference | None:
    """Test accuracy of first - second; None if no seed has both."""
    return pooled_difference([condition], first, second)


def pooled_difference(every: Sequence[Condition], first: str, second: str) -> Difference | None:
    """Test accuracy of first - second, the mean over conditions with the same test tasks.

    Conditions share their seeds and tasks and are not independent. So each seed's differences are
    averaged task by task first, and the interval is over seeds and tasks.

    Returns:
        None unless a seed has both arms in each condition.
    """
    tables = [_by_task(condition, first, second) for condition in every]
    seeds = set[int].intersection(*(set(table) for table in tables))
    return _over_seeds([np.mean([table[s] for table in tables], axis=0) for s in sorted(seeds)])


def change(after: Condition, before: Condition, first: str, second: str) -> Difference | None:
    """How much larger first - second is in one condition than in another with the same test tasks;
    None unless a seed has both arms in both.
    """
    later, earlier = (_by_task(condition, first, second) for condition in (after, before))
    return _over_seeds([later[s] - earlier[s] for s in sorted(later.keys() & earlier.keys())])


def _over_seeds(rows: Sequence[Floats]) -> Difference | None:
    if not rows:
        return None
    by_seed = tuple(float(row.mean()) for row in rows)
    return Difference(over_seeds_and_tasks(rows), by_seed, detectable_difference(np.stack(rows)))


def mean_test_accuracy(runs: Sequence[Run]) -> Interval | None:
    """The mean test accuracy of an arm's runs; None if no run was tested.

    A run that diverged before its test counts as guessing.
    """
    known = [run for run in runs if run.test is not None]
    if not known:
        return None
    return over_seeds_and_tasks([_accuracies(run, len(known[0].test or ())) for run in runs])


def _by_task(condition: Condition, first: str, second: str) -> dict[int, Floats]:
    """For each seed that has both arms, first - second on each test task (tasks,)."""
    pairs = condition.pairs(first, second)
    counts = {len(run.test) for pair in pairs for run in pair if run.test is not None}
    if len(counts) != 1:  # nothing was tested, or the tasks differ
        return {}
    (tasks,) = counts
    return {
        mine.seed: _accuracies(mine, tasks) - _accuracies(theirs, tasks) for mine, theirs in pairs
    }


def _accuracies(run: Run, tasks: int) -> Floats:
    return np.full(tasks, run.chance) if run.test is None else np.asarray(run.test)
