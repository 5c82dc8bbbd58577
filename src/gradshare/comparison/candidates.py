"""Arms with several candidates, such as rates. The best on validation tasks is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gradshare.comparison.plan import Plan
from gradshare.comparison.results import MetricFacts
from gradshare.errors import ConfigError
from gradshare.training.folder import RunFolder
from gradshare.training.records import VALIDATION, best_record
from gradshare.training.state import RunStatus
from gradshare.training.statistics import Interval

Made = TypeVar("Made")


def with_candidates(
    arms: Mapping[str, Made | Mapping[str, Made]],
) -> tuple[dict[str, Made], dict[str, tuple[str, ...]]]:
    """Name the candidates of each arm that is a dictionary of them: "ARM [CANDIDATE]".

    Returns:
        What makes each candidate, by its name; and the names of the candidates of each arm.
    """
    made: dict[str, Made] = {}
    groups = {}
    for arm, value in arms.items():
        if isinstance(value, Mapping):
            named = {f"{arm} [{candidate}]": each for candidate, each in value.items()}
        else:
            named = {arm: value}
        if not named:
            raise ConfigError(f"the arm {arm!r} has no candidates; give it at least one")
        made |= named
        groups[arm] = tuple(named)
    return made, groups


def best_candidates(plan: Plan, folder: Path, score: str, metric: MetricFacts) -> tuple[Plan, str]:
    """Choose the candidate of each arm by its best validation score with the first seed, with which
    all have been trained.

    Returns:
        The plan with the chosen candidates only, and a note on the scores of all.
    """
    chosen: dict[str, str] = {}
    said = []
    for group in plan.candidates:
        scores = {arm: _validated(plan, folder, arm, score, metric) for arm in group}
        best = min(scores, key=lambda arm: metric.rank(scores[arm].mean))
        chosen |= dict.fromkeys(group, best)
        shown = {arm: metric.show(s) if s.n else "diverged" for arm, s in scores.items()}
        said.append(", ".join(map(" ".join, shown.items())))
    kept = replace(
        plan,
        arms={arm: made for arm, made in plan.arms.items() if chosen.get(arm, arm) == arm},
        candidates=(),
        baseline=chosen.get(plan.baseline, plan.baseline),
        controls=tuple(chosen.get(name, name) for name in plan.controls),
    )
    return kept, (
        f"Each arm is compared at the value with the best validation {score} of seed "
        f"{plan.seeds[0]}, of these: {'; '.join(said)}."
    )


def _validated(plan: Plan, folder: Path, arm: str, score: str, metric: MetricFacts) -> Interval:
    """The best validation score of a candidate with the first seed; NaN if it diverged."""
    saved = RunFolder(plan.place(folder, arm, plan.seeds[0])).load_latest()
    status = None if saved is None else RunStatus.of(saved)
    if status is None or status.diverged is not None:
        return Interval(math.nan, None, 0)
    return best_record(status.history, metric, score).metrics[VALIDATION][score]
