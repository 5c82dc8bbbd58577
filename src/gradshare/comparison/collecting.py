"""Collecting the results of a comparison from the folders of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from gradshare.comparison.plan import Plan
from gradshare.comparison.results import ArmRun, MetricFacts, Results, best_record
from gradshare.comparison.samples import class_names, sample_tasks
from gradshare.errors import RunError
from gradshare.training.folder import RunFolder
from gradshare.training.metrics import Metric
from gradshare.training.records import VALIDATION, EpochRecord
from gradshare.training.statistics import Z95


def results_of(
    plan: Plan, folder: Path, metrics: Mapping[str, Metric], score: str, **more: Any
) -> Results:
    """Collect the results of a comparison.

    Args:
        plan: of the comparison.
        folder: of the comparison.
        metrics: by name.
        score: the metric that decides.
        **more: settings, commands, notes and yardsticks of `Results`.
    """
    names = class_names(plan.test, plan.options.test_tasks)
    runs: list[ArmRun] = []
    predicted: dict[str, list[list[int]]] = {}
    for arm, seed in [(arm, seed) for arm in plan.arms for seed in plan.seeds]:
        place = plan.place(folder, arm, seed)
        saved = RunFolder(place).load_latest()
        if saved is None:
            raise RunError(f"{place} holds no checkpoint of the run {arm!r} with seed {seed}")
        progress, test = saved.progress, saved.progress["test"] or {}
        if test.get("predicted"):
            predicted.setdefault(arm, test["predicted"])
        history = [EpochRecord.from_json(record) for record in progress["history"]]
        diverged = progress["diverged"]
        runs.append(
            ArmRun(
                arm=arm,
                seed=seed,
                outcome="diverged" if diverged else judge(history, metrics[score], score),
                message=diverged,
                history=history,
                test=test.get("ensemble", {}),
                members=test.get("members", 0),
                by_class=_by_class(test.get("right", []), names),
                training_seconds=progress["training_seconds"],
                environment=progress["environment"],
            )
        )
    return Results(
        gradshare=version("gradshare"),
        baseline=plan.baseline,
        controls=plan.controls,
        score=score,
        metrics={
            name: MetricFacts(best=metric.best, unit=metric.unit, chance=metric.chance)
            for name, metric in metrics.items()
        },
        runs=tuple(runs),
        samples=sample_tasks(plan.test, predicted),
        **more,
    )


def is_finished(place: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds a run of an identity that has nothing left to do."""
    folder = RunFolder(place)
    if not folder.started or folder.contents()["identity"] != identity:
        return False
    saved = folder.load_latest()
    progress = {} if saved is None else saved.progress
    diverged_at_once = progress.get("diverged") is not None and not progress["history"]
    return progress.get("test") is not None or diverged_at_once


def _by_class(
    right: Sequence[Sequence[float | None]], names: Sequence[tuple[str, ...]]
) -> dict[str, float]:
    """The mean accuracy on each class.

    Args:
        right: for each task the accuracy on each label, None if it has no queries.
        names: for each task the class of each label.
    """
    found: dict[str, list[float]] = {}
    for accuracies, classes in zip(right, names, strict=False):
        for accuracy, name in zip(accuracies, classes, strict=False):
            if accuracy is not None:
                found.setdefault(name, []).append(accuracy)
    return {name: float(np.mean(values)) for name, values in found.items()}


def judge(
    history: Sequence[EpochRecord], metric: Metric, score: str
) -> Literal["trained", "not trained"]:
    """Whether a run that did not diverge has learned anything.

    It has not if the 95 % interval of its best validation score reaches chance, where there is
    one. The best of many is the luckiest of them, so its interval is widened by their number
    (Bonferroni's correction).
    """
    if not history:
        return "not trained"
    if metric.chance is None:
        return "trained"
    best = best_record(history, metric, score).metrics[VALIDATION][score]
    if best.ci95 is None:
        return "not trained"
    surer = NormalDist().inv_cdf(1 - 0.025 / len(history)) / Z95
    gain = best.mean - metric.chance if metric.best == "high" else metric.chance - best.mean
    return "trained" if gain > surer * best.ci95 else "not trained"
