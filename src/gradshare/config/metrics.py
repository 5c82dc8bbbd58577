"""From a configuration to what is measured: the loss and the metrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from gradshare.config.names import call, is_import_path, load, require_arguments
from gradshare.config.settings import RunConfig
from gradshare.errors import ConfigError
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import prepared
from gradshare.training.metrics import LOSS, Metric, accuracy, chance_of


def loss_of(config: RunConfig) -> Callable[..., Any]:
    """The named loss with its options: a function, or an object of the named class."""
    name, options = config.loss, config.loss_option
    found: Any = load("loss", name)
    if isinstance(found, type):
        found = call("loss", name, options, {})
    elif options:
        require_arguments("loss", name, functools.partial(found, None, None), options)
        found = functools.partial(found, **options)
    return found  # type: ignore[no-any-return]


def metrics_of(config: RunConfig, learner: Learner, train: TaskSource) -> dict[str, Metric] | None:
    """The metrics that were chosen, and the loss; None for the defaults. Raise ConfigError if a
    metric is unknown, or does not take its options.
    """
    if not config.metric and not config.metric_option:
        return None
    classes = number_of_classes(train, prepared(train, train.batch([0])))
    loss = getattr(learner, "loss", None)
    chance = None if classes is None else chance_of(train, classes)
    known = {
        "accuracy": Metric(accuracy, unit="%", chance=chance),
        "mse": Metric(F.mse_loss, best="low"),
        **({} if loss is None else {LOSS: Metric(loss, best="low")}),
    }
    options = config.metric_option
    chosen: dict[str, Metric] = {}
    for path in config.metric:
        name = path.rpartition(":")[2]
        if name in chosen:
            raise ConfigError(f"--metric {path}: there are two metrics {name!r}; rename one")
        if is_import_path(path):
            chosen[name], options = _own_metric(path, options), {}
        elif name in known:
            chosen[name] = known[name]
        else:
            raise ConfigError(f"--metric {name}: --method {config.method} has no `loss`")
    if options:
        raise ConfigError(
            f"--metric-option {next(iter(options))} needs a --metric that is an import path; leave "
            "it out"
        )
    if LOSS in known:
        chosen.setdefault(LOSS, known[LOSS])
    return chosen


def number_of_classes(source: TaskSource, task: TaskBatch) -> int | None:
    """The largest number of classes of a task; None if its targets are not classes."""
    ways = getattr(source, "ways", None)
    if isinstance(ways, int | tuple):
        return ways if isinstance(ways, int) else ways[1]
    labels = (task.support_y, task.query_y)
    if all(isinstance(y, Tensor) and not y.is_floating_point() for y in labels):
        return max(int(y.max()) for y in labels) + 1
    return None


def _own_metric(name: str, options: Mapping[str, Any]) -> Metric:
    """The metric of an import path to a Metric, a function, or a class of either."""
    found = load("metric", name)
    if isinstance(found, type):
        found, options = call("metric", name, options, {}), {}
    if not isinstance(found, Metric):
        require_arguments("metric", name, Metric, {"function": found, **options})
        return Metric(found, **options)
    if options:
        raise ConfigError(
            f"--metric-option {next(iter(options))}: {name} is a Metric, which has its own; leave "
            "it out"
        )
    return found
