"""BOIL (Oh et al., 2021), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.inner_loop import SGD, UpdateRule
from gradshare.methods.head import head_parameters
from gradshare.methods.maml import Sharing, chain
from gradshare.methods.meta_learner import MetaLearner
from gradshare.methods.network import batch_norm_parameters


def boil(
    model: nn.Module,
    *,
    head: str | None = None,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> MetaLearner:
    """BOIL (Oh et al., 2021): MAML whose inner loop adapts the body alone.

    The name stands for "body only update in inner loop". The outer loop learns the weights φ of the
    body and w of the head. Its loss is the mean over tasks of L_t^query(φ_{t,K}, w), where

        φ_{t,0} = φ,   φ_{t,k} = φ_{t,k-1} - α ∇_φ L_t^support(φ_{t,k-1}, w)

    The reference code adapts batch norm's γ and β too; here the outer loop alone learns them, as in
    every method of this package, so that comparisons differ in the method only.

    Args:
        model: see `maml`.
        head: the name of the head; None for the last linear layer of the model.
        steps: K, the number of inner steps.
        inner_lr: α.
        sharing: see `maml`.
        rule: see `maml`.
        **options: of `MetaLearner`, such as `loss`; not `adapts`.

    Raises:
        ConfigError: the model has no such linear layer, or nothing else to adapt.
    """
    fixed = {*head_parameters(model, head), *batch_norm_parameters(model)}
    rules = chain(sharing, rule, sgd=SGD(inner_lr))
    return MetaLearner(model, rules, steps=steps, adapts=lambda name: name not in fixed, **options)
