"""ALFA (Baik et al., 2020), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.inner_loop import ALFA, UpdateRule
from gradshare.methods.maml import Sharing, chain
from gradshare.methods.meta_learner import MetaLearner


def alfa(
    model: nn.Module,
    *,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> MetaLearner:
    """ALFA (Baik et al., 2020): MAML with rates and weight decay that a learned network generates.

    The network computes both for each tensor, task and step, from the means of the weights and
    gradients. `gradshare.ALFA` has the equations, and what the reference code does differently.

    Args:
        model: see `maml`.
        steps: K, the number of inner steps.
        inner_lr: the initial value of each rate.
        sharing: see `maml`. The network gets the means of the mixed gradients.
        rule: see `maml`.
        **options: of `MetaLearner`, such as `loss` and `second_order`.
    """
    rules = chain(sharing, rule, alfa=ALFA(inner_lr))
    return MetaLearner(model, rules, steps=steps, **options)
