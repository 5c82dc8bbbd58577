"""The field's other methods against their literal oracles, in float64: every meta-parameter, ĝ, and
the predictions of Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradshare.inner_loop import Adam, Momentum, RMSprop, Tensors
from gradshare.methods import (
    Learner,
    MetaLearner,
    alfa,
    anil,
    boil,
    imaml,
    maml,
    maml_plus_plus,
    proto_maml,
    protonet,
    reptile,
)
from gradshare.tasks import TaskBatch
from tests import oracle_methods as oracle
from tests.methods.modules import assert_close, gradients
from tests.methods.test_networks import EVERY_LAYOUT
from tests.oracle_methods import BODY, HEAD, NORM, Setting
from tests.problems import oracle_g_hat, perturbed

TASKS, WAYS, STEPS, LR = 2, 3, 3, 0.3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, WAYS)
    ).double()


def tasks(seed: int, ways: int = WAYS) -> TaskBatch:
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(TASKS, ways, 6, generator=generator, dtype=torch.float64)

    def rows(each: int) -> Tensor:
        shape = (TASKS, each * ways, 6)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return kinds.repeat(1, each, 1) + noise

    y = torch.arange(ways).expand(TASKS, ways)
    return TaskBatch(rows(2), y.repeat(1, 2), rows(3), y.repeat(1, 3))


def as_batch(t: TaskBatch) -> oracle.Batch:
    return t.support_x, t.support_y, t.query_x, t.query_y


PLUS: dict[str, Any] = {"multi_step_iterations": 0, "per_step_batch_norm": False}
METHODS: dict[str, tuple[Callable[..., MetaLearner], dict[str, Any], Setting]] = {
    "ANIL": (anil, {}, Setting(adapts=HEAD)),
    "BOIL": (boil, {}, Setting(adapts=BODY)),
    "ALFA": (alfa, {}, Setting(rule="alfa")),
    "ProtoMAML": (proto_maml, {}, Setting(head="prototypes")),
    "momentum": (maml, {"rule": Momentum()}, Setting(rule="momentum")),
    "RMSprop": (maml, {"rule": RMSprop()}, Setting(rule="rmsprop", inner_lr=0.02)),
    "Adam": (maml, {"rule": Adam()}, Setting(rule="adam", inner_lr=0.05)),
    "Adam with learned rates": (
        maml_plus_plus,
        {"rule": Adam(), **PLUS},
        Setting(rule="adam", rates=True, inner_lr=0.05),
    ),
}


@EVERY_LAYOUT
@pytest.mark.parametrize("second_order", [True, False], ids=["second-order", "first-order"])
@pytest.mark.parametrize("sharing", [False, True], ids=["plain", "sharing"])
@pytest.mark.parametrize("name", METHODS)
def test_each_method_equals_its_oracle(
    name: str, sharing: bool, second_order: bool, layout: dict[str, Any]
) -> None:
    method, options, s = METHODS[name]
    s = replace(s, sharing=sharing, second_order=second_order)
    learner = method(
        model(),
        steps=STEPS,
        inner_lr=s.inner_lr,
        sharing=sharing,
        second_order=second_order,
        **options,
        **layout,
    )
    meta, carried = learner.init()
    meta = perturbed(meta)
    g_hat = None
    for seed in (1, 2):
        batch = tasks(seed)
        step = learner.outer_step(meta, carried, batch, iteration=0)
        losses, g_hat = oracle.outer_losses(dict(meta), g_hat, as_batch(batch), s)
        assert_close("losses", step.losses, losses)
        theirs = gradients(losses.mean(), meta)
        for parameter, gradient in gradients(step.objective.mean(), meta).items():
            assert_close(parameter, gradient, theirs[parameter])
        carried = step.carried
        for ours, other in zip(oracle_g_hat(carried, STEPS) or [], g_hat, strict=True):
            for parameter, tensor in other.items():
                assert_close(f"ĝ of {parameter}", ours[parameter], tensor)
        g_hat = g_hat or None
    batch = tasks(3)
    outputs = learner.predict(meta, learner.adapt(meta, carried, batch), batch)
    for mine, expected in zip(
        outputs, oracle.test_logits(dict(meta), g_hat, as_batch(batch), s), strict=True
    ):
        assert_close("outputs", mine, expected)
