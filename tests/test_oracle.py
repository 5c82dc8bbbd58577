"""The oracle against central finite differences of Eq. 5's loss, for each outer parameter."""

from __future__ import annotations

import pytest
import torch

from tests import oracle
from tests.problems import as_oracle_batch, learner, perturbed, tasks

SETTINGS = [
    oracle.Setting("maml", "none", 2, 0.4),
    oracle.Setting("maml", "sharing", 2, 0.4),
    oracle.Setting("maml", "sharing", 2, 0.4, per_tensor_norm=True),
    oracle.Setting("maml", "rate-control", 2, 0.4),
    oracle.Setting("maml", "learned-rates", 2, 0.4),
    oracle.Setting("maml", "own-gradient", 2, 0.4),
    oracle.Setting("maml", "own-gradient", 2, 0.4, per_tensor_norm=True),
    # At 0.4 a maximum of the pooling changes its place within the difference.
    oracle.Setting("maml", "unnormalized", 2, 0.3),
    oracle.Setting("maml", "sharing", 2, 0.4, fixed_lambda=0.25),
    oracle.Setting("maml", "sharing", 2, 0.4, fixed_m=0.02),
    oracle.Setting("maml", "sharing", 2, 0.4, inductive=True),
    oracle.Setting("meta-sgd", "sharing", 2, 0.4),
    oracle.Setting("maml++", "sharing", 2, 0.4, multi_step_iterations=4, per_step_batch_norm=True),
]


@pytest.mark.parametrize(("iteration", "count"), [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_outer_gradient_is_the_finite_difference(
    setting: oracle.Setting, iteration: int, count: int
) -> None:
    outer = perturbed(learner(setting).init()[0])
    g_hat = None
    for i in range(1, iteration):
        _, g_hat = oracle.outer_loss(
            outer, g_hat, as_oracle_batch(tasks(count, seed=i)), setting, i
        )
    batch = as_oracle_batch(tasks(count, seed=iteration))
    loss, _ = oracle.outer_loss(outer, g_hat, batch, setting, iteration)
    gradients = torch.autograd.grad(
        loss, list(outer.values()), allow_unused=True, materialize_grads=True
    )
    generator = torch.Generator().manual_seed(5)
    for (name, tensor), gradient in zip(outer.items(), gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        epsilon = 1e-6
        values = []
        for sign in (1, -1):
            moved = {**outer, name: (tensor + sign * epsilon * direction).detach()}
            moved[name].requires_grad_()
            values.append(oracle.outer_loss(moved, g_hat, batch, setting, iteration)[0].item())
        difference = (values[0] - values[1]) / (2 * epsilon)
        expected = (gradient * direction).sum().item()
        assert difference == pytest.approx(expected, rel=1e-5, abs=2e-8), name
        if name == "sharing.m" and iteration == 1:
            assert difference == 0
