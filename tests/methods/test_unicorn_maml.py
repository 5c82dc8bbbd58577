"""UNICORN-MAML against its literal formula, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError
from gradshare.inner_loop import GradientSharing, Held, OwnGradient, Tensors
from gradshare.methods import UnicornMAML, unicorn_maml
from gradshare.tasks import TaskBatch
from tests.methods.modules import assert_close, gradients
from tests.methods.test_networks import EVERY_LAYOUT

STEPS, LR, TASKS = 2, 0.3, 3
HEAD = ("2.weight", "2.bias")
OTHERS = ("0.weight", "0.bias")


def tasks(ways: int, seed: int = 1) -> TaskBatch:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(ways).repeat(2).expand(TASKS, 2 * ways)

    def rows() -> Tensor:
        return torch.randn(TASKS, 2 * ways, 4, generator=generator, dtype=torch.float64)

    return TaskBatch(rows(), y, rows(), y)


def model(ways: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, ways)).double()


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradients of the classes' outputs do not add up to zero."""
    return F.mse_loss(outputs, F.one_hot(targets, outputs.shape[1]).double())


def forward(theta: Tensors, x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ theta["0.weight"].T + theta["0.bias"])
    return hidden @ theta["2.weight"].T + theta["2.bias"]


def start(meta: Tensors, ways: int) -> dict[str, Tensor]:
    """The head's one row, once for each class."""
    theta = {name: meta[f"model.{name}"] for name in OTHERS}
    return {**theta, **{n: torch.cat([meta[f"model.{n}"]] * ways) for n in HEAD}}


def own_gradients(theta: Tensors, x: Tensor, y: Tensor, loss: Any) -> dict[str, Tensor]:
    value = loss(forward(theta, x), y)
    found = torch.autograd.grad(value, list(theta.values()), create_graph=True)
    return dict(zip(theta, found, strict=True))


