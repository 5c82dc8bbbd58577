"""From a configuration to the parts of a run: sources of tasks, learner, options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.config.fields import PLUS_FIELDS, SharingControl, option_name
from gradshare.config.metrics import loss_of, metrics_of, number_of_classes
from gradshare.config.names import call, is_import_path, load, taken_by
from gradshare.config.settings import ARM_FIELDS, RunConfig, default_of
from gradshare.errors import ConfigError
from gradshare.inner_loop import (
    DetachedSharing,
    ForgottenAtTest,
    GradientSharing,
    Held,
    LearnedRates,
    OwnGradient,
    RateControl,
    UnnormalizedSharing,
    UpdateRule,
)
from gradshare.methods import Learner, MetaLearner
from gradshare.methods.maml_plus_plus import start_from
from gradshare.models.weights import freeze, load_weights
from gradshare.tasks import ImageStore, Normalization, Splits, TaskSource, image_splits
from gradshare.tasks.datasets import open_dataset
from gradshare.tasks.features import (
    FeatureStore,
    FeatureTasks,
    feature_splits,
    features_path,
    is_feature_store,
)
from gradshare.tasks.image_tasks import ImageTasks
from gradshare.tasks.source import prepared
from gradshare.training.checks import require_source
from gradshare.training.metrics import Metric
from gradshare.training.options import Options

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TASK_SIZES = ("ways", "shots", "queries")
IMAGE_SETTINGS = ("image_size", "resize", "pixel_scaling", "augment")

ON_FEATURES: dict[str, Any] = {
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
"""The defaults of a run on features: the recipe that did best of those measured; see
docs/features.md."""

READ: dict[str, dict[str, tuple[str, ...]]] = {
    "dataset": {name: (name,) for name in (*TASK_SIZES, *IMAGE_SETTINGS)},
    "model": {name: (name,) for name in ("filters", "activation", "conv_bias")},
    "rule": {},
    "method": {
        "steps": ("inner_steps",),
        "inner_lr": ("inner_lr", "inner_lr_scale"),
        "second_order": ("order",),
        "first_order_iterations": ("first_order_for",),
        "sharing": ("sharing_control", "fixed_lambda", "fixed_m", "sharing_norm"),
        "rule": ("rule", "rule_option"),
        "loss": ("loss", "loss_option"),
        "batch_norm": ("batch_norm",),
        "precision": ("precision",),
    },
}
"""The settings that one parameter of a dataset, a model or a method is made from."""


class Parts(NamedTuple):
    """The parts of a run: its learner before any training, its sources, the options of `fit`."""

    learner: Learner
    train: TaskSource
    validation: TaskSource
    test: TaskSource | None
    options: Options


def build(config: RunConfig, splits: Splits | None = None) -> Parts:
    """Open the data, unless its sources are given, and make the learner of the seed.

    Raises:
        DataError: the dataset is unknown, not prepared, damaged, or too small for these tasks.
        ConfigError: a name or an import path does not lead to something that can be used.
    """
    config = resolved(config)
    splits = splits or splits_of(config)
    # The first parameters are drawn on the CPU. `torch.manual_seed` would seed the generators of
    # all GPUs too, which `fork_rng` does not put back here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        learner = learner_of(config, splits.train)
    metrics = metrics_of(config, learner, splits.train)
    options = options_of(config, metrics)
    return Parts(learner, splits.train, splits.validation, splits.test, options)


def options_of(config: RunConfig, metrics: Mapping[str, Metric] | None) -> Options:
    """The options of `fit`, with some metrics. Most are settings of the same name."""
    same = {field.name for field in dataclasses.fields(Options)} & RunConfig.model_fields.keys()
    return Options(
        iterations=config.iterations_per_epoch,
        metrics=metrics,
        optimizer=functools.partial(torch.optim.Adam, lr=config.outer_lr),
        schedule=_schedule(config),
        **_settings(config, *same),
    )


def resolved(config: RunConfig) -> RunConfig:
    """The configuration as a run stores it, so that it means the same wherever it is read.

    Paths are absolute. A setting that was not given has the default of runs on features, if this
    is one; else that of the method, or of a dataset or model of the user's own, such as
    `def make_splits(shots=4)`.
    """
    changes: dict[str, Any] = {"data_root": config.data_root.absolute()}
    if features_of(config) is not None:
        given = set(config.model_fields_set)
        if given.intersection(ARM_FIELDS):
            given.add("sharing")
        if "method" in given:  # another may take no steps
            given.add("inner_steps")
        changes |= {name: value for name, value in ON_FEATURES.items() if name not in given}
    if config.init_from is not None:
        changes["init_from"] = config.init_from.absolute()
    for kind in ("dataset", "model", "method"):
        name = changes.get(kind, getattr(config, kind))
        function = load(kind, name) if kind == "method" or is_import_path(name) else None
        if not callable(function):
            continue
        for parameter in inspect.signature(function).parameters.values():
            setting = {"steps": "inner_steps"}.get(parameter.name, parameter.name)
            left_out = setting not in config.model_fields_set and setting not in changes
            read = any(setting in settings for settings in READ[kind].values())
            is_value = isinstance(parameter.default, int | float | str | tuple | list)
            if left_out and read and is_value:
                changes[setting] = parameter.default
    return config.model_copy(update=changes)


def features_of(config: RunConfig) -> Path | None:
    """The store of features that a run's dataset is; None if it is something else."""
    path = features_path(config.data_root, config.dataset)
    return path if is_feature_store(path) else None


