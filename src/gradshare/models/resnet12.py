"""The ResNet-12 of the few-shot literature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.models.batch_norm import BatchNorm2d
from gradshare.models.drop_block import DropBlock
from gradshare.models.layers import Conv2d
from gradshare.models.pooling import MaxPool2d

NEGATIVE_SLOPE = 0.1


class ResNet12(nn.Module):
    """Residual blocks of three 3x3 convolutions, global average pooling, then a linear layer.

    The network of MetaOptNet (Lee et al., 2019) and RFS (Tian et al., 2020), after TADAM (Oreshkin
    et al., 2018), with 12,424,320 parameters before the linear layer, and with its initialisation.
    Here batch norm uses batch statistics only, and `DropBlock` has a constant rate.

    Args:
        ways: N, the number of outputs.
        channels: C of the input.
        widths: number of filters of each block.
        drop_rate: of the dropout after the first two blocks and the DropBlock after the others.
        drop_block_size: in pixels of the feature map; published: 5 for 84x84 images, 2 for 32x32.

    Raises:
        ConfigError: drop_block_size is not a whole number of at least 1.
    """

    def __init__(
        self,
        ways: int,
        *,
        channels: int = 3,
        widths: Sequence[int] = (64, 160, 320, 640),
        drop_rate: float = 0.1,
        drop_block_size: int = 5,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            drop = nn.Dropout(drop_rate) if index < 2 else DropBlock(drop_rate, drop_block_size)
            self.blocks.append(_Block(channels, width, drop))
            channels = width
        self.linear = nn.Linear(channels, ways)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor, support: Tensor | None = None) -> Tensor:
        """Class scores.

        Args:
            x: (N, C, H, W) images of at least 16x16 pixels: each block halves them.
            support: (S, C, H, W) images that supply the batch-norm statistics instead of x
                itself (the inductive mode).

        Returns:
            (N, ways) logits.
        """
        statistics_from = None if support is None else len(support)
        if support is not None:
            x = torch.cat([support, x])
        for block in self.blocks:
            x = block(x, statistics_from)
        logits: Tensor = self.linear(x.mean((2, 3))[statistics_from:])
        return logits


class _Block(nn.Module):
    """(N, channels, H, W) to (N, width, H // 2, W // 2)."""

    def __init__(self, channels: int, width: int, drop: nn.Module) -> None:
        super().__init__()
        self.first = _ConvNorm(channels, width, 3)
        self.second = _ConvNorm(width, width, 3)
        self.third = _ConvNorm(width, width, 3)
        self.shortcut = _ConvNorm(channels, width, 1)
        self.pool = MaxPool2d(2)
        self.drop = drop

    def forward(self, x: Tensor, statistics_from: int | None) -> Tensor:
        y = F.leaky_relu(self.first(x, statistics_from), NEGATIVE_SLOPE, inplace=True)
        y = F.leaky_relu(self.second(y, statistics_from), NEGATIVE_SLOPE, inplace=True)
        y = self.third(y, statistics_from)
        y += self.shortcut(x, statistics_from)
        # The activation increases, so it gives the same after pooling as before, for less work.
        dropped: Tensor = self.drop(F.leaky_relu(self.pool(y), NEGATIVE_SLOPE))
        return dropped


class _ConvNorm(nn.Module):
    """Convolution without bias that keeps the size, then batch norm."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        self.norm = BatchNorm2d(width)

    def forward(self, x: Tensor, statistics_from: int | None) -> Tensor:
        # Under autocast the convolution is narrow, but statistics need all bits.
        z: Tensor = self.norm(self.conv(x).to(x.dtype), statistics_from)
        return z
