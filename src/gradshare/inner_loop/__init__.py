"""What happens inside a task: task gradients, update rules, gradient sharing, the K-step loop."""

from gradshare.inner_loop.adapt import Adaptation, adapt, task_gradients
from gradshare.inner_loop.rates import LSLR, MetaSGD
from gradshare.inner_loop.rule import (
    SGD,
    Chain,
    SumOverTasks,
    Tensors,
    UpdateRule,
    sum_over_local_tasks,
)
from gradshare.inner_loop.sharing import GradientSharing, RateControl

__all__ = [
    "LSLR",
    "SGD",
    "Adaptation",
    "Chain",
    "GradientSharing",
    "MetaSGD",
    "RateControl",
    "SumOverTasks",
    "Tensors",
    "UpdateRule",
    "adapt",
    "sum_over_local_tasks",
    "task_gradients",
]
