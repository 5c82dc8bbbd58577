"""A plan with a sweep and a study that borrows from it, and results for its cells."""

from __future__ import annotations

from collections.abc import Mapping

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.plan import Cell, Plan
from reproduction.results import Arm, Results
from tests.reproduction.synthetic_results import comparison

ARMS = {
    ORIGINAL: {"sharing": False},
    SHARING: {"sharing": True},
    RATE_CONTROL: {"sharing_control": "rate-control"},
}
SEEDS = {f"seed-{seed}": {"seed": seed} for seed in range(3)}
PLAN = Plan.model_validate(
    {
        "settings": {"iterations_per_epoch": 50},
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
                "note": "toy images",
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


def results_with(runs: Mapping[str, Arm]) -> dict[Cell, Results]:
    """Cells of the plan by their names, finished with these runs."""
    cells = {cell.name: cell for cell in PLAN.cells()}
    return {
        cells[name]: comparison(
            [run],
            config={**cells[name].config.model_dump(mode="json"), "batch_norm": "transductive"},
            command=f"train {name}",
        )
        for name, run in runs.items()
    }
