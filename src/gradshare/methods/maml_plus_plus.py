"""MAML++ (Antoniou et al., 2018), with or without gradient sharing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import LSLR, SGD, Tensors, UpdateRule
from gradshare.methods.maml import Sharing, chain
from gradshare.methods.meta_learner import MODEL, MetaLearner


def maml_plus_plus(
    model: nn.Module,
    *,
    multi_step_iterations: int,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    per_step_rates: bool = True,
    per_step_batch_norm: bool = True,
    **options: Any,
) -> MetaLearner:
    """MAML++ (Antoniou et al., 2018): MAML with five parts, each of which can be left out.

    - The query loss counts after each inner step, with weights that are annealed to the last one
      (`multi_step_iterations`).
    - Each tensor has a learned rate for each step (`per_step_rates`).
    - Batch norm has a γ and β for each step (`per_step_batch_norm`).
    - The first outer iterations are first order (`first_order_iterations`; default: none).
    - The outer learning rate is annealed by a cosine, with `schedule` of `gradshare.fit`.

    The reference code changes the weights of the query losses every 500 iterations. Here they
    change at each iteration.

    Args:
        model: see `maml`.
        multi_step_iterations: over how many outer iterations the query losses are annealed to the
            last one (the reference code: 7500 of 50000); 0 counts the last one only.
        steps: K, the number of inner steps.
        inner_lr: the initial value of each rate.
        sharing: see `maml`.
        rule: see `maml`.
        per_step_rates: False takes one fixed rate.
        per_step_batch_norm: False learns one γ and β for all steps.
        **options: of `MetaLearner`, such as `loss` and `first_order_iterations`.
    """
    rates: dict[str, UpdateRule] = (
        {"lslr": LSLR(inner_lr)} if per_step_rates else {"sgd": SGD(inner_lr)}
    )
    return MetaLearner(
        model,
        chain(sharing, rule, **rates),
        steps=steps,
        multi_step_iterations=multi_step_iterations,
        per_step_batch_norm=per_step_batch_norm,
        **options,
    )


def start_from(learner: MetaLearner, rows: Tensors, path: Path) -> None:
    """Start from what the reference code has learned for each inner step.

    Args:
        learner: is changed. If it learns no rates, those of the file are left out.
        rows: what `load_weights` has returned.
        path: of the file, for errors.

    Raises:
        ConfigError: the learner has another number of γ and β, or more steps than rates.
    """
    own = {name: tensor.shape for name, tensor in learner.init()[0].items()}
    for name, tensor in rows.items():
        if name.startswith(f"{MODEL}.") and own.get(name) != tensor.shape:
            raise ConfigError(
                f"{path} has a γ and β for each of {len(tensor)} inner steps; use --method maml++ "
                f"with --inner-steps {len(tensor)}"
            )
        if name in own and (tensor.ndim != len(own[name]) or len(tensor) < own[name][0]):
            raise ConfigError(
                f"{path} has {name!r} of shape {tuple(tensor.shape)}, and {own[name][0]} inner "
                "steps need as many rates; use fewer with --inner-steps, or give another checkpoint"
            )
    learner.starts = {n: tensor[: own[n][0]] for n, tensor in rows.items() if n in own}
