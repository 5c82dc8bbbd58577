"""Meta-SGD (Li et al., 2017), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.inner_loop import Chain, MetaSGD, UpdateRule
from gradshare.methods.maml import Sharing, sharing_rule
from gradshare.methods.meta_learner import MetaLearner


def meta_sgd(
    model: nn.Module,
    *,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> MetaLearner:
    """MAML with a learned rate for each scalar parameter.

    Args:
        model: see `maml`.
        steps: K, the number of inner steps.
        inner_lr: the initial value of each learned rate.
        sharing: see `maml`.
        rule: see `maml`.
        **options: options of `MetaLearner`, such as `loss` and `second_order`.
    """
    chain = Chain(sharing=sharing_rule(sharing), rule=rule, meta_sgd=MetaSGD(inner_lr))
    return MetaLearner(model, chain, steps=steps, **options)
