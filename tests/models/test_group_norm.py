"""Group norm with a hand-written second derivative, beside one written in plain operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.models.group_norm import group_norm
from tests.models.derivatives import (
    assert_alike,
    assert_equal,
    second_derivatives,
    third_derivatives,
)

SHAPES = [(3, 6, 4), (1, 4, 5), (2, 6, 3, 2), (2, 4, 2, 1, 3), (5, 8, 1)]


def inputs(*shape: int, tasks: tuple[int, ...] = ()) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [shape, shape[1:2], shape[1:2]]
    return [
        torch.randn(*tasks, *s, generator=generator, dtype=torch.float64).requires_grad_()
        for s in shapes
    ]


def literal(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    grouped = x.reshape(len(x), 2, -1)
    mean = grouped.mean(2, keepdim=True)
    variance = (grouped - mean).square().mean(2, keepdim=True)
    normal = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    return normal * gamma.reshape(per_channel) + beta.reshape(per_channel)


def ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return group_norm(x, 2, gamma, beta, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_and_two_derivatives_are_those_of_plain_operations(
    shape: tuple[int, ...],
) -> None:
    tensors = inputs(*shape)
    assert_alike(ours, literal, tensors)
    assert torch.autograd.gradgradcheck(ours, tensors)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_each_derivative_can_be_had_alone(wanted: int) -> None:
    tensors = inputs(3, 6, 4)
    one = [tensors[wanted]]
    mine, other = (second_derivatives(f(*tensors), one) for f in (ours, literal))
    assert_equal(mine, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_for_several_tasks_at_once_it_is_that_of_each(shape: tuple[int, ...]) -> None:
    tensors = inputs(*shape, tasks=(3,))
    together = torch.vmap(ours)(*tensors)
    apart = torch.stack([literal(*task) for task in zip(*tensors, strict=True)])
    assert_equal(second_derivatives(together, tensors), second_derivatives(apart, tensors))


def test_the_third_derivative_is_right() -> None:
    tensors = inputs(3, 6, 4)
    assert_equal(
        third_derivatives(ours(*tensors), tensors), third_derivatives(literal(*tensors), tensors)
    )


def test_images_with_the_channels_last_give_the_same() -> None:
    x, gamma, beta = inputs(2, 6, 3, 2)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    mine = second_derivatives(ours(last, gamma, beta), [last, gamma, beta])
    assert_equal(mine, second_derivatives(literal(x, gamma, beta), [x, gamma, beta]))


@pytest.mark.parametrize(
    ("shape", "channels"), [((3, 6), 6), ((3, 5, 4), 6), ((0, 6, 4), 6), ((2, 6, 1), 6)], ids=str
)
def test_other_inputs_get_what_pytorch_gives_them(shape: tuple[int, ...], channels: int) -> None:
    plain = nn.GroupNorm(6 if shape[-1] == 1 else 2, channels)
    found = []
    for layer in (plain, gs.accelerate(plain)):
        try:
            found.append(layer(torch.ones(shape)).tolist())
        except (RuntimeError, ValueError) as error:
            found.append(str(error))
    assert found[0] == found[1]


def test_a_scale_and_shift_that_are_not_in_order_in_memory_give_the_same() -> None:
    x, gamma, beta = inputs(3, 6, 4)
    tensors = [x, *(torch.stack([t, t + 1], 1).detach()[:, 0] for t in (gamma, beta))]
    for tensor in tensors:
        tensor.requires_grad_()
    assert_alike(ours, literal, tensors)
