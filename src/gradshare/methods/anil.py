"""ANIL (Raghu et al., 2020), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.methods.head import head_parameters
from gradshare.methods.maml import maml
from gradshare.methods.meta_learner import MetaLearner


def anil(model: nn.Module, *, head: str | None = None, **options: Any) -> MetaLearner:
    """ANIL ("almost no inner loop"): MAML whose inner loop adapts the head alone.

    With a body of weights φ and a head of weights w, of which both are learned:

        w_{t,k} = w_{t,k-1} - α ∇_w L_t^support(φ, w_{t,k-1}),   outer loss: Σ_t L_t^query(φ, w_{t,K})

    Args:
        model: see `maml`.
        head: the name of a linear layer; None for the last one of the model.
        **options: of `maml`, but for `adapts`.

    Raises:
        ConfigError: the model has no such linear layer.
    """
    names = head_parameters(model, head)
    return maml(model, adapts=lambda name: name in names, **options)
