"""bfloat16: how close its gradients are, and what stays float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner, maml, maml_plus_plus, meta_sgd
from gradshare.models import Conv4
from tests import oracle
from tests.problems import WAYS, as_oracle_batch, learner, perturbed, tasks

LAYOUTS: dict[str, dict[str, Any]] = {
    "keep": {},
    "vmap": {"tasks_at_a_time": None},
    "recompute": {"recompute": True},
    "recompute, vmap": {"recompute": True, "tasks_at_a_time": None},
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def smooth_learner(**options: Any) -> MetaLearner:
    """A network without maxima or kinks, so that rounding changes results by its own size only."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, WAYS),
    )
    return maml(model, steps=3, inner_lr=0.1, sharing=True, **options)


def outer_gradients(learner: MetaLearner, dtype: torch.dtype) -> dict[str, Tensor]:
    meta, carried = learner.init()
    meta = {name: t.detach().to(dtype).requires_grad_() for name, t in meta.items()}
    carried = {n: t.to(dtype) if t.is_floating_point() else t for n, t in carried.items()}
    step = learner.outer_step(meta, carried, tasks(3, 1, dtype), iteration=0)
    assert step.losses.dtype == step.outputs.dtype == dtype
    gradients = torch.autograd.grad(
        step.objective.mean(), list(meta.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(meta, gradients, strict=True))


@EVERY_LAYOUT
def test_gradients_of_a_smooth_network_are_within_bfloat16s_rounding(
    layout: dict[str, Any],
) -> None:
    exact = outer_gradients(smooth_learner(), torch.float64)
    for name, gradient in outer_gradients(
        smooth_learner(precision="bfloat16", **layout), torch.float32
    ).items():
        assert gradient.dtype == torch.float32
        # A number of 8 bits is off by up to 2⁻⁹, in some twenty products one after the other.
        difference = (gradient - exact[name]).norm()
        assert difference <= 20 * 2**-9 * exact[name].norm() + 1e-4, name
        if exact[name].norm() > 1e-2:  # and it is not float32 under another name
            assert difference >= 2**-14 * exact[name].norm(), name


@EVERY_LAYOUT
def test_the_backbone_is_near_the_float64_oracle(layout: dict[str, Any]) -> None:
    """A rounding by 2⁻⁹ makes another pixel the maximum, or another sign that of an activation,
    at about one place in 2⁷, and that moves the whole gradient of these places, otherwise on
    each machine: the cosine of three tasks' gradient after three steps is anything from 0.58 to
    0.95. So the sum is taken over many tasks and after one step, where six seeds in four layouts
    gave 0.945 to 0.971. The smooth network above holds bfloat16 to its rounding over three.
    """
    s = oracle.Setting("maml", "sharing", 1, 0.1)
    ours = learner(s, precision="bfloat16", **layout)
    outer = perturbed(ours.init()[0])
    loss, _ = oracle.outer_loss(outer, None, as_oracle_batch(tasks(24, 1)), s)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(loss, _model(outer))])
    meta = {n: t.detach().float().requires_grad_() for n, t in outer.items()}
    carried = {n: t.float() if t.is_floating_point() else t for n, t in ours.init()[1].items()}
    step = ours.outer_step(meta, carried, tasks(24, 1, torch.float32), iteration=0)
    assert abs(step.losses.mean() - loss) <= 0.02 * loss
    got = torch.cat(
        [g.flatten() for g in torch.autograd.grad(step.objective.mean(), _model(meta))]
    ).double()
    assert torch.cosine_similarity(got, exact, dim=0) > 0.92


def _model(outer: Tensors) -> list[Tensor]:
    return [tensor for name, tensor in outer.items() if name.startswith("model.")]


@EVERY_LAYOUT
@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
@pytest.mark.parametrize(
    "method", [maml, meta_sgd, partial(maml_plus_plus, multi_step_iterations=10)]
)
def test_what_is_learned_stays_float32_and_finite(
    method: Any, batch_norm: str, layout: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    learner = method(
        Conv4(ways=WAYS, image_size=16, channels=2, filters=4),
        steps=2,
        sharing=True,
        batch_norm=batch_norm,
        precision="bfloat16",
        **layout,
    )
    meta, carried = learner.init()
    optimizer = torch.optim.Adam(meta.values(), lr=0.001)
    for iteration in range(3):
        optimizer.zero_grad()
        batch = tasks(2, iteration, torch.float32)
        step = learner.outer_step(meta, carried, batch, iteration=iteration)
        step.objective.mean().backward()
        optimizer.step()
        carried = step.carried
    adam = [t for of_one in optimizer.state.values() for t in of_one.values()]
    for tensor in (*meta.values(), *carried.values(), *adam):
        assert tensor.dtype in (torch.float32, torch.bool)
        assert tensor.isfinite().all()
    batch = tasks(2, 9, torch.float32)
    adapted = learner.adapt(meta, carried, batch)
    outputs = learner.predict(meta, adapted, batch)
    assert {t.dtype for t in (outputs, *adapted.params.values())} == {torch.float32}
