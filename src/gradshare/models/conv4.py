"""The 4-layer convolutional backbone of the reference MAML++ code, which the paper builds on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError, require_choice, require_count
from gradshare.models.conv_block import ConvBlock

Activation = Literal["leaky_relu", "relu"]

LAYERS = 4
SMALLEST_IMAGE = 2**LAYERS


class Conv4(nn.Module):
    """4 x [3x3 convolution, batch norm, activation, 2x2 max-pool], then a linear layer.

    Initialised as the reference code: Xavier-uniform weights, zero biases, γ = 1, β = 0.

    Args:
        ways: N, the number of outputs.
        image_size: height and width of the input in pixels, at least 16.
        channels: C of the input.
        filters: of each convolution.
        activation: "leaky_relu" has slope 0.01, as in the reference code; the paper says ReLU.
        conv_bias: whether the convolutions have a bias, as in the reference code. Batch norm
            removes it again, so that it changes no output and its gradient is zero except for
            rounding. It is useful only for loading the reference code's weights.

    Raises:
        ConfigError: the image is too small to be halved four times, the number of outputs,
            channels or filters is not positive, or the activation is unknown.
    """

    def __init__(
        self,
        *,
        ways: int,
        image_size: int,
        channels: int,
        filters: int = 48,
        activation: Activation = "leaky_relu",
        conv_bias: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("ways", ways), ("channels", channels), ("filters", filters)):
            require_count(name, value)
        if image_size < SMALLEST_IMAGE:
            raise ConfigError(
                f"image size {image_size} is too small: the backbone halves it {LAYERS} times; "
                f"use at least {SMALLEST_IMAGE}"
            )
        require_choice("activation", activation, Activation)
        negative_slope = {"leaky_relu": 0.01, "relu": 0.0}[activation]
        self.blocks = nn.ModuleList(
            ConvBlock(
                channels if layer == 0 else filters,
                filters,
                negative_slope=negative_slope,
                conv_bias=conv_bias,
            )
            for layer in range(LAYERS)
        )
        self.linear = nn.Linear(filters * (image_size // SMALLEST_IMAGE) ** 2, ways)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, support: Tensor | None = None) -> Tensor:
        """Class scores.

        Args:
            x: (N, C, H, W) images.
            support: (S, C, H, W) images that supply the batch-norm statistics instead of x
                itself (the inductive mode).

        Returns:
            (N, ways) logits.
        """
        statistics_from = None
        if support is not None:
            statistics_from = len(support)
            x = torch.cat([support, x])
        for block in self.blocks:
            x = block(x, statistics_from)
        logits: Tensor = self.linear(x.flatten(1)[statistics_from:])
        return logits
