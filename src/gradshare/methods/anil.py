"""ANIL (Raghu et al., 2020), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.inner_loop import SGD, Chain, UpdateRule
from gradshare.methods.head import head_parameters
from gradshare.methods.maml import Sharing, sharing_rule
from gradshare.methods.meta_learner import MetaLearner


def anil(
    model: nn.Module,
    *,
    head: str | None = None,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> MetaLearner:
    """ANIL ("almost no inner loop"): MAML whose inner loop adapts the head alone.

    Of a body with weights φ and a head with weights w, both are learned by the outer loss, the mean
    over tasks of L_t^query(φ, w_{t,K}), where

        w_{t,0} = w,   w_{t,k} = w_{t,k-1} - α ∇_w L_t^support(φ, w_{t,k-1})

    Args:
        model: see `maml`.
        head: the name of a linear layer; None for the last one of the model.
        steps: K, the number of inner steps.
        inner_lr: α.
        sharing: see `maml`.
        rule: see `maml`.
        **options: of `MetaLearner`, but for `adapts`.

    Raises:
        ConfigError: the model has no such linear layer.
    """
    names = head_parameters(model, head)
    chain = Chain(sharing=sharing_rule(sharing), rule=rule, sgd=SGD(inner_lr))
    return MetaLearner(model, chain, steps=steps, adapts=lambda name: name in names, **options)
