"""A user's own backbones, as import paths name them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def toy(width: int = 12, seed: int = 0) -> nn.Module:
    """Random filters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = nn.Conv2d(3, 2 * width, 7, stride=3)
        return nn.Sequential(first, nn.ReLU(), nn.Conv2d(2 * width, width, 1))


class HalfDead(nn.Module):
    """A unit that is always 0, and the mean colour."""

    def forward(self, x: Tensor) -> Tensor:
        """Images to (n, 4)."""
        return torch.cat([torch.zeros(len(x), 1), x.mean((2, 3))], 1)


class Infinite(nn.Module):
    """Features that are not finite."""

    def forward(self, x: Tensor) -> Tensor:
        """Images to (n, 3)."""
        return x.mean((2, 3)) / 0


class Flat(nn.Module):
    """One number for each image."""

    def forward(self, x: Tensor) -> Tensor:
        """Images to (n,)."""
        return x.mean((1, 2, 3))


class Several(nn.Module):
    """Two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images twice."""
        return x, x


def large() -> nn.Module:
    """A network for larger images than those of the tests."""
    return nn.Conv2d(3, 4, 30)


def number() -> int:
    """Not a backbone."""
    return 3
