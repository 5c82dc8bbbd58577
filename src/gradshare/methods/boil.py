"""BOIL (Oh et al., 2021), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradshare.methods.head import head_parameters
from gradshare.methods.maml import maml
from gradshare.methods.meta_learner import MetaLearner
from gradshare.methods.network import batch_norm_parameters


def boil(model: nn.Module, *, head: str | None = None, **options: Any) -> MetaLearner:
    """BOIL ("body only update in inner loop"): MAML whose inner loop does not adapt the head.

    With a body of weights φ and a head of weights w, of which both are learned:

        φ_{t,k} = φ_{t,k-1} - α ∇_φ L_t^support(φ_{t,k-1}, w),   outer loss: Σ_t L_t^query(φ_{t,K}, w)

    The reference code adapts batch norm's γ and β too; here the outer loop alone learns them, as in
    every method of this package, so that comparisons differ in the method only.

    Args:
        model: see `maml`.
        head: the name of a linear layer; None for the last one of the model.
        **options: of `maml`, but for `adapts`.

    Raises:
        ConfigError: the model has no such linear layer, or nothing else to adapt.
    """
    fixed = {*head_parameters(model, head), *batch_norm_parameters(model)}
    return maml(model, adapts=lambda name: name not in fixed, **options)
