"""The paper's own settings (Appendix A). These numbers stand here and nowhere else."""

from __future__ import annotations

from typing import Any

from gradshare.errors import ConfigError

TASK_BATCHES = (5, 1)

# Epochs at task batch 5; at task batch 1 five times as many.
EPOCHS = {"cub": 150, "mini-imagenet": 250}


def paper_settings(dataset: str, task_batch: int, method: str) -> dict[str, Any]:
    """What Appendix A says of a dataset and a task batch; everything it is silent about is left
    to the defaults.

    Args:
        dataset: "cub" or "mini-imagenet".
        task_batch: 5 or 1.
        method: as in `RunConfig`.

    Raises:
        ConfigError: the paper has no such experiment.
    """
    if dataset not in EPOCHS:
        raise ConfigError(
            f"--preset paper: the paper has no settings for dataset {dataset!r}; "
            f"use --dataset {' or '.join(EPOCHS)}"
        )
    if task_batch not in TASK_BATCHES:
        raise ConfigError(
            f"--preset paper: the paper has task batches 5 and 1, not {task_batch}; "
            "use --task-batch 5 or 1"
        )
    # The reference code anneals its multi-step loss over 15 epochs, and the paper's have 1,000
    # iterations whatever the task batch.
    parts = {"multi_step_loss": "15000"} if method == "maml++" else {}
    return {
        **parts,
        "dataset": dataset,
        "task_batch": task_batch,
        "epochs": EPOCHS[dataset] * (1 if task_batch == TASK_BATCHES[0] else TASK_BATCHES[0]),
        "iterations_per_epoch": 1000,
        "ways": 5,
        "queries": 15,
        "image_size": 84,
        "filters": 48,
        "inner_steps": 5,
        "inner_lr": 0.1,
        "outer_lr": 0.001,
        "val_tasks": 600,
        "test_tasks": 600,
        "ensemble": 5,
    }
