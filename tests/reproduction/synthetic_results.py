"""Results that look like those of real runs, made without training anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.results import (
    Arm,
    InnerLoopPoint,
    Outcome,
    Results,
    SharingPoint,
    Test,
    Validation,
)
from reproduction.speedup import judge, results_of
from gradshare.training.statistics import best_epoch, confidence95

CHANCE = 0.2
CONFIG: dict[str, Any] = {
    "dataset": "glyphs",
    "image_size": 28,
    "ways": 5,
    "shots": 1,
    "queries": 15,
    "task_batch": 5,
    "method": "maml",
    "sharing": True,
    "inner_steps": 5,
    "inner_lr": 0.1,
    "batch_norm": "transductive",
    "filters": 48,
    "epochs": 20,
    "iterations_per_epoch": 1000,
    "outer_lr": 0.001,
    "clamp_gradients": None,
    "test_tasks": 600,
    "ensemble": 5,
    "seed": 1,
    "device": "cpu",
}
ENVIRONMENT: dict[str, Any] = {
    "gradshare": "0.1.0",
    "python": "3.11.7",
    "torch": "2.13.0",
    "device": "cpu",
    "threads": 2,
}
COMMAND = "gradshare compare --dataset glyphs --method maml --task-batch 5 --seed 1"


def arm(
    name: str,
    *,
    seed: int = 1,
    epochs: int = 20,
    gain: float = 0.28,
    pace: float = 5.0,
    test_shift: float = 0.0,
    tasks: int = 600,
    noise: float = 0.006,
    outcome: Outcome | None = None,
    message: str | None = None,
) -> Arm:
    """A run whose accuracy rises from chance to chance + gain with time constant `pace` epochs.

    `test_shift` moves the test accuracy alone. Test tasks are as hard in every arm of a seed.
    """
    random = np.random.default_rng([seed, *name.encode()])
    numbers = range(1, epochs + 1)
    rising = np.array([1 - math.exp(-epoch / pace) for epoch in numbers])
    mean = CHANCE + gain * rising + noise * random.standard_normal(epochs)
    half = 0.011 + 0.001 * random.random(epochs)
    validation = tuple(
        Validation(epoch=epoch, accuracy=float(np.clip(a, 0, 1)), ci95=float(c))
        for epoch, a, c in zip(numbers, mean, half, strict=True)
    )
    ran = outcome != "diverged"
    test = test_single = accuracies = None
    if ran and validation:
        hardness = np.random.default_rng([seed, 99]).normal(0, 0.10, tasks)
        skill = CHANCE + gain * (1 - math.exp(-epochs / pace)) + test_shift
        by_task = np.clip(skill + hardness + random.normal(0, 0.05, tasks), 0, 1)
        accuracies = tuple(float(a) for a in np.round(by_task * 75) / 75)
        interval = confidence95(accuracies)
        test = Test(accuracy=interval.mean, ci95=interval.ci95, tasks=tasks, ensemble=5)
        test_single = Test(
            accuracy=max(0.0, interval.mean - 0.008), ci95=interval.ci95, tasks=tasks, ensemble=1
        )
    return Arm(
        name=name,
        outcome=outcome or judge(validation, CHANCE),
        validation=validation,
        best_epoch=best_epoch(numbers, [v.accuracy for v in validation]) if validation else None,
        test=test,
        test_single=test_single,
        sharing=_sharing(name, epochs, random),
        inner_loop=_inner_loop(name, rising.tolist(), gain, random),
        seconds=31.4 * epochs * (1.1 if name == SHARING else 1.0),
        seed=seed,
        chance=CHANCE,
        message=message,
        test_accuracies=accuracies,
    )


def _sharing(name: str, epochs: int, random: np.random.Generator) -> tuple[SharingPoint, ...]:
    if name == ORIGINAL:
        return ()
    return tuple(
        SharingPoint(
            epoch=epoch,
            m=None
            if name == RATE_CONTROL
            else float(0.30 + 0.20 * math.exp(-epoch / 9) + 0.0005 * random.standard_normal()),
            lambda_=float(0.18 + 0.32 * math.exp(-epoch / 6) + 0.0005 * random.standard_normal()),
        )
        for epoch in range(1, epochs + 1)
    )


def _inner_loop(
    name: str, rising: Sequence[float], gain: float, random: np.random.Generator
) -> tuple[InnerLoopPoint, ...]:
    over = 0.30 if name == ORIGINAL else 0.18
    points = []
    for epoch, up in enumerate(rising, start=1):
        query = CHANCE + gain * up + 0.004 * random.standard_normal()
        support = min(1.0, query + over * (1.3 - 0.5 * up))
        points.append(
            InnerLoopPoint(
                epoch=epoch,
                support_accuracy_before=CHANCE + 0.004 * random.standard_normal(),
                support_accuracy_after=support,
                support_loss_before=1.63 + 0.02 * random.random(),
                support_loss_after=1.5 * (1 - support) + 0.05,
                query_accuracy_before=CHANCE + 0.004 * random.standard_normal(),
                query_accuracy_after=query,
                query_loss_before=1.64 + 0.02 * random.random(),
                query_loss_after=1.95 * (1 - query) + 0.1,
            )
        )
    return tuple(points)


def comparison(arms: Sequence[Arm], **settings: Any) -> Results:
    """The results of these arms, of MAML on glyphs unless said otherwise."""
    facts = {
        "dataset": "glyphs",
        "method": "maml",
        "config": {**CONFIG, "seed": arms[0].seed},
        "environment": ENVIRONMENT,
        "command": COMMAND,
    }
    return results_of(arms, **{**facts, **settings})


def usual(seed: int = 1, epochs: int = 20) -> Results:
    """Sharing does better than the original, and its control does as well."""
    return comparison(
        [
            arm(ORIGINAL, seed=seed, epochs=epochs, gain=0.26, pace=epochs / 3),
            arm(SHARING, seed=seed, epochs=epochs, gain=0.29, pace=epochs / 7),
            arm(RATE_CONTROL, seed=seed, epochs=epochs, gain=0.29, pace=epochs / 7),
        ]
    )
