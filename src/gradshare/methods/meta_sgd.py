"""Meta-SGD (Li et al., 2017), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.inner_loop import Chain, MetaSGD, UpdateRule
from gradshare.methods.meta_learner import MetaLearner


def meta_sgd(
    model: nn.Module,
    *,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: UpdateRule | None = None,
    **options: Any,
) -> MetaLearner:
    """MAML with a learned rate for each scalar parameter.

    Args:
        model: see `MetaLearner`.
        steps: K.
        inner_lr: where every learned rate starts.
        sharing: see `maml`.
        **options: of `MetaLearner`.
    """
    return MetaLearner(
        model, Chain(sharing=sharing, meta_sgd=MetaSGD(inner_lr)), steps=steps, **options
    )
