"""The settings of `--preset paper`."""

from __future__ import annotations

from typing import Any

from gradshare.errors import ConfigError

COMMON = {
    "ways": 5,
    "queries": 15,
    "image_size": 84,
    "filters": 48,
    "batch_norm": "transductive",
    "inner_steps": 5,
    "inner_lr": 0.1,
    "outer_lr": 0.001,
    "iterations_per_epoch": 1000,
    "val_tasks": 600,
    "test_tasks": 600,
    "ensemble": 5,
}
EPOCHS = {"cub": {5: 150, 1: 750}, "mini-imagenet": {5: 250, 1: 1250}}
"""By dataset and task batch."""


def paper_settings(dataset: str, task_batch: int, method: str) -> dict[str, Any]:
    """The settings of the paper's Appendix A; the defaults apply to what it does not mention. Raise
    ConfigError if the paper has no such experiment.
    """
    epochs = EPOCHS.get(dataset, {}).get(task_batch)
    if epochs is None:
        raise ConfigError(
            f"--preset paper: the paper has no settings for --dataset {dataset} with --task-batch "
            f"{task_batch}; use --dataset {' or '.join(EPOCHS)} with --task-batch 5 or 1"
        )
    settings = {**COMMON, "dataset": dataset, "task_batch": task_batch, "method": method}
    if method == "maml++":
        # The reference code anneals its multi-step loss over 15 epochs, and the paper's epochs have
        # 1,000 iterations whatever the task batch.
        settings["multi_step_loss"] = "15000"
    return {**settings, "epochs": epochs}
