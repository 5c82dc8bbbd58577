"""The backbone: the reference code's shapes, initialisation and order of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradshare as gs
from gradshare.errors import ConfigError
from gradshare.models import Conv4, ConvBlock


@pytest.mark.parametrize(
    ("size", "features"), [(16, 48), (28, 48), (32, 192), (84, 1200), (85, 1200)]
)
def test_the_linear_layer_fits_any_image(size: int, features: int) -> None:
    model = Conv4(ways=5, image_size=size, channels=3)
    assert model.linear.weight.shape == (5, features)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 5)


def test_parameters_of_the_reference_backbone() -> None:
    model = Conv4(ways=5, image_size=84, channels=3, conv_bias=True)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["blocks.0.conv.weight"] == (48, 3, 3, 3)
    assert shapes["blocks.3.conv.bias"] == (48,)
    assert shapes["blocks.3.norm.weight"] == (48,)
    assert shapes["linear.bias"] == (5,)
    assert len(shapes) == 18
    assert all(p.eq(0).all() for n, p in model.named_parameters() if n.endswith("bias"))
    assert all(p.eq(1).all() for n, p in model.named_parameters() if "norm.weight" in n)
    bound = (6 / (48 * 9 + 48 * 9)) ** 0.5  # Xavier-uniform
    weight = model.get_parameter("blocks.2.conv.weight")
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.98 * bound


@pytest.mark.parametrize(("activation", "slope"), [("leaky_relu", 0.01), ("relu", 0.0)])
def test_pooling_before_the_activation_equals_the_reference_order(
    activation: str, slope: float
) -> None:
    torch.manual_seed(0)
    model = Conv4(ways=3, image_size=20, channels=2, filters=5, activation=activation)  # type: ignore[arg-type]
    x = torch.randn(4, 2, 20, 20)
    expected = x
    for block in model.blocks:
        assert isinstance(block, ConvBlock)
        z = block.conv(expected)
        z = F.batch_norm(z, None, None, training=True)
        expected = F.max_pool2d(F.leaky_relu(z, slope), 2)
    expected = model.linear(expected.flatten(1))
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_a_convolutions_bias_changes_no_output() -> None:
    torch.manual_seed(0)
    model = Conv4(ways=3, image_size=16, channels=1, filters=4, conv_bias=True).double()
    x = torch.randn(5, 1, 16, 16, dtype=torch.float64)
    before = model(x)
    with torch.no_grad():
        model.get_parameter("blocks.1.conv.bias").fill_(3.0)
    assert torch.allclose(model(x), before, rtol=1e-9)


def test_an_image_too_small_to_be_halved_four_times() -> None:
    with pytest.raises(ConfigError) as error:
        Conv4(ways=5, image_size=15, channels=1)
    assert str(error.value) == (
        "image size 15 is too small: the backbone halves it 4 times; use at least 16"
    )


@pytest.mark.parametrize("argument", ["ways", "channels", "filters"])
def test_a_network_of_nothing(argument: str) -> None:
    sizes: dict[str, Any] = {"ways": 5, "channels": 1, "filters": 48, argument: 0}
    with pytest.raises(ConfigError) as error:
        Conv4(image_size=28, **sizes)
    assert str(error.value) == f"{argument} is 0; give a whole number, at least 1"


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Conv4(ways=5, image_size=28, channels=1, activation="gelu")  # type: ignore[arg-type]
    assert str(error.value) == "activation 'gelu' is unknown; use 'leaky_relu' or 'relu'"


def test_a_hessian_vector_product_of_the_outer_loss_is_a_finite_difference() -> None:
    torch.manual_seed(0)
    model = Conv4(ways=3, image_size=16, channels=1, filters=3).double()
    x, y = torch.randn(2, 6, 1, 16, 16, dtype=torch.float64), torch.arange(3).repeat(1, 2)
    tasks = gs.TaskBatch(x[:1], y, x[1:], y)
    learner = gs.maml(model, steps=2, inner_lr=0.1)
    meta, carried = learner.init()
    direction = {name: torch.randn_like(tensor) for name, tensor in meta.items()}

    def meta_gradient(distance: float, *, create_graph: bool) -> list[Tensor]:
        there = {name: t + distance * direction[name] for name, t in meta.items()}
        loss = learner.outer_step(there, carried, tasks, iteration=0).objective.sum()
        return list(torch.autograd.grad(loss, list(meta.values()), create_graph=create_graph))

    gradient = meta_gradient(0, create_graph=True)
    along = [(g * v).sum() for g, v in zip(gradient, direction.values(), strict=True)]
    product = torch.autograd.grad(torch.stack(along).sum(), list(meta.values()))
    before, after = (meta_gradient(d, create_graph=False) for d in (-1e-6, 1e-6))
    for name, mine, a, b in zip(meta, product, before, after, strict=True):
        difference = (b - a) / 2e-6
        assert (mine - difference).norm() <= 1e-5 * difference.norm() + 1e-7, name


def test_it_says_its_shapes_without_computing() -> None:
    model = Conv4(ways=5, image_size=28, channels=1).to("meta")
    assert model(torch.empty(3, 1, 28, 28, device="meta")).shape == (3, 5)
