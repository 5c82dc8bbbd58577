"""Batch norm by the statistics of the images at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from gradshare.models import BatchNorm2d


def problem() -> tuple[BatchNorm2d, Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, -0.7, 1.3, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, -0.3, 0.5]))
    return norm, torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64) * 2 + 1


def test_it_is_the_batch_norm_of_pytorch() -> None:
    norm, x = problem()
    expected = torch.nn.functional.batch_norm(
        x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
    )
    assert torch.allclose(norm(x), expected, rtol=1e-12)


def test_statistics_from_the_support_make_queries_independent() -> None:
    norm, x = problem()
    y = norm(x, statistics_from=2)
    z = norm(torch.cat([x[:2], x[2:] * 5, x[:1]]), statistics_from=2)
    assert torch.allclose(y[:2], z[:2], rtol=1e-12)
    assert torch.allclose(norm(x[:2]), y[:2], rtol=1e-12)
    assert torch.allclose(norm(torch.cat([x[:2], x[2:], x[2:]]), 2)[2:3], y[2:], rtol=1e-12)


def test_statistics_from_all_images_are_its_own() -> None:
    norm, x = problem()
    assert torch.allclose(norm(x, statistics_from=3), norm(x), rtol=1e-12)


def test_under_vmap_it_gives_the_same() -> None:
    norm, x = problem()
    stacked = torch.stack([x, 2 * x + 1])
    assert torch.allclose(torch.vmap(norm)(stacked)[1], norm(2 * x + 1), rtol=1e-9)
