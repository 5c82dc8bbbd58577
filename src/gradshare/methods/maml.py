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
        model: see `MetaLearner`.
        steps: K.
        inner_lr: α, by which the rules' updates are multiplied.
        sharing: True puts `GradientSharing()` before all other rules; a rule, such as a control,
            replaces it.
        rule: your own rule, between sharing and the multiplication by α.
        **options: of `MetaLearner`.
    """
    chain = Chain(sharing=sharing_rule(sharing), rule=rule, sgd=SGD(inner_lr))
    return MetaLearner(model, chain, steps=steps, **options)


def sharing_rule(sharing: Sharing) -> UpdateRule | None:
    """The rule that a method's `sharing` argument asks for."""
    if isinstance(sharing, bool) or sharing is None:
        return GradientSharing() if sharing else None
    return sharing
