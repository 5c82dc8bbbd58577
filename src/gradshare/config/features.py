"""Runs on features of a frozen backbone: their sources of tasks, and their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradshare.config.fields import option_name
from gradshare.config.settings import ARM_FIELDS, RunConfig, default_of
from gradshare.errors import ConfigError
from gradshare.tasks import Splits
from gradshare.tasks.features import FeatureStore, feature_splits, features_path, is_feature_store

DEFAULTS: dict[str, Any] = {
    "model": "mlp",
    "method": "unicorn-maml",
    "inner_steps": 20,
    "start": "supervised",
    "sharing": False,
    "task_batch": 8,
    "outer_lr": 3e-4,
    "epochs": 10,
    "iterations_per_epoch": 30,
}
"""The recipe that did best of those measured; see docs/features.md."""

IMAGE_SETTINGS = ("image_size", "resize", "pixel_scaling", "augment")


def features_of(config: RunConfig) -> Path | None:
    """The store of features that a run's dataset is; None if it is something else."""
    path = features_path(config.data_root, config.dataset)
    return path if is_feature_store(path) else None


def feature_defaults(config: RunConfig) -> dict[str, Any]:
    """The settings of a run on features that were not given."""
    if features_of(config) is None:
        return {}
    given = set(config.model_fields_set)
    if given.intersection(ARM_FIELDS):
        given.add("sharing")
    if "method" in given:  # another may take no steps
        given.add("inner_steps")
    return {name: value for name, value in DEFAULTS.items() if name not in given}


def splits_of_features(config: RunConfig, path: Path) -> Splits:
    """The sources of tasks from a store of features. Raise DataError if it does not fit, and
    ConfigError if a setting of images was chosen.
    """
    for setting in IMAGE_SETTINGS:
        if (value := getattr(config, setting)) != default_of(setting):
            raise ConfigError(
                f"{option_name(setting)} {value} is for images, and --dataset {config.dataset} "
                "holds features; leave it out"
            )
    sizes = {"ways": config.ways, "shots": config.shots, "queries": config.queries}
    return feature_splits(FeatureStore.open(path), **sizes)
