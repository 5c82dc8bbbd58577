"""MAML (Finn et al., 2017), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.inner_loop import SGD, Chain, GradientSharing, UpdateRule
from gradshare.methods.meta_learner import MetaLearner

Sharing = bool | UpdateRule | None


def maml(
    model: nn.Module,
    *,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> MetaLearner:
    """MAML (Finn et al., 2017): learn an initialisation from which K gradient steps solve a task.

    The outer loss is the mean over tasks of L_t^query(θ_{t,K}), where

        θ_{t,0} = θ,   θ_{t,k} = θ_{t,k-1} - α ∇ L_t^support(θ_{t,k-1})

    Batch norm's γ and β are not adapted: the outer loop alone learns them. The paper takes 5 steps
    in training and 10 at test; `gradshare.evaluate` takes `steps`.

    Args:
        model: any module whose `forward` returns one tensor; see `MetaLearner`.
        steps: K, the number of inner steps.
        inner_lr: α, the inner learning rate.
        sharing: True puts `GradientSharing()` before all other rules. A rule, such as a control,
            replaces it.
        rule: your own rule. It comes after sharing and before the multiplication by α.
        **options: of `MetaLearner`, such as `loss` and `second_order`.
    """
    rules = chain(sharing, rule, sgd=SGD(inner_lr))
    return MetaLearner(model, rules, steps=steps, **options)


def chain(sharing: Sharing, rule: UpdateRule | None, **rates: UpdateRule) -> Chain:
    """The rules of a method: sharing, the user's own rule, and the one that multiplies by rates."""
    if isinstance(sharing, bool):
        sharing = GradientSharing() if sharing else None
    return Chain(sharing=sharing, rule=rule, **rates)
