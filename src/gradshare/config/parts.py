"""From a configuration to the parts of a run: sources of tasks, learner, options."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.config.arms import SharingControl
from gradshare.config.names import call, is_import_path, load, parameters, require_options
from gradshare.config.settings import RunConfig, option_name
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
from gradshare.tasks import ImageStore, ImageTasks, Normalization, Splits, TaskBatch, TaskSource
from gradshare.tasks.datasets import open_dataset
from gradshare.tasks.source import prepared
from gradshare.training.checks import require_source
from gradshare.training.metrics import LOSS, Metric, accuracy
from gradshare.training.options import Options

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The settings that are read by one parameter of a dataset, a model or a method, and nowhere else.
SETTINGS_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "dataset": {
        name: (name,)
        for name in ("ways", "shots", "queries", "image_size", "resize", "pixel_scaling")
    },
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


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        learner: the method with its model, as it is before any training.
        train: the source of training tasks.
        validation: the source of validation tasks.
        test: the source of test tasks, if there is one.
        options: of `gradshare.fit`.
    """

    learner: Learner
    train: TaskSource
    validation: TaskSource
    test: TaskSource | None
    options: Options


def build(config: RunConfig) -> Parts:
    """Open the data and make the learner, with the initialisation of the seed.

    Raises:
        DataError: the dataset is unknown, not prepared, damaged, or too small for these tasks.
        ConfigError: a name or an import path does not lead to something that can be used.
    """
    splits = splits_of(config)
    # The first parameters are drawn on the CPU. `torch.manual_seed` would seed the generators of
    # all GPUs too, which `fork_rng` does not put back here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        learner = learner_of(config, splits.train)
    classes = _classes(splits.train, prepared(splits.train, splits.train.batch([0])))
    metrics = _metrics(config, learner, classes)
    options = Options(
        epochs=config.epochs,
        iterations=config.iterations_per_epoch,
        task_batch=config.task_batch,
        val_tasks=config.val_tasks,
        test_tasks=config.test_tasks,
        seed=config.seed,
        metrics=metrics,
        score=next(iter(metrics)) if metrics else None,
        ensemble=config.ensemble,
        optimizer=functools.partial(torch.optim.Adam, lr=config.outer_lr),
        schedule=_schedule(config),
        clamp_gradients=config.clamp_gradients,
        on_divergence=config.on_divergence,
        device=config.device,
        tasks=config.tasks,
        memory=config.memory,
    )
    return Parts(learner, splits.train, splits.validation, splits.test, options)


def splits_of(config: RunConfig) -> Splits:
    """The sources of tasks.

    Raises:
        DataError, ConfigError: see `build`.
    """
    sizes = {name: getattr(config, name) for name in ("ways", "shots", "queries")}
    if is_import_path(config.dataset):
        names = ("data_root", *SETTINGS_OF["dataset"])
        splits = _call(config, "dataset", {name: getattr(config, name) for name in names})
        if not isinstance(splits, Splits):
            raise ConfigError(
                f"--dataset {config.dataset!r} returned {splits!r:.100}; return "
                "gradshare.Splits(train, validation, test)"
            )
        require_source(f"--dataset {config.dataset!r}: train", splits.train, range(2))
        return splits
    if config.dataset_option:
        raise ConfigError(
            f"--dataset-option {next(iter(config.dataset_option))}: the dataset "
            f"{config.dataset!r} takes no options; leave it out"
        )
    store = open_dataset(config.dataset, config.data_root, config.image_size, config.resize)

    def source(split: str) -> ImageTasks:
        return ImageTasks(
            store.splits[split],
            **sizes,
            normalization=_normalization(config, store),
            rotate_classes=store.rotate_classes and split == "train",
        )

    return Splits(source("train"), source("val"), source("test"))


def learner_of(config: RunConfig, train: TaskSource) -> Learner:
    """The learner, initialised from torch's generator as it is.

    Args:
        config: of the run.
        train: the source of training tasks, to which the model is fitted.

    Raises:
        ConfigError: see `build`.
    """
    task = prepared(train, train.batch([0]))
    classes = _classes(train, task)
    given = {name: getattr(config, name) for name in SETTINGS_OF["model"]}
    x = task.support_x
    if classes is not None:
        given |= {"ways": classes, "classes": classes}
    if isinstance(x, Tensor) and x.ndim in (4, 5):  # (1, n, C, L) or (1, n, C, H, W)
        given |= {"channels": x.shape[2], "image_size": x.shape[-1]}
    model = _call(config, "model", given)
    rule = None if config.rule is None else _call(config, "rule", {})
    given = {
        "model": model,
        "steps": config.inner_steps,
        "inner_lr": config.inner_rate,
        "sharing": _sharing(config),
        "rule": rule,
        "loss": _loss(config),
        "second_order": config.order == "second",
        "first_order_iterations": config.span(config.first_order_for),
        "batch_norm": config.batch_norm,
        "precision": config.precision,
    }
    if config.method == "maml++":
        given |= {
            "multi_step_iterations": config.span(config.multi_step_loss),
            "per_step_rates": config.per_step_rates,
            "per_step_batch_norm": config.per_step_batch_norm,
        }
    learner: Learner = _call(config, "method", given, more=parameters(MetaLearner)[0])
    # Of outputs (n, 1) it is zero, without an error.
    if classes is None and getattr(learner, "loss", None) is F.cross_entropy:
        raise ConfigError(
            f"--loss {config.loss} needs classes, and the targets of {config.dataset} are real "
            "values; add --loss mse, or a loss of your own"
        )
    return learner


