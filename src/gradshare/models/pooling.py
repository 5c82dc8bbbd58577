"""Max pooling by the faster of PyTorch's two kernels for CPUs.

Where the channels come first in memory, its kernel compares one value at a time; where they come
last, as many as a vector holds. That is faster even if the values have to be copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _single

from gradshare.models.derivatives import (
    by_hand,
    call,
    is_channels_last,
    like,
    tasks_first,
    tasks_to_channels,
)

FEWEST_CHANNELS = 8

_max_pool = torch.ops.aten.max_pool2d_with_indices.default
_max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default
_max_pool_backward_into = torch.ops.aten.max_pool2d_with_indices_backward.grad_input


class MaxPool1d(nn.MaxPool1d):
    """`torch.nn.MaxPool1d`, faster on a CPU where gradients are computed."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, L) to (N, C, …)."""
        # Without gradients PyTorch has a fast kernel.
        if x.ndim != 3 or not torch.is_grad_enabled() or not _suits(self, x):
            return super().forward(x)  # type: ignore[no-any-return]
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        one_row = [(row, *_single(s)) for row, s in zip((1, 1, 0, 1), sizes, strict=True)]
        return call(_MaxPool, x[:, :, None], (*one_row, self.ceil_mode))[:, :, 0]


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d`, faster on a CPU where the channels come first in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, …)."""
        if x.ndim != 4 or not _suits(self, x):
            return super().forward(x)  # type: ignore[no-any-return]
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        return call(_MaxPool, x, (*sizes, self.ceil_mode))


def _suits(layer: nn.MaxPool1d | nn.MaxPool2d, x: Tensor) -> bool:
    wanted = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return wanted and not layer.return_indices and by_hand()


class _MaxPool(torch.autograd.Function):
    """The arguments after x are those of `aten::max_pool2d_with_indices`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Sequence[Any]) -> Tensor:
        several = x.shape[1] >= FEWEST_CHANNELS
        last = x.contiguous(memory_format=torch.channels_last) if several else x
        y, indices = _max_pool(last, *windows)
        ctx.save_for_backward(like(indices, x))
        ctx.windows, ctx.shape = windows, x.shape
        ctx.order = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        return like(y, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        # Only its shape and memory order are read. Without a graph the result may take its place.
        x = torch.empty(ctx.shape, dtype=g.dtype, memory_format=ctx.order)
        g = g.contiguous(memory_format=ctx.order)
        if torch.is_grad_enabled():
            return _max_pool_backward(g, x, *ctx.windows, indices), None
        return _max_pool_backward_into(g, x, *ctx.windows, indices, grad_input=x), None

    @staticmethod
    def of_tasks(T: int, dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        x, windows = arguments
        y = call(_MaxPool, tasks_to_channels(*tasks_first(T, dims, [x])), windows)
        return torch.unflatten(y, 1, (T, -1)), 1
