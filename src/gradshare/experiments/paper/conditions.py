"""Finished cells as comparisons: what differs in its arm and its seed alone is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from gradshare.experiments.paper.plan import Cell, Plan
from gradshare.experiments.results import Arm, Results
from gradshare.experiments.seeds import by_seed

ARM: Final = "arm"
SEED: Final = "seed"


@dataclass(frozen=True)
class Condition:
    """The finished cells of a study that differ in their arm and their seed alone.

    Attributes:
        study: the name of the study.
        labels: what they have in common, by the axis's name.
        parts: those cells, each with the environment of its own, its arms under their labels.
    """

    study: str
    labels: Mapping[str, str]
    parts: tuple[Results, ...]

    @cached_property
    def results(self) -> tuple[Results, ...]:
        """The parts put together: one for each seed, in the order of the seeds."""
        return by_seed(self.parts)

    def runs(self, arm: str) -> tuple[Arm, ...]:
        """The runs of an arm, one for each seed that has it."""
        return tuple(found for one in self.results if (found := one.arm(arm)) is not None)

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of all arms, in the order of the plan."""
        return tuple(dict.fromkeys(arm.name for one in self.results for arm in one.arms))


def with_borrowed(plan: Plan, results: Mapping[Cell, Results]) -> dict[Cell, Results]:
    """Finished cells as they stand in every study: its own after those that it borrows, which have
    its name and the labels that they get there.

    Args:
        plan: that they are of.
        results: what the studies' own cells came to.
    """
    standing = {}
    for name, study in plan.studies.items():
        if (loan := study.borrows) is not None:
            for cell, found in results.items():
                if set(loan.of) <= {cell.study, *cell.labels.values()}:
                    known = {**cell.labels, **loan.labels}
                    labels = {axis: known[axis] for axis in study.axes}
                    standing[replace(cell, study=name, labels=labels)] = found
        standing |= {cell: found for cell, found in results.items() if cell.study == name}
    return standing


def conditions(plan: Plan, results: Mapping[Cell, Results], study: str) -> list[Condition]:
    """The comparisons of a study, in the order of the plan, those of a sweep in that of its values.

    Args:
        plan: that the study is of.
        results: what finished cells came to.
        study: its name.
    """
    grouped: dict[tuple[tuple[str, str], ...], list[Results]] = {}
    for cell, found in results.items():
        if cell.study != study:
            continue
        labels = cell.labels.items()
        common = tuple((axis, label) for axis, label in labels if axis not in (ARM, SEED))
        (run,) = found.arms
        grouped.setdefault(common, []).append(_alone(found, run, cell.labels[ARM]))
    every = [Condition(study, dict(common), tuple(parts)) for common, parts in grouped.items()]
    sweep = plan.studies[study].sweep
    return every if sweep is None else sorted(every, key=lambda one: swept_value(one, sweep))


def swept_value(condition: Condition, setting: str) -> float:
    """What a sweep's setting is in a condition; the inner rate is what the inner steps take."""
    config = condition.parts[0].config
    value = config[setting]
    assert isinstance(value, int | float)
    if setting == "inner_lr":
        scale = config["inner_lr_scale"]
        assert isinstance(scale, int | float)
        return value * scale
    return value


def each_at_its_best(swept: Sequence[Condition]) -> tuple[Condition, dict[str, Condition]]:
    """A sweep as one comparison, of every arm at the setting that is best for it.

    The setting is chosen by validation accuracy, the mean over seeds of each run's best; its test
    accuracy is then an honest one. Seeds are of different luck: settings are compared by those that
    the arm has at all of them, or by all where there is none.

    Args:
        swept: the conditions of a sweep, which differ in one setting.

    Returns:
        The comparison, and by the arm's name the condition that it was taken from.
    """
    arms = dict.fromkeys(arm for condition in swept for arm in condition.arms)
    chosen = {arm: _best(swept, arm) for arm in arms}
    parts = [
        _alone(one, run, arm)
        for arm, condition in chosen.items()
        for one in condition.results
        if (run := one.arm(arm)) is not None
    ]
    return Condition(swept[0].study, {}, tuple(parts)), chosen


def _alone(results: Results, run: Arm, name: str) -> Results:
    """The results with one of their runs only, under a name."""
    return results.model_copy(
        update={"arms": (run.model_copy(update={"name": name}),), "paired": ()}
    )


def _best(swept: Sequence[Condition], arm: str) -> Condition:
    """The condition of a sweep in which an arm has the highest validation accuracy."""
    having = [(condition, condition.runs(arm)) for condition in swept if condition.runs(arm)]
    seeds = set[int].intersection(*({run.seed for run in runs} for _, runs in having))
    compared = [
        (_validated([run for run in runs if not seeds or run.seed in seeds]), condition)
        for condition, runs in having
    ]
    return max(compared, key=lambda one: one[0])[1]


def _validated(runs: Sequence[Arm]) -> float:
    """The mean over runs of the best validation accuracy; chance for one without any."""
    best = [run.chance if run.best is None else run.best.accuracy for run in runs]
    return math.fsum(best) / len(best)
