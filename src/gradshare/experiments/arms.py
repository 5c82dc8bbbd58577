"""From what training returned to an arm of `results.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradshare.experiments.results import Arm, InnerLoopPoint, SharingPoint, Test, Validation
from gradshare.experiments.speedup import judge
from gradshare.training.records import EpochRecord
from gradshare.training.run import RunResult
from gradshare.training.statistics import best_epoch, confidence95


def arm_of(result: RunResult) -> Arm:
    """A finished run as one arm of a comparison."""
    history = result.history
    validation = tuple(
        Validation(epoch=r.epoch, accuracy=r.val_accuracy, ci95=r.val_ci95, seconds=r.seconds)
        for r in history
    )
    chance = result.config.chance
    test = result.test
    return Arm(
        name=result.config.arm,
        outcome="diverged" if result.diverged is not None else judge(validation, chance),
        validation=validation,
        best_epoch=best_epoch([r.epoch for r in history], [r.val_accuracy for r in history])
        if history
        else None,
        test=None if test is None else _test(test.ensemble, test.members),
        test_single=None if test is None else _test(test.single, 1),
        sharing=_sharing(history),
        inner_loop=tuple(InnerLoopPoint(epoch=r.epoch, **r.inner_loop.__dict__) for r in history),
        seconds=result.seconds,
        seed=result.config.seed,
        chance=chance,
        message=result.diverged,
        test_accuracies=None if test is None else tuple(test.ensemble),
    )


def _test(accuracies: Sequence[float], ensemble: int) -> Test:
    interval = confidence95(accuracies)
    return Test(accuracy=interval.mean, ci95=interval.ci95, tasks=interval.n, ensemble=ensemble)


def _sharing(history: Sequence[EpochRecord]) -> tuple[SharingPoint, ...]:
    """Means over the inner steps, as in the paper's Figure 3; empty where neither is learned."""
    return tuple(
        SharingPoint(epoch=record.epoch, m=_mean(record.m), lambda_=_mean(record.lambda_))
        for record in history
        if record.m is not None or record.lambda_ is not None
    )


def _mean(values: Sequence[float] | None) -> float | None:
    return None if values is None else math.fsum(values) / len(values)
