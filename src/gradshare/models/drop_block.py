"""DropBlock (Ghiasi et al., 2018): dropout of square regions of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import require_count


class DropBlock(nn.modules.dropout._DropoutNd):  # which checks the rate
    """Zeroes random squares in training mode, and rescales the rest.

    Each channel of each image has its own squares, which lie inside the map and may overlap. The
    result is divided by the share of kept values in the whole (N, C, H, W).

    Differences from the code of MetaOptNet and RFS:

    - The rate is constant. Theirs grows from 0 over the layer's first 40,000 calls. A counter of
      calls would be hidden state: the same input would give another output.
    - A map smaller than `block_size` has squares as large as its shorter side, so that a square map
      is dropped whole. Theirs fails on such a map.
    - Whole squares are dropped. Theirs drops only parts of them when the number of squares and
      `block_size` have a common factor.

    Args:
        rate: share of values to drop, in [0, 1]. Overlaps make the actual share a bit smaller.
        block_size: height and width of a square in pixels of the map.

    Raises:
        ConfigError: block_size is not a whole number of at least 1.
        ValueError: rate is not in [0, 1].
    """

    def __init__(self, rate: float, block_size: int) -> None:
        super().__init__(rate)
        require_count("block_size", block_size)
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if not self.training:
            return x
        H, W = x.shape[-2:]
        size = min(self.block_size, H, W)
        margin = size - 1
        chance = self.p * H * W / (size**2 * (H - margin) * (W - margin))
        # Upper left corners of squares. Random numbers in bfloat16 would be too coarse.
        corners = torch.rand_like(x[..., margin:, margin:], dtype=torch.float32) < chance
        kept = 1 - F.max_pool2d(F.pad(corners.to(x.dtype), [margin] * 4), size, stride=1)
        # If nothing is kept, the result is 0 and not 0 / 0.
        return x * (kept / kept.mean().clamp(min=torch.finfo(x.dtype).tiny))