def splits_of(config: RunConfig) -> Splits:
    """The sources of tasks.

    Raises:
        DataError, ConfigError: see `build`.
    """
    name = config.dataset
    if is_import_path(name):
        splits = _call(config, "dataset", _settings(config, "data_root", *READ["dataset"]))
        if not isinstance(splits, Splits):
            raise ConfigError(
                f"--dataset {name!r} returned {splits!r:.100}; return "
                "gradshare.Splits(train, validation, test)"
            )
        require_source(f"--dataset {name!r}: train", splits.train, range(2))
        return splits
    store, sizes = _store_of(config), _settings(config, *TASK_SIZES)
    if isinstance(store, FeatureStore):
        splits = feature_splits(store, **sizes)
    else:
        normalization = _normalization(config, store)
        splits = Splits(
            *image_splits(store, normalization=normalization, augment=config.augment, **sizes)
        )
    if config.test_dataset is None:
        return splits
    other = tests_of_another(config, "--test-dataset", config.test_dataset, splits.train)
    return splits._replace(test=other)


def tests_of_another(config: RunConfig, option: str, dataset: str, train: TaskSource) -> TaskSource:
    """The test tasks of the dataset that an option names, prepared as the training tasks are. The
    other splits of this dataset may be too small for tasks of this size.

    Raises:
        ConfigError, DataError: see `build`; or the run takes other inputs.
    """
    changes: dict[str, Any] = {"dataset": dataset, "dataset_option": {}, "augment": ()}
    if isinstance(train, ImageTasks):
        changes["image_size"] = train.split.images.shape[-1]
    config = config.model_copy(update={**changes, "test_dataset": None})
    if is_import_path(dataset):
        source = splits_of(config).test
    else:
        found = "images" if features_of(config) is None else "features"
        wanted = "features" if isinstance(train, FeatureTasks) else "images"
        if found != wanted:
            raise ConfigError(f"{option} {dataset} holds {found}, and the run takes {wanted}")
        store, sizes = _store_of(config), _settings(config, *TASK_SIZES)
        if isinstance(store, FeatureStore):
            source = FeatureTasks(store, "test", **sizes)
        else:
            normalization = _normalization(config, store)
            source = ImageTasks(store.splits["test"], normalization=normalization, **sizes)
    if source is None:
        raise ConfigError(f"{option} {dataset} has no test tasks; name a dataset that has some")
    if isinstance(train, FeatureTasks) and isinstance(source, FeatureTasks):
        return source.standardised_as(train)
    if not isinstance(train, ImageTasks) or not isinstance(source, ImageTasks):
        return source
    here, there = source.split.images.shape[1], train.split.images.shape[1]
    if here != there:
        raise ConfigError(
            f"{option} {dataset} has images of {here} channels, and the run takes {there}; "
            "name another"
        )
    return source.replace(normalization=train.normalization)


def _store_of(config: RunConfig) -> ImageStore | FeatureStore:
    """The store of a prepared dataset. Raise ConfigError if a setting does not fit it."""
    name, features = config.dataset, features_of(config)
    if config.dataset_option:
        raise ConfigError(
            f"--dataset-option {next(iter(config.dataset_option))}: the dataset {name!r} takes no "
            "options; leave it out"
        )
    if features is None:
        return open_dataset(name, config.data_root, config.image_size, config.resize)
    for setting in IMAGE_SETTINGS:
        if (value := getattr(config, setting)) != default_of(setting):
            raise ConfigError(
                f"{option_name(setting)} {value} is for images, and --dataset {name} holds "
                "features; leave it out"
            )
    return FeatureStore.open(features)


