"""The inner loop: task gradients, update rules, gradient sharing, the K steps."""

from gradshare.inner_loop.adam import Adam, RMSprop
from gradshare.inner_loop.adapt import Adaptation, adapt, task_gradients
from gradshare.inner_loop.alfa import ALFA
from gradshare.inner_loop.controls import (
    DetachedSharing,
    ForgottenAtTest,
    Held,
    LearnedRates,
    OwnGradient,
    RateControl,
    UnnormalizedSharing,
)
from gradshare.inner_loop.lslr import LSLR
from gradshare.inner_loop.meta_sgd import MetaSGD
from gradshare.inner_loop.momentum import Momentum
from gradshare.inner_loop.proximal import Proximal
from gradshare.inner_loop.rule import (
    Chain,
    Step,
    SumOverTasks,
    Tensors,
    UpdateRule,
    sum_over_local_tasks,
)
from gradshare.inner_loop.sgd import SGD
from gradshare.inner_loop.sharing import GradientSharing

__all__ = [
    "ALFA",
    "LSLR",
    "SGD",
    "Adam",
    "Adaptation",
    "Chain",
    "DetachedSharing",
    "ForgottenAtTest",
    "GradientSharing",
    "Held",
    "LearnedRates",
    "MetaSGD",
    "Momentum",
    "OwnGradient",
    "Proximal",
    "RMSprop",
    "RateControl",
    "Step",
    "SumOverTasks",
    "Tensors",
    "UnnormalizedSharing",
    "UpdateRule",
    "adapt",
    "sum_over_local_tasks",
    "task_gradients",
]
