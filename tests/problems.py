"""Small float64 problems that the package and the oracle are both given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradshare.inner_loop import (
    DetachedSharing,
    ForgottenAtTest,
    GradientSharing,
    Held,
    LearnedRates,
    OwnGradient,
    RateControl,
    Tensors,
    UnnormalizedSharing,
    UpdateRule,
)
from gradshare.inner_loop.sharing import Norm
from gradshare.methods import MetaLearner, maml, maml_plus_plus, meta_sgd
from gradshare.models import Conv4
from gradshare.tasks import TaskBatch
from tests.oracle import Setting

WAYS = 3


def tasks(count: int, seed: int, dtype: torch.dtype = torch.float64) -> TaskBatch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(WAYS).expand(count, WAYS)
    # Images of a class resemble each other, so that adaptation has something to find.
    kinds = torch.randn(count, WAYS, 2, 16, 16, generator=generator, dtype=torch.float64)

    def images(each: int) -> Tensor:
        shape = (count, WAYS * each, 2, 16, 16)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (kinds.repeat_interleave(each, 1) + noise).to(dtype)

    return TaskBatch(
        images(2), labels.repeat_interleave(2, 1), images(3), labels.repeat_interleave(3, 1)
    )


def as_oracle_batch(batch: TaskBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return batch.support_x, batch.support_y, batch.query_x, batch.query_y


def learner(s: Setting, *, conv_bias: bool = False, **layout: Any) -> MetaLearner:
    torch.manual_seed(0)
    model = Conv4(
        ways=WAYS,
        image_size=16,
        channels=2,
        filters=4,
        activation="relu" if s.negative_slope == 0 else "leaky_relu",
        conv_bias=conv_bias,
    ).double()
    norm: Norm = "per-tensor" if s.per_tensor_norm else "global"
    sharing: dict[str, UpdateRule | None] = {
        "none": None,
        "sharing": GradientSharing(norm=norm),
        "rate-control": RateControl(),
        "learned-rates": LearnedRates(),
        "own-gradient": OwnGradient(norm=norm),
        "unnormalized": UnnormalizedSharing(),
        "detached": DetachedSharing(norm=norm),
        "forgotten": ForgottenAtTest(norm=norm),
    }
    rule = sharing[s.sharing]
    gates = {"lambda": s.fixed_lambda, "m": s.fixed_m}
    held = {name: gate for name, gate in gates.items() if gate is not None}
    if rule is not None and held:
        rule = Held(rule, held)
    common: dict[str, Any] = {
        "steps": s.steps,
        "inner_lr": s.inner_lr,
        "sharing": rule,
        "second_order": s.second_order,
        "first_order_iterations": s.first_order_iterations,
        "batch_norm": "inductive" if s.inductive else "transductive",
        **layout,
    }
    if s.method == "maml":
        return maml(model, **common)
    if s.method == "meta-sgd":
        return meta_sgd(model, **common)
    return maml_plus_plus(
        model,
        multi_step_iterations=s.multi_step_iterations or 0,
        per_step_rates=s.per_step_rates,
        per_step_batch_norm=s.per_step_batch_norm,
        **common,
    )


def perturbed(meta: Tensors, seed: int = 1) -> dict[str, Tensor]:
    """Outer parameters away from their special starting values: λ ≠ 0, γ ≠ 1, β ≠ 0, α uneven."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            t.detach()
            + 0.1
            * t.detach().abs().clamp(min=0.3)
            * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
        ).requires_grad_()
        for name, t in meta.items()
    }


def oracle_g_hat(carried: Tensors, steps: int) -> list[dict[str, Tensor]] | None:
    """The package's stored ĝ in the oracle's form."""
    if "sharing.seen" not in carried or not carried["sharing.seen"].all():
        return None
    return [
        {
            name.removeprefix(f"sharing.g_hat.{k}."): tensor
            for name, tensor in carried.items()
            if name.startswith(f"sharing.g_hat.{k}.")
        }
        for k in range(steps)
    ]
