"""Convolutions by Winograd's method against those of PyTorch."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.models import winograd
from gradshare.models.convolution import Geometry, convolution
from tests.models.derivatives import assert_equal, second_derivatives, third_derivatives

GEOMETRY = Geometry((1, 1), (1, 1), (1, 1), 1)


def problem(N: int, C: int, K: int, size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((N, C, *size), (K, C, 3, 3), (K,))
    x, W, bias = (torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes)
    x = x.contiguous(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in (x, W, bias)]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("size", [(6, 9), (7, 10), (2, 4), (1, 5)])
def test_three_derivatives_equal_those_of_pytorch(
    size: tuple[int, int], with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Mock(wraps=winograd.forward)
    monkeypatch.setattr(winograd, "is_faster", lambda *_: True)
    monkeypatch.setattr(winograd, "forward", forward)
    inputs = problem(3, 4, 2, size, torch.float64)[: 2 + with_bias]
    x, W, *rest = inputs
    bias = rest[0] if rest else None
    ours, theirs = convolution(x, W, bias, GEOMETRY), F.conv2d(x, W, bias, padding=1)
    assert forward.called
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert_equal(second_derivatives(ours, inputs), second_derivatives(theirs, inputs))
    assert_equal(third_derivatives(ours, inputs), third_derivatives(theirs, inputs))


@pytest.mark.parametrize(("C", "K", "size"), [(160, 96, 21), (96, 128, 10)])
def test_where_it_is_chosen_its_rounding_is_that_of_float32(C: int, K: int, size: int) -> None:
    x, W, _ = problem(5, C, K, (size, size), torch.float32)
    assert winograd.is_faster(x, W)
    y = convolution(x, W, None, GEOMETRY)
    exact = F.conv2d(x.double(), W.double(), padding=1)
    assert (y - exact).norm() <= 5e-6 * exact.norm()
    assert y.is_contiguous(memory_format=torch.channels_last)
    g = torch.autograd.grad(y.square().sum(), [x, W])
    expected = torch.autograd.grad(exact.square().sum(), [x, W])
    for mine, other in zip(g, expected, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize(
    ("N", "C", "size", "channels_last"), [(5, 48, 42, True), (5, 160, 4, True), (5, 160, 21, False)]
)
def test_it_is_not_chosen_for_few_channels_few_pixels_or_channels_first(
    N: int, C: int, size: int, channels_last: bool
) -> None:
    x, W, _ = problem(N, C, C, (size, size), torch.float32)
    assert not winograd.is_faster(x if channels_last else x.contiguous(), W)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_it_is_not_chosen_in_half_precision_or_for_complex_numbers(dtype: torch.dtype) -> None:
    x, W, _ = problem(5, 160, 96, (21, 21), torch.float32)
    assert winograd.is_faster(x, W)
    assert not winograd.is_faster(x.to(dtype), W.to(dtype))