def _call(
    config: RunConfig, kind: str, given: Mapping[str, Any], more: Mapping[str, bool] | None = None
) -> Any:
    """Make the dataset, the model, the rule or the method.

    Raises:
        ConfigError: see `names.call`; or it does not read a setting that was chosen.
    """
    name, options = getattr(config, kind), getattr(config, f"{kind}_option")
    made = call(kind, name, options, given, more or {})
    named, takes_any = parameters(load(kind, name))
    taken = {*named, *(more or {} if takes_any else {})}
    for parameter, settings in SETTINGS_OF[kind].items():
        for setting in settings if parameter not in taken else ():
            value = getattr(config, setting)
            if value != RunConfig.model_fields[setting].default:
                raise ConfigError(
                    f"{option_name(setting)} {value} is not read by --{kind} {name}, which has no "
                    f"parameter {parameter!r}; leave it out"
                )
    if kind == "method" and "sharing" not in taken and config.sharing:
        raise ConfigError(
            f"--method {name} has no parameter 'sharing', so it cannot share gradients; add "
            "--no-sharing"
        )
    return made


def _classes(source: TaskSource, task: TaskBatch) -> int | None:
    """How many classes a task has at most; None if its targets are not classes."""
    ways = getattr(source, "ways", None)
    if isinstance(ways, int):
        return ways
    labels = (task.support_y, task.query_y)
    if all(isinstance(y, Tensor) and not y.is_floating_point() for y in labels):
        return max(int(y.max()) for y in labels) + 1
    return None


def _loss(config: RunConfig) -> Callable[..., Any]:
    """A loss is a function of outputs and targets, or a class of such functions."""
    found = load("loss", config.loss)
    if isinstance(found, type):
        return call("loss", config.loss, config.loss_option, {})  # type: ignore[no-any-return]
    require_options("loss", config.loss, found, config.loss_option)
    return functools.partial(found, **config.loss_option) if config.loss_option else found


def _metrics(config: RunConfig, learner: Learner, classes: int | None) -> dict[str, Metric] | None:
    """The metrics that were chosen, and the loss; None for the defaults."""
    loss = getattr(learner, "loss", None)
    known = {
        "accuracy": Metric(accuracy, unit="%", chance=None if classes is None else 1 / classes),
        "mse": Metric(F.mse_loss, best="low"),
        **({} if loss is None else {LOSS: Metric(loss, best="low")}),
    }
    options, chosen = config.metric_option, {}
    for name in config.metric:
        if is_import_path(name):
            chosen[name.rpartition(":")[2]] = _own_metric(name, options)
            options = {}
        else:
            chosen[name] = known[name]
    if options:
        raise ConfigError(
            f"--metric-option {next(iter(options))} needs a --metric that is an import path; leave "
            "it out"
        )
    return {**chosen, **{n: m for n, m in known.items() if n == LOSS}} if chosen else None


def _own_metric(name: str, options: Mapping[str, Any]) -> Metric:
    """A Metric, a function of outputs and targets, or a class of either."""
    found = load("metric", name)
    if isinstance(found, type):
        found, options = call("metric", name, options, {}), {}
    if isinstance(found, Metric):
        if options:
            raise ConfigError(
                f"--metric-option {next(iter(options))}: {name} is a Metric, which has its own; "
                "leave it out"
            )
        return found
    require_options("metric", name, Metric, options)
    return Metric(found, **options)


def _schedule(config: RunConfig) -> Callable[[int], float] | None:
    if config.cosine_annealing_to is None:
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
    if config.pixel_scaling == "unit":
        return Normalization((0.0,) * channels, (1.0,) * channels)
    if config.pixel_scaling == "imagenet":
        if channels != len(IMAGENET_MEAN):
            raise ConfigError(
                f"--pixel-scaling imagenet is for colour images, {store.name} has {channels} "
                "channel; use dataset or unit"
            )
        return Normalization(IMAGENET_MEAN, IMAGENET_STD)
    return Normalization(store.mean, store.std)
