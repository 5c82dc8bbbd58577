"""Layer norm with hand-written derivatives, beside one written in plain operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.models.layer_norm import layer_norm
from tests.models.derivatives import (
    assert_alike,
    assert_equal,
    second_derivatives,
    third_derivatives,
)

# The shape of x, and how many of its last dimensions are normalised together.
SHAPES = [((3, 6), 1), ((2, 4, 5), 1), ((2, 3, 4, 2), 2), ((6,), 1), ((2, 1), 1)]


def inputs(shape: tuple[int, ...], dims: int, tasks: tuple[int, ...] = ()) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(*tasks, *s, generator=generator, dtype=torch.float64).requires_grad_()
        for s in (shape, shape[-dims:], shape[-dims:])
    ]


def literal(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    dims = list(range(-gamma.ndim, 0))
    centred = x - x.mean(dims, keepdim=True)
    variance = centred.square().mean(dims, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * gamma + beta


def ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return layer_norm(x, gamma.shape, gamma, beta, 1e-5)


@pytest.mark.parametrize(("shape", "dims"), SHAPES)
def test_the_output_and_two_derivatives_are_those_of_plain_operations(
    shape: tuple[int, ...], dims: int
) -> None:
    tensors = inputs(shape, dims)
    assert_alike(ours, literal, tensors)
    assert torch.autograd.gradgradcheck(ours, tensors)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_each_derivative_can_be_had_alone(wanted: int) -> None:
    tensors = inputs((3, 6), 1)
    one = [tensors[wanted]]
    mine, other = (second_derivatives(f(*tensors), one) for f in (ours, literal))
    assert_equal(mine, other)


@pytest.mark.parametrize(("shape", "dims"), SHAPES)
def test_for_several_tasks_at_once_it_is_that_of_each(shape: tuple[int, ...], dims: int) -> None:
    tensors = inputs(shape, dims, tasks=(3,))
    together = torch.vmap(ours)(*tensors)
    apart = torch.stack([literal(*task) for task in zip(*tensors, strict=True)])
    assert_equal(second_derivatives(together, tensors), second_derivatives(apart, tensors))


def test_tasks_may_share_the_scale_and_shift_or_the_inputs() -> None:
    x, gamma, beta = inputs((4, 6), 1, tasks=(3,))
    for dims, tensors in (
        ((0, None, None), [x, gamma[0], beta[0]]),
        ((None, 0, 0), [x[0], gamma, beta]),
    ):
        leaves = [t.detach().requires_grad_() for t in tensors]
        each = [
            literal(*(t if d is None else t[task] for t, d in zip(leaves, dims, strict=True)))
            for task in range(3)
        ]
        together = torch.vmap(ours, dims)(*leaves)
        assert_equal(
            second_derivatives(together, leaves), second_derivatives(torch.stack(each), leaves)
        )


def test_the_third_derivative_is_right() -> None:
    tensors = inputs((2, 3, 4), 1)
    assert_equal(
        third_derivatives(ours(*tensors), tensors), third_derivatives(literal(*tensors), tensors)
    )


@pytest.mark.parametrize("settings", [{"bias": False}, {"elementwise_affine": False}], ids=str)
def test_a_layer_without_shift_or_scale_gives_what_pytorch_gives(settings: dict[str, bool]) -> None:
    plain = nn.LayerNorm(6, dtype=torch.float64, **settings)
    fast = gs.accelerate(plain)
    (x, *_) = inputs((3, 6), 1)
    mine, other = (second_derivatives(f(x), [x, *f.parameters()]) for f in (fast, plain))
    assert_equal(mine, other)


def test_a_layer_may_have_a_shift_alone() -> None:
    layer = gs.accelerate(nn.LayerNorm(6, dtype=torch.float64))
    layer.weight = None  # type: ignore[assignment]
    x, _, layer.bias.data = inputs((3, 6), 1)
    expected = literal(x, torch.ones_like(layer.bias), layer.bias)
    tensors = [x, layer.bias]
    assert_equal(second_derivatives(layer(x), tensors), second_derivatives(expected, tensors))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_sequences_of_unequal_length_get_what_pytorch_gives_them() -> None:
    plain = nn.LayerNorm(6)
    x = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(5, 6)])
    assert_equal(gs.accelerate(plain)(x).unbind(), plain(x).unbind())


@pytest.mark.parametrize("settings", [{}, {"elementwise_affine": False}], ids=str)
def test_the_output_can_be_changed_in_place(settings: dict[str, bool]) -> None:
    plain = nn.LayerNorm(6, dtype=torch.float64, **settings)
    (x, *_) = inputs((3, 6), 1)
    mine, other = (second_derivatives(f(x).mul_(2), [x]) for f in (gs.accelerate(plain), plain))
    assert_equal(mine, other)


@pytest.mark.parametrize("shape", [(3, 5), (0, 6)], ids=str)
def test_other_inputs_get_what_pytorch_gives_them(shape: tuple[int, ...]) -> None:
    plain = nn.LayerNorm(6)
    found = []
    for layer in (plain, gs.accelerate(plain)):
        try:
            found.append(layer(torch.ones(shape)).tolist())
        except RuntimeError as error:
            found.append(str(error))
    assert found[0] == found[1]