def oracle(
    meta: Tensors, batch: TaskBatch, g_hat: Any, loss: Any, *, ways: int, training: bool
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Each task's outputs for its queries, and the new ĝ. `g_hat` is None without sharing, and []
    before any training.
    """
    thetas = [start(meta, ways) for _ in range(TASKS)]
    new = []
    for k in range(STEPS):
        own = [
            own_gradients(theta, batch.support_x[t], batch.support_y[t], loss)
            for t, theta in enumerate(thetas)
        ]
        if g_hat is None:
            deltas = own
        else:
            gate = meta["sharing.lambda"][k].sigmoid()
            if training:
                total = {name: torch.stack([g[name] for g in own]).sum(0) for name in own[0]}
                norm = torch.stack([(g**2).sum() for g in total.values()]).sum().sqrt()
                g_k = {name: g / norm for name, g in total.items()}
                # There is one ĝ for all classes, the mean of theirs.
                g_k = {n: g.mean(0, keepdim=True) if n in HEAD else g for n, g in g_k.items()}
                m = meta["sharing.m"][k].sigmoid()
                mixed = {n: m * g + (1 - m) * g_hat[k][n] if g_hat else g for n, g in g_k.items()}
            else:
                mixed = g_hat[k]
            new.append({name: tensor.detach() for name, tensor in mixed.items()})
            deltas = [
                {n: gate * mixed[n] + (1 - gate) * g for n, g in task.items()} for task in own
            ]
        thetas = [
            {name: tensor - LR * delta[name] for name, tensor in theta.items()}
            for theta, delta in zip(thetas, deltas, strict=True)
        ]
    return [forward(theta, batch.query_x[t]) for t, theta in enumerate(thetas)], new


@EVERY_LAYOUT
@pytest.mark.parametrize("loss", [F.cross_entropy, squares], ids=["cross entropy", "squares"])
@pytest.mark.parametrize("sharing", [False, True], ids=["plain", "sharing"])
def test_it_equals_the_literal_formula_with_any_number_of_ways(
    sharing: bool, loss: Any, layout: dict[str, Any]
) -> None:
    learner = unicorn_maml(model(), steps=STEPS, inner_lr=LR, sharing=sharing, loss=loss, **layout)
    meta, carried = learner.init()
    assert meta["model.2.weight"].shape == (1, 5)
    assert meta["model.2.bias"].shape == (1,)
    g_hat: Any = [] if sharing else None
    for seed in (1, 2):
        batch = tasks(3, seed)
        step = learner.outer_step(meta, carried, batch, iteration=0)
        outputs, g_hat_now = oracle(meta, batch, g_hat, loss, ways=3, training=True)
        expected = torch.stack([loss(y, batch.query_y[t]) for t, y in enumerate(outputs)])
        assert_close("losses", step.objective, expected)
        theirs = gradients(expected.mean(), meta)
        for name, gradient in gradients(step.objective.mean(), meta).items():
            assert_close(name, gradient, theirs[name])
        carried = step.carried
        for k, of_step in enumerate(g_hat_now):
            for name, tensor in of_step.items():
                assert_close(name, carried[f"sharing.g_hat.{k}.{name}"], tensor)
        g_hat = g_hat_now if sharing else None
    for ways in (2, 3, 5, 9):
        batch = tasks(ways, 3)
        found = learner.predict(meta, learner.adapt(meta, carried, batch), batch)
        outputs, _ = oracle(meta, batch, g_hat, loss, ways=ways, training=False)
        assert found.shape == (TASKS, 2 * ways, ways)
        for mine, other in zip(found, outputs, strict=True):
            assert_close("outputs", mine, other)


def test_the_order_of_the_classes_does_not_matter() -> None:
    learner = unicorn_maml(model(), steps=STEPS, sharing=True)
    meta, carried = learner.init()
    batch, order = tasks(3), torch.tensor([2, 0, 1])
    other = TaskBatch(batch.support_x, order[batch.support_y], batch.query_x, batch.query_y)
    found, again = (
        learner.predict(meta, learner.adapt(meta, carried, b), b) for b in (batch, other)
    )
    assert_close("outputs", again[..., order], found)


def test_tasks_of_different_numbers_of_classes_give_the_same_when_taken_apart() -> None:
    learner = unicorn_maml(model(), steps=STEPS)
    apart = learner.laid_out(tasks_at_a_time=1, recompute=False, separate=True)
    meta, carried = learner.init()
    batch = tasks(3)
    fewer = batch.support_y.clone()
    fewer[0].clamp_(max=1)
    batch = TaskBatch(batch.support_x, fewer, batch.query_x, batch.query_y.clamp(max=1))
    found, expected = (
        way.outer_step(meta, carried, batch, iteration=0) for way in (apart, learner)
    )
    assert_close("losses", found.losses, expected.losses)


def test_the_head_may_have_no_bias_and_be_the_model_itself() -> None:
    learner = unicorn_maml(nn.Linear(4, 3, bias=False).double(), steps=STEPS)
    meta, carried = learner.init()
    batch = tasks(5)
    assert meta["model.weight"].shape == (1, 4)
    outputs = learner.predict(meta, learner.adapt(meta, carried, batch), batch)
    assert outputs.shape == (TASKS, 10, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"head": "1"},
            "the head '1' is not a linear layer; name one of ['0', '2']",
        ),
        (
            {"adapts": lambda name: name in OTHERS},
            "the inner loop does not adapt '2.weight', the weight of the head; let `adapts` "
            "choose it, or name another head",
        ),
    ],
)
def test_a_head_that_is_not_an_adapted_linear_layer_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        unicorn_maml(model(), **options)
    assert str(error.value) == message


def test_a_model_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the head None is not a linear layer; name one of \[\]"):
        unicorn_maml(nn.Conv2d(1, 2, 3))


def test_another_layer_can_be_named_as_the_head() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.unused = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(x)
            return y

    learner = unicorn_maml(TwoHeads().double(), head="head")
    assert isinstance(learner, UnicornMAML)
    assert learner.head == ("head.weight", "head.bias")
    assert learner.outer_step(*learner.init(), tasks(5), iteration=0).outputs.shape[-1] == 5


def test_a_norm_of_each_tensor_is_refused_since_the_first_gradient_of_the_body_is_zero() -> None:
    for outer in (unicorn_maml(model(), sharing=True), unicorn_maml(model(), sharing=False)):
        meta, carried = outer.init()
        outer.steps = 1
        first = outer.adapt(meta, carried, tasks(4)).params
        for name in OTHERS:
            moved = first[name] - meta[f"model.{name}"].detach()
            assert moved.abs().max() < 1e-15
    shares = GradientSharing(norm="per-tensor")
    for sharing in (shares, OwnGradient(norm="per-tensor"), Held(shares, {"m": 0.5})):
        with pytest.raises(ConfigError, match=r'is rounding noise, .* use norm="global"'):
            unicorn_maml(model(), sharing=sharing)
