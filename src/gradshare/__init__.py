"""gradshare: gradient-based meta-learning with gradient sharing.

The names below are imported when they are first used: the program shows its help without torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradshare import testing
    from gradshare.backbones import Backbone, write_features
    from gradshare.classifier import Check, FewShotClassifier, check
    from gradshare.comparison.compare import Comparison, compare
    from gradshare.comparison.results import load_results
    from gradshare.config.runs import open_run
    from gradshare.config.settings import RunConfig
    from gradshare.errors import ConfigError, DataError, GradshareError, RunError
    from gradshare.inner_loop import (
        ALFA,
        LSLR,
        SGD,
        Adam,
        Chain,
        GradientSharing,
        MetaSGD,
        Momentum,
        RateControl,
        RMSprop,
        Step,
        UpdateRule,
        adapt,
        sum_over_local_tasks,
    )
    from gradshare.methods import (
        Learner,
        MetaLearner,
        OuterStep,
        UnicornMAML,
        alfa,
        anil,
        boil,
        imaml,
        maml,
        maml_plus_plus,
        meta_sgd,
        proto_maml,
        protonet,
        reptile,
        unicorn_maml,
    )
    from gradshare.models import MLP, BatchNorm2d, Conv4, ResNet12, accelerate, freeze
    from gradshare.tasks import (
        ClassTasks,
        GroupTasks,
        ImageStore,
        ImageTasks,
        Normalization,
        Sinusoids,
        Splits,
        TaskBatch,
        TaskSource,
        image_splits,
    )
    from gradshare.tasks.datasets import open_dataset, prepare_dataset
    from gradshare.tasks.features import FeatureStore, FeatureTasks, feature_splits
    from gradshare.tasks.images import ImageFormat
    from gradshare.tasks.writing import ClassImages, write_store
    from gradshare.training.dry_run import estimate
    from gradshare.training.evaluation import Evaluation, evaluate
    from gradshare.training.fit import fit
    from gradshare.training.interruption import RunStoppedError
    from gradshare.training.metrics import Metric
    from gradshare.training.options import Event
    from gradshare.training.run import Run
    from gradshare.training.statistics import Interval
    from gradshare.training.supervised import supervised_start

__version__ = "0.2.0"

__all__ = [
    "ALFA",
    "LSLR",
    "MLP",
    "SGD",
    "Adam",
    "Backbone",
    "BatchNorm2d",
    "Chain",
    "Check",
    "ClassImages",
    "ClassTasks",
    "Comparison",
    "ConfigError",
    "Conv4",
    "DataError",
    "Evaluation",
    "Event",
    "FeatureStore",
    "FeatureTasks",
    "FewShotClassifier",
    "GradientSharing",
    "GradshareError",
    "GroupTasks",
    "ImageFormat",
    "ImageStore",
    "ImageTasks",
    "Interval",
    "Learner",
    "MetaLearner",
    "MetaSGD",
    "Metric",
    "Momentum",
    "Normalization",
    "OuterStep",
    "RMSprop",
    "RateControl",
    "ResNet12",
    "Run",
    "RunConfig",
    "RunError",
    "RunStoppedError",
    "Sinusoids",
    "Splits",
    "Step",
    "TaskBatch",
    "TaskSource",
    "UnicornMAML",
    "UpdateRule",
    "accelerate",
    "adapt",
    "alfa",
    "anil",
    "boil",
    "check",
    "compare",
    "estimate",
    "evaluate",
    "feature_splits",
    "fit",
    "freeze",
    "image_splits",
    "imaml",
    "load_results",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "open_dataset",
    "open_run",
    "prepare_dataset",
    "proto_maml",
    "protonet",
    "reptile",
    "sum_over_local_tasks",
    "supervised_start",
    "testing",
    "unicorn_maml",
    "write_features",
    "write_store",
]

# In which module each name is, in this order: the first that has it.
_HOMES = (
    "config.settings",
    "errors",
    "methods",  # before the modules of the same names in inner_loop
    "inner_loop",
    "models",
    "tasks",
    "tasks.datasets",
    "tasks.features",
    "tasks.images",
    "tasks.writing",
    "config.runs",  # before the `open_run` of training.run
    "training.dry_run",
    "training.evaluation",
    "training.fit",
    "training.interruption",
    "training.metrics",
    "training.options",
    "training.run",
    "training.statistics",
    "training.supervised",
    "comparison.compare",
    "comparison.results",
    "backbones",
    "classifier",  # last: scikit-learn takes a second
)


def __getattr__(name: str) -> Any:
    if name == "testing":
        return import_module(f"{__name__}.testing")
    if name in __all__:
        for home in _HOMES:
            found = getattr(import_module(f"{__name__}.{home}"), name, None)
            if not isinstance(found, ModuleType | None):  # a function's module can have its name
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
