"""The networks that are measured, as their users write them: ordinary modules of PyTorch's own.

Where the package brings a network, ours is measured with it, and the peers with the same network
here. The two have the same parameters by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

import gradshare as gs

WAYS = 5


@dataclass(frozen=True)
class Network:
    """A network to be measured.

    Attributes:
        shape: of one input.
        build: makes the module.
        ours: makes the package's module of the same network; None where it brings none.
    """

    shape: tuple[int, ...]
    build: Callable[[], nn.Module]
    ours: Callable[[], nn.Module] | None = None


def features(width: int = 128) -> nn.Module:
    """A small dense network on 576 features, as a frozen backbone gives them."""
    return nn.Sequential(
        nn.Linear(576, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, WAYS)
    )


def signals() -> nn.Module:
    """Two convolutions over signals of two channels."""
    return nn.Sequential(
        *(nn.Conv1d(2, 32, 5, padding=2), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool1d(4)),
        *(nn.Conv1d(32, 32, 5, padding=2), nn.GroupNorm(4, 32), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, WAYS)),
    )


class Transformer(nn.Module):
    """Two layers of self-attention over sequences of 16 vectors, then their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(32, 64)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.linear = nn.Linear(64, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 16, 32) to (N, WAYS) logits."""
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.linear(x.mean(1))
        return logits


class LSTM(nn.Module):
    """One LSTM over sequences of 16 vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.linear = nn.Linear(64, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 16, 32) to (N, WAYS) logits."""
        logits: Tensor = self.linear(self.lstm(x)[0][:, -1])
        return logits


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Conv4(nn.Module):
    """The peers' Conv-4."""

    def __init__(self, size: int, channels: int, filters: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv": nn.Conv2d(inputs, filters, 3, padding=1, bias=False),
                    "norm": _norm(filters),
                }
            )
            for inputs in (channels, filters, filters, filters)
        )
        self.linear = nn.Linear(filters * (size // 16) ** 2, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images to (N, WAYS) logits."""
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = F.max_pool2d(F.leaky_relu(block["norm"](block["conv"](x)), 0.01), 2)
        logits: Tensor = self.linear(x.flatten(1))
        return logits


class ConvNorm(nn.Module):
    """A convolution that keeps the size, then batch norm."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        self.norm = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H, W)."""
        normalised: Tensor = self.norm(self.conv(x))
        return normalised


class ResNet12(nn.Module):
    """The peers' ResNet-12, without dropout."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "first": ConvNorm(channels, width, 3),
                    "second": ConvNorm(width, width, 3),
                    "third": ConvNorm(width, width, 3),
                    "shortcut": ConvNorm(channels, width, 1),
                }
            )
            for channels, width in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.linear = nn.Linear(widths[-1], WAYS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) images to (N, WAYS) logits."""
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            y = F.leaky_relu(block["first"](x), 0.1)
            y = F.leaky_relu(block["second"](y), 0.1)
            y = block["third"](y) + block["shortcut"](x)
            x = F.max_pool2d(F.leaky_relu(y, 0.1), 2)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def conv4(size: int, channels: int, filters: int = 48) -> Network:
    """Conv-4 on images of `size` pixels squared."""
    return Network(
        (channels, size, size),
        lambda: Conv4(size, channels, filters),
        lambda: gs.Conv4(ways=WAYS, image_size=size, channels=channels, filters=filters),
    )


def resnet12(size: int, widths: tuple[int, ...] = (64, 160, 320, 640)) -> Network:
    """ResNet-12 on colour images of `size` pixels squared."""
    return Network(
        (3, size, size),
        lambda: ResNet12(widths),
        lambda: gs.ResNet12(WAYS, widths=widths, drop_rate=0.0),
    )


NETWORKS = {
    "features": Network((576,), features),
    "wide features": Network((576,), lambda: features(2048)),
    "signals": Network((2, 256), signals),
    "transformer": Network((16, 32), Transformer),
    "LSTM": Network((16, 32), LSTM),
    "Conv-4 28×28": conv4(28, 1),
    "Conv-4 84×84": conv4(84, 3),
    "ResNet-12 84×84": resnet12(84),
    "small Conv-4": conv4(16, 3, filters=4),
    "small ResNet-12": resnet12(16, widths=(4, 5, 6, 7)),
}

# What stands for a large network where meta-gradients are compared, and in tests.
SMALL = {
    "Conv-4 28×28": "small Conv-4",
    "Conv-4 84×84": "small Conv-4",
    "ResNet-12 84×84": "small ResNet-12",
    "wide features": "features",
}
