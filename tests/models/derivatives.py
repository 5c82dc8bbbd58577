"""First, second and third derivatives of a layer, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _weighted(tensors: Sequence[Tensor], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    terms = [(t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in tensors]
    return torch.stack(terms).sum()


def second_derivatives(y: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of y and of a function of y's gradients, in which each of them takes part."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    first = torch.autograd.grad((y * weights).square().sum(), inputs, create_graph=True)
    total = _weighted(first, seed=2) + y.sum() * 0.3
    return [*first, *torch.autograd.grad(total, inputs, retain_graph=True)]


def third_derivatives(y: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A Hessian-vector product of a function of y's gradients."""
    first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
    total = _weighted(first, seed=2).square()
    second = torch.autograd.grad(total, inputs, create_graph=True)
    return list(torch.autograd.grad(_weighted(second, seed=3), inputs))


def assert_equal(mine: Sequence[Tensor], other: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    for ours, theirs in zip(mine, other, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm() + 1e-12


def assert_alike(
    ours: Callable[..., Tensor], literal: Callable[..., Tensor], inputs: Sequence[Tensor]
) -> None:
    """The output and two derivatives of a layer are those of plain operations."""
    y, expected = ours(*inputs), literal(*inputs)
    assert_equal([y], [expected])
    assert_equal(second_derivatives(y, inputs), second_derivatives(expected, inputs))
