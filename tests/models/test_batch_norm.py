"""Batch norm and its hand-written double backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradshare.models import BatchNorm2d


def problem(channels_last: bool) -> tuple[BatchNorm2d, Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, -0.7, 1.3, 2.0]))  # nothing is divided by γ
        norm.bias.copy_(torch.tensor([0.1, 0.0, -0.3, 0.5]))
    x = torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64) * 2 + 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return norm, x.requires_grad_()


def call(norm: BatchNorm2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    result = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("channels_last", [False, True])
def test_first_and_second_derivatives_are_finite_differences(channels_last: bool) -> None:
    norm, x = problem(channels_last)
    inputs = (x, norm.weight, norm.bias)
    assert torch.autograd.gradcheck(lambda *a: call(norm, *a), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: call(norm, *a), inputs)


def test_it_is_the_batch_norm_of_pytorch() -> None:
    norm, x = problem(False)
    expected = torch.nn.functional.batch_norm(
        x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
    )
    assert torch.allclose(norm(x), expected, rtol=1e-12)


def test_statistics_from_the_support_make_queries_independent() -> None:
    norm, x = problem(False)
    y = norm(x, statistics_from=2)
    z = norm(torch.cat([x[:2], x[2:] * 5, x[:1]]), statistics_from=2)
    assert torch.allclose(y[:2], z[:2], rtol=1e-12)
    assert torch.allclose(norm(x[:2]), y[:2], rtol=1e-12)
    assert torch.allclose(norm(torch.cat([x[:2], x[2:], x[2:]]), 2)[2:3], y[2:], rtol=1e-12)


def test_under_vmap_it_gives_the_same() -> None:
    norm, x = problem(False)
    stacked = torch.stack([x, 2 * x + 1])
    assert torch.allclose(torch.vmap(norm)(stacked)[1], norm(2 * x + 1), rtol=1e-9)
