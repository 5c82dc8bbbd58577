"""gradshare: gradient-based meta-learning with gradient sharing."""

from gradshare.classifier import FewShotClassifier
from gradshare.config import RunConfig
from gradshare.errors import ConfigError, DataError, GradshareError, RunError
from gradshare.experiments.results import load_results
from gradshare.inner_loop import (
    LSLR,
    SGD,
    Chain,
    GradientSharing,
    MetaSGD,
    RateControl,
    UpdateRule,
    adapt,
    sum_over_local_tasks,
)
from gradshare.methods import MetaLearner, maml, maml_plus_plus, meta_sgd
from gradshare.models import BatchNorm2d, Conv4
from gradshare.tasks import EpisodeSampler, ImageStore, Normalization, TaskBatch
from gradshare.tasks.datasets import open_dataset, prepare_dataset
from gradshare.tasks.images import ImageFormat
from gradshare.tasks.store import ClassImages, write_store
from gradshare.training.evaluation import evaluate
from gradshare.training.run import train
from gradshare.training.statistics import Interval

__version__ = "0.1.0"

__all__ = [
    "LSLR",
    "SGD",
    "BatchNorm2d",
    "Chain",
    "ClassImages",
    "ConfigError",
    "Conv4",
    "DataError",
    "EpisodeSampler",
    "FewShotClassifier",
    "GradientSharing",
    "GradshareError",
    "ImageFormat",
    "ImageStore",
    "Interval",
    "MetaLearner",
    "MetaSGD",
    "Normalization",
    "RateControl",
    "RunConfig",
    "RunError",
    "TaskBatch",
    "UpdateRule",
    "adapt",
    "evaluate",
    "load_results",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "open_dataset",
    "prepare_dataset",
    "sum_over_local_tasks",
    "train",
    "write_store",
]
