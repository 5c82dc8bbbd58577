"""Meta-SGD (Li et al., 2017), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.inner_loop import MetaSGD, UpdateRule
from gradshare.methods.maml import Sharing, chain
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
    """Meta-SGD (Li et al., 2017): MAML with a learned rate for each scalar parameter.

        θ_{t,k} = θ_{t,k-1} - α ∘ ∇ L_t^support(θ_{t,k-1})

    The outer loop learns α together with θ. The rates are the same at each step and free in sign.
    The paper takes one step, and draws the initial rates from [0.005, 0.1].

    Args:
        model: see `maml`.
        steps: K, the number of inner steps.
        inner_lr: the initial value of each rate in α.
        sharing: see `maml`.
        rule: see `maml`.
        **options: of `MetaLearner`, such as `loss` and `second_order`.
    """
    rules = chain(sharing, rule, meta_sgd=MetaSGD(inner_lr))
    return MetaLearner(model, rules, steps=steps, **options)
