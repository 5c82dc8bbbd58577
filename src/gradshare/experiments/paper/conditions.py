"""Finished cells as comparisons: what differs in its arm and its seed alone is compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from gradshare.experiments.paper.plan import Cell, Plan
from gradshare.experiments.results import Arm, Results
from gradshare.experiments.speedup import results_of

ARM: Final = "arm"
SEED: Final = "seed"


@dataclass(frozen=True)
class Condition:
    """The finished cells of a study that differ in their arm and their seed alone.

    Attributes:
        study: the name of the study.
        labels: what they have in common, by the axis's name.
        results: one for each seed, in the order of the seeds, its arms under their labels.
    """

    study: str
    labels: Mapping[str, str]
    results: tuple[Results, ...]

    @property
    def name(self) -> str:
        """The study and what the cells have in common, as words."""
        return " ".join((self.study, *self.labels.values()))

    def runs(self, arm: str) -> tuple[Arm, ...]:
        """The runs of an arm, one for each seed that has it."""
        return tuple(found for one in self.results if (found := one.arm(arm)) is not None)

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of all arms, in the order of the plan."""
        return tuple(dict.fromkeys(arm.name for one in self.results for arm in one.arms))


def conditions(plan: Plan, results: Mapping[Cell, Results], study: str) -> list[Condition]:
    """The comparisons of a study, in the order of the plan.

    Args:
        plan: that the study is of.
        results: what all finished cells came to.
        study: its name.
    """
    grouped: dict[tuple[tuple[str, str], ...], dict[int, list[tuple[str, Results]]]] = {}
    for labels, found in _members(plan, results, study):
        common = tuple((axis, label) for axis, label in labels.items() if axis not in (ARM, SEED))
        seed = found.arms[0].seed
        grouped.setdefault(common, {}).setdefault(seed, []).append((labels[ARM], found))
    return [
        Condition(study, dict(common), tuple(_together(seeds[seed]) for seed in sorted(seeds)))
        for common, seeds in grouped.items()
    ]


def _members(
    plan: Plan, results: Mapping[Cell, Results], study: str
) -> Iterator[tuple[Mapping[str, str], Results]]:
    """Labels and results of a study's own cells, after those that it borrows."""
    loan = plan.studies[study].borrows
    for cell, found in results.items():
        if loan is not None and set(loan.of) <= {cell.study, *cell.labels.values()}:
            kept = {axis: cell.labels[axis] for axis in (ARM, SEED) if axis in cell.labels}
            yield {**loan.labels, **kept}, found
    for cell, found in results.items():
        if cell.study == study:
            yield cell.labels, found


def _together(found: list[tuple[str, Results]]) -> Results:
    """The runs of one seed side by side."""
    first = found[0][1]
    return results_of(
        [one.arms[0].model_copy(update={"name": label}) for label, one in found],
        dataset=first.dataset,
        method=first.method,
        config=first.config,
        environment=first.environment,
        command="\n".join(one.command for _, one in found),
    )
