"""MAML (Finn et al., 2017), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.inner_loop import SGD, Chain, UpdateRule
from gradshare.methods.meta_learner import MetaLearner


def maml(
    model: nn.Module,
    *,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: UpdateRule | None = None,
    **options: Any,
) -> MetaLearner:
    """An initialisation from which K steps of gradient descent solve a task.

    Args:
        model: see `MetaLearner`.
        steps: K.
        inner_lr: α.
        sharing: what is done to the task gradients first: `GradientSharing(steps)` for the
            paper's method, None for the original.
        **options: of `MetaLearner`.
    """
    return MetaLearner(model, Chain(sharing=sharing, sgd=SGD(inner_lr)), steps=steps, **options)
