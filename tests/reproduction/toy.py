"""A small plan, and runs for its cells that nobody trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.conditions import Condition
from reproduction.plan import Cell, Plan
from reproduction.records import Run

ARMS = {
    ORIGINAL: {"sharing": False},
    SHARING: {"sharing": True},
    RATE_CONTROL: {"sharing_control": "rate-control"},
}
SEEDS = {f"seed-{seed}": {"seed": seed} for seed in range(3)}
PLAN = Plan.model_validate(
    {
        "settings": {"iterations_per_epoch": 50, "test_tasks": 40},
        "studies": {
            "rates": {
                "title": "accuracy against the rate",
                "sweep": "inner_lr",
                "curves": False,
                "axes": {
                    "seed": SEEDS,
                    "rate": {"rate-0.1": {"inner_lr": 0.1}, "rate-1": {"inner_lr": 1.0}},
                    "arm": ARMS,
                },
            },
            "controls": {
                "title": "which part is it?",
                "borrows": {"of": ["rates", "rate-0.1"]},
                "axes": {
                    "seed": SEEDS,
                    "arm": {"held": {"fixed_lambda": 0.5}, "half": {"inner_lr_scale": 0.5}},
                },
            },
            "batches": {
                "title": "other batches",
                "borrows": {"of": ["rates", "rate-0.1"], "labels": {"batch": "batch-5"}},
                "axes": {
                    "seed": SEEDS,
                    "batch": {"batch-1": {"task_batch": 1}},
                    "arm": ARMS,
                },
            },
        },
    }
)

ENVIRONMENT = {"gradshare": "0.2.0", "processor": "one", "torch": "2", "commit": "a"}


def run(
    validation: Sequence[float] = (0.3, 0.5, 0.6, 0.6),
    *,
    test: float | None = 0.6,
    seconds: float = 10.0,
    environment: Mapping[str, Any] = ENVIRONMENT,
    **changes: Any,
) -> Run:
    """A run with this validation curve, this test accuracy, epochs of so many seconds, and other
    settings or fields.
    """
    settings: dict[str, Any] = {
        "ways": 5,
        "seed": 0,
        "iterations_per_epoch": 50,
        "inner_lr_scale": 1.0,
    }
    fields = {name: changes.pop(name) for name in Run.model_fields if name in changes}
    settings |= changes
    tasks = np.random.default_rng(settings["seed"]).normal(0, 0.1, 40)
    epochs = len(validation)
    return Run.model_validate(
        {
            "cell": "",
            "settings": settings,
            "environment": environment,
            "outcome": "trained",
            "message": None,
            "seconds": seconds * epochs,
            "validation": validation,
            "ci95": [0.01] * epochs,
            "clock": [seconds * epoch for epoch in range(1, epochs + 1)],
            "train": {},
            "fit": {
                f"{images}_{quantity}_{moment}": [0.5] * epochs
                for images in ("support", "query")
                for quantity in ("accuracy", "loss")
                for moment in ("before", "after")
            },
            "learned": {},
            "test": None if test is None else (test + tasks - tasks.mean()).tolist(),
            "single": None,
            "members": 1,
            **fields,
        }
    )


def condition(**arms: Sequence[Run]) -> Condition:
    """A comparison of `sharing`, `original`, …: the runs of each, one a seed."""
    names = {"sharing": SHARING, "original": ORIGINAL, "control": RATE_CONTROL}
    return Condition({}, {names[arm]: tuple(runs) for arm, runs in arms.items()})


def seeds(count: int, *args: Any, **kwargs: Any) -> list[Run]:
    """The same run with several seeds."""
    return [run(*args, seed=seed, **kwargs) for seed in range(count)]


def results_with(runs: Mapping[str, Run]) -> dict[Cell, Run]:
    """Cells of the plan by their names, finished with these runs."""
    cells = {cell.name: cell for cell in PLAN.cells()}
    return {
        cells[name]: one.model_copy(
            update={"cell": name, "settings": cells[name].config.model_dump(mode="json")}
        )
        for name, one in runs.items()
    }
