"""Results of comparisons that nobody ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradshare.comparison.results import (
    ArmRun,
    MetricFacts,
    Outcome,
    Picture,
    Results,
    SampleTask,
)
from gradshare.training.records import EpochRecord
from gradshare.training.statistics import Interval

ACCURACY = MetricFacts(best="high", unit="%", chance=0.2)
ERROR = MetricFacts(best="low", unit="mm", chance=None)

PICTURE = "data:image/png;base64,AAAA"
SAMPLE = SampleTask(
    support=(Picture("cat", PICTURE), Picture("dog", PICTURE)),
    queries=(Picture("cat", PICTURE), Picture("dog", PICTURE)),
    predicted={"base": ("cat", "cat"), "new": ("cat", "dog")},
)

ENVIRONMENT = {"python": "3.11.7", "torch": "2.13.0", "device": "cpu"}


def arm_run(
    arm: str,
    seed: int = 0,
    *,
    validation: Sequence[float],
    test: Sequence[float] = (),
    score: str = "accuracy",
    half: float = 0.01,
    learned: Sequence[Mapping[str, Sequence[float]]] | None = None,
    outcome: Outcome = "trained",
    environment: Mapping[str, Any] = ENVIRONMENT,
    **more: Any,
) -> ArmRun:
    """A run with a validation score for each epoch and a test score for each task.

    Args:
        arm: its name.
        seed: its seed.
        validation: the mean for each epoch.
        test: the value for each test task.
        score: the metric's name.
        half: half the interval of each validation score.
        learned: what the rules reported in each epoch.
        outcome: what became of it.
        environment: of its process.
        **more: other fields of the run.
    """
    history = [
        EpochRecord(
            epoch=epoch,
            iterations=10 * epoch,
            metrics={"validation": {score: Interval(mean, half, 50)}},
            learned={name: list(v) for name, v in (learned[epoch - 1] if learned else {}).items()},
            outer_lr=0.001,
            seconds=float(epoch),
        )
        for epoch, mean in enumerate(validation, 1)
    ]
    return ArmRun(
        arm=arm,
        seed=seed,
        outcome=outcome,
        message="in epoch 2: the loss is nan" if outcome == "diverged" else None,
        history=history,
        test={score: list(test)} if len(test) else {},
        members=5 if len(test) else 0,
        training_seconds=12.0,
        environment=dict(environment),
        **more,
    )


def results_of(
    *runs: ArmRun,
    score: str = "accuracy",
    facts: MetricFacts = ACCURACY,
    controls: Sequence[str] = (),
    **changes: Any,
) -> Results:
    """Results of some runs; the first one's arm is the baseline."""
    fields: dict[str, Any] = {
        "gradshare": "0.2.0",
        "baseline": runs[0].arm,
        "controls": tuple(controls),
        "score": score,
        "metrics": {score: facts},
        "runs": runs,
        "settings": {"epochs": 4, "iterations": 10},
        "commands": ("python compare.py --out runs/one",),
        "notes": (),
    }
    return Results(**{**fields, **changes})


def classification(*arms: str, seeds: int = 1, tasks: int = 30, **changes: Any) -> Results:
    """Arms whose accuracy rises, the later ones a little higher, with the gates of a rule."""
    runs = []
    for place, arm in enumerate(arms):
        for seed in range(seeds):
            random = np.random.default_rng([place, seed])
            epochs = np.arange(1, 5)
            mean = 0.5 - 0.2 / epochs + 0.01 * place + 0.01 * random.normal(size=4)
            values = (0.5 + 0.02 * place + 0.1 * random.normal(size=tasks)).clip(0, 1)
            gates = [{"sharing.lambda": (0.5 - 0.01 * e, 0.5 + 0.01 * e)} for e in epochs.tolist()]
            runs.append(
                arm_run(
                    arm,
                    seed,
                    validation=mean.tolist(),
                    test=values.tolist(),
                    learned=gates if place else None,
                )
            )
    return results_of(*runs, **changes)


def regression(*arms: str, seeds: int = 1, **changes: Any) -> Results:
    """Arms whose error falls from 3 mm, the later ones a little lower."""
    runs = []
    for place, arm in enumerate(arms):
        for seed in range(seeds):
            random = np.random.default_rng([place, seed, 1])
            values = (0.5 - 0.02 * place + 0.1 * random.random(30)).tolist()
            validation = [3.0, 1.0 + 0.01 * seed, 0.6, 0.5 - 0.02 * place]
            runs.append(
                arm_run(arm, seed, validation=validation, test=values, score="error", half=0.05)
            )
    return results_of(*runs, score="error", facts=ERROR, **changes)
