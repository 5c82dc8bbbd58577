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
    """MAML: learn an initialisation from which K steps of gradient descent solve a task.

    Args:
        model: any module whose `forward` returns one tensor; see `MetaLearner`.
        steps: K, the number of inner steps.
        inner_lr: α, the inner learning rate, which multiplies the updates of the rules.
        sharing: True puts `GradientSharing()` before all other rules; a rule, such as a control,
            replaces it.
        rule: your own rule. It comes after sharing and before the multiplication by α.
        **options: options of `MetaLearner`, such as `loss` and `second_order`.
    """
    return MetaLearner(model, descent(inner_lr, sharing, rule), steps=steps, **options)


def descent(inner_lr: float, sharing: Sharing, rule: UpdateRule | None) -> Chain:
    """The rules of gradient descent at one fixed rate; arguments as for `maml`."""
    return Chain(sharing=sharing_rule(sharing), rule=rule, sgd=SGD(inner_lr))


def sharing_rule(sharing: Sharing) -> UpdateRule | None:
    """The rule that a method's `sharing` argument asks for."""
    if isinstance(sharing, bool) or sharing is None:
        return GradientSharing() if sharing else None
    return sharing
