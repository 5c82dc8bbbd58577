"""Batch normalisation without running statistics.

As in the reference MAML++ code, support and query sets are normalised with batch statistics, in
training and in testing. Two modes differ in the images that supply the statistics of the queries:

- *transductive* (the paper's): the queries themselves. All queries of a task are one forward pass,
  so the prediction for one query depends on the others;
- *inductive*: the support set, at the same weights and inner step, so that the prediction for a
  query depends on no other query. The support images go through the network in front of the
  queries, and `statistics_from` is their number.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BatchNormMode = Literal["transductive", "inductive"]


class BatchNorm2d(nn.Module):
    """Batch norm over (N, H, W) of (N, C, H, W), by batch statistics only.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, statistics_from: int | None = None) -> Tensor:
        """Normalise x.

        Args:
            x: (N, C, H, W).
            statistics_from: the number of images, from the first on, that supply the mean and
                variance (the inductive mode's support set); None for all.
        """
        if statistics_from is None:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, eps=self.eps)
        # `torch.var_mean` would be five times as slow on images whose channels are last in memory.
        reference = x[:statistics_from]
        mean = reference.mean((0, 2, 3))
        variance = (reference - mean[:, None, None]).square().mean((0, 2, 3))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
