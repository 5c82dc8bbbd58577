"""From a run to an arm of `results.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradshare.config import Parts, build
from gradshare.experiments.results import Arm, InnerLoopPoint, SharingPoint, Test, Validation
from gradshare.experiments.speedup import judge
from gradshare.tasks import ImageTasks
from gradshare.training.metrics import LOSS
from gradshare.training.records import VALIDATION, EpochRecord
from gradshare.training.run import Run
from gradshare.training.statistics import best_epoch, confidence95

ACCURACY = "accuracy"

# The points of `InnerLoopPoint`, and the splits of a record that they come from.
SPLITS = {
    "support_{}_before": "support before",
    "support_{}_after": "support after",
    "query_{}_before": "query before",
    "query_{}_after": VALIDATION,
}


@dataclass(frozen=True)
class Finished:
    """What a run came to, in a form that can be pickled.

    Attributes:
        config: what was run.
        arm: what it came to, as an arm of a comparison.
        environment: of the process that trained it.
    """

    config: Any
    arm: Arm
    environment: dict[str, Any]


def finished(run: Run, config: Any) -> Finished:
    """What a complete run came to."""
    return Finished(config, arm_of(run, config), {**run.environment, **images_of(build(config))})


def images_of(parts: Parts) -> dict[str, Any]:
    """How many images a run's dataset has, and their SHA-256; empty for other sources."""
    if not isinstance(parts.train, ImageTasks) or parts.train.split.stored is None:
        return {}
    stored = parts.train.split.stored
    return {"images": len(stored.images), "images_sha256": stored.sha256}


def arm_of(run: Run, config: Any) -> Arm:
    """A run as an arm of a comparison.

    Args:
        run: complete, with the accuracy among its metrics.
        config: what was run.
    """
    history, test = run.history, run.test
    validation = tuple(
        Validation(epoch=record.epoch, accuracy=found.mean, ci95=found.ci95, seconds=record.seconds)
        for record in history
        for found in [record.metrics[VALIDATION][ACCURACY]]
    )
    accuracies = [point.accuracy for point in validation]
    return Arm(
        name=config.arm,
        outcome="diverged" if run.diverged is not None else judge(validation, config.chance),
        validation=validation,
        best_epoch=best_epoch([r.epoch for r in history], accuracies) if history else None,
        test=None if test is None else _test(test.ensemble[ACCURACY], test.members),
        test_single=None if test is None else _test(test.single[ACCURACY], 1),
        sharing=_sharing(history),
        inner_loop=tuple(map(_inner_loop, history)),
        seconds=run.seconds,
        seed=config.seed,
        chance=config.chance,
        message=run.diverged,
        test_accuracies=None if test is None else tuple(test.ensemble[ACCURACY]),
    )


def _test(accuracies: Sequence[float], ensemble: int) -> Test:
    interval = confidence95(accuracies)
    return Test(accuracy=interval.mean, ci95=interval.ci95, tasks=interval.n, ensemble=ensemble)


def _inner_loop(record: EpochRecord) -> InnerLoopPoint:
    """The fit of an epoch; None for what was not measured."""
    means = {
        name.format(metric): record.mean(metric, split) if metric in record.metrics[split] else None
        for metric in (ACCURACY, LOSS)
        for name, split in SPLITS.items()
    }
    return InnerLoopPoint(epoch=record.epoch, **means)


def _sharing(history: Sequence[EpochRecord]) -> tuple[SharingPoint, ...]:
    """Means over the inner steps, as in the paper's Figure 3; empty if neither is learned."""
    points = []
    for record in history:
        m, lambda_ = (record.learned.get(f"sharing.{name}") for name in ("m", "lambda"))
        if m is not None or lambda_ is not None:
            points.append(SharingPoint(epoch=record.epoch, m=_mean(m), lambda_=_mean(lambda_)))
    return tuple(points)


def _mean(values: Sequence[float] | None) -> float | None:
    return None if values is None else math.fsum(values) / len(values)