def learner_of(config: RunConfig, train: TaskSource) -> Learner:
    """The learner for the tasks of a source, initialised from torch's generator as it is."""
    task = prepared(train, train.batch([0]))
    classes = number_of_classes(train, task)
    given = _settings(config, *READ["model"])
    x = task.support_x
    if classes is not None:
        given |= {"ways": classes, "classes": classes}
    if isinstance(x, Tensor) and x.ndim in (4, 5):  # (1, n, C, L) or (1, n, C, H, W)
        given |= {"channels": x.shape[2], "image_size": x.shape[-1]}
    elif isinstance(x, Tensor) and x.ndim == 3:  # (1, n, D)
        given |= {"features": x.shape[2]}
    model = _call(config, "model", given)
    rows: dict[str, Tensor] = {}  # for each inner step
    if config.init_from is not None and isinstance(model, nn.Module):
        rows = load_weights(model, config.init_from)
    if config.freeze and isinstance(model, nn.Module):
        freeze(model, config.freeze)
    given = {
        "model": model,
        "steps": config.inner_steps,
        "inner_lr": config.inner_rate,
        "second_order": config.order == "second",
        "first_order_iterations": config.span(config.first_order_for),
        "sharing": _sharing(config),
        "rule": None if config.rule is None else _call(config, "rule", {}),
        "loss": loss_of(config),
        **_settings(config, "batch_norm", "precision"),
    }
    if config.method == "maml++":
        given |= _settings(config, *PLUS_FIELDS)
        given["multi_step_iterations"] = config.span(given.pop("multi_step_loss"))
    learner: Learner = _call(
        config, "method", given, more=inspect.signature(MetaLearner).parameters
    )
    if config.init_from is not None and rows and isinstance(learner, MetaLearner):
        start_from(learner, rows, config.init_from)
    # Cross entropy of outputs (n, 1) would be zero, without an error.
    if classes is None and getattr(learner, "loss", None) is F.cross_entropy:
        raise ConfigError(
            f"--loss {config.loss} needs classes, and the targets of {config.dataset} are real "
            "values; add --loss mse, or a loss of your own"
        )
    return learner


def settings_read(config: RunConfig) -> dict[str, Any]:
    """The settings, as JSON, that are given and that the arms of a comparison read."""
    unread = {*ARM_FIELDS, "workers", *(PLUS_FIELDS if config.method != "maml++" else ())}
    for kind in ("dataset", "model", "method"):
        unread |= unread_by(config, kind).keys()
    if not config.sharing:  # a rule of the user's
        unread.add("sharing_norm")
    settings = config.model_dump(mode="json", exclude=unread)
    return {name: value for name, value in settings.items() if value not in (None, {}, [])}


def _call(
    config: RunConfig, kind: str, given: Mapping[str, Any], more: Collection[str] = ()
) -> Any:
    """Make the dataset, the model, the rule or the method, as `names.call` does. Raise ConfigError
    if it does not read a setting that was chosen.
    """
    name = getattr(config, kind)
    made = call(kind, name, getattr(config, f"{kind}_option"), given, more)
    unread = unread_by(config, kind)
    for setting, parameter in unread.items():
        if (value := getattr(config, setting)) != default_of(setting):
            raise ConfigError(
                f"{option_name(setting)} {value} is not read by --{kind} {name}, which has no "
                f"parameter {parameter!r}; leave it out"
            )
    if kind == "method" and "sharing" in unread.values() and config.sharing:
        raise ConfigError(
            f"--method {name} has no parameter 'sharing', so it cannot share gradients; add "
            "--no-sharing"
        )
    return made


def unread_by(config: RunConfig, kind: str) -> dict[str, str]:
    """The settings that the dataset, model or method does not read, with the parameter for each."""
    name = getattr(config, kind)
    if kind == "dataset" and not is_import_path(name):
        return {}
    taken = taken_by(load(kind, name), inspect.signature(MetaLearner).parameters)
    return {
        setting: parameter
        for parameter, settings in READ[kind].items()
        if parameter not in taken
        for setting in settings
    }


def _settings(config: RunConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _schedule(config: RunConfig) -> Callable[[int], float] | None:
    if config.cosine_annealing_to is None or not config.outer_lr:
        return None
    end, total = config.cosine_annealing_to / config.outer_lr, config.iterations
    return lambda iteration: end + (1 - end) * (1 + math.cos(math.pi * iteration / total)) / 2


def _sharing(config: RunConfig) -> UpdateRule | None:
    if not config.sharing:
        return None
    norm = config.sharing_norm
    rules: dict[SharingControl | None, Callable[[], UpdateRule]] = {
        None: lambda: GradientSharing(norm=norm),
        "rate-control": RateControl,
        "learned-rates": LearnedRates,
        "own-gradient": lambda: OwnGradient(norm=norm),
        "unnormalized": UnnormalizedSharing,
        "detached": lambda: DetachedSharing(norm=norm),
        "forgotten": lambda: ForgottenAtTest(norm=norm),
    }
    rule = rules[config.sharing_control]()
    gates = {"lambda": config.fixed_lambda, "m": config.fixed_m}
    held = {name: gate for name, gate in gates.items() if gate is not None}
    return Held(rule, held) if held else rule


def _normalization(config: RunConfig, store: ImageStore) -> Normalization:
    channels = store.image_shape[0]
    if config.pixel_scaling == "imagenet" and channels != len(IMAGENET_MEAN):
        raise ConfigError(
            f"--pixel-scaling imagenet is for colour images, {store.name} has {channels} "
            "channel; use dataset or unit"
        )
    return {
        "unit": Normalization((0.0,) * channels, (1.0,) * channels),
        "imagenet": Normalization(IMAGENET_MEAN, IMAGENET_STD),
        "dataset": Normalization(store.mean, store.std),
    }[config.pixel_scaling]
