"""PyTorch's layers with fast second derivatives, for any network."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from gradshare.models.attention import MultiheadAttention
from gradshare.models.batch_norm import batch_norm
from gradshare.models.convolution import Geometry, convolution
from gradshare.models.derivatives import by_hand, under_autocast
from gradshare.models.group_norm import group_norm
from gradshare.models.layer_norm import layer_norm
from gradshare.models.linear import Linear
from gradshare.models.pooling import MaxPool1d, MaxPool2d
from gradshare.models.recurrent import GRU, LSTM

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """A copy of a network that is differentiated twice in less time.

    Its convolutions of one and two dimensions, `nn.BatchNorm2d`, `nn.GroupNorm` and `nn.LayerNorm`
    get hand-written second derivatives. `nn.MultiheadAttention`, `nn.LSTM` and `nn.GRU` are
    computed in plain operations, which `torch.vmap` can take, and which can be differentiated twice
    on a GPU. `nn.MaxPool1d`, `nn.MaxPool2d` and `nn.Linear` take fewer passes.

    All layers compute what they computed before, up to rounding, in each mode. They have the same
    parameters, buffers and names, so that a state dictionary fits both networks. Subclasses of
    these layers stay as they are.

    Args:
        model: any module that `copy.deepcopy` accepts. It is not changed.
    """
    return use_fast_layers(copy.deepcopy(model))


def use_fast_layers(model: Model) -> Model:
    """The same network with its layers replaced, as by `accelerate`, but in place."""
    for module in model.modules():
        fast = _FAST.get(type(module))
        if fast is not None:
            module.__class__ = fast
    return model


def use_plain_layers(model: Model) -> Model:
    """Undo `use_fast_layers`, in place."""
    plain = {fast: layer for layer, fast in _FAST.items()}
    for module in model.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
    return model


class _Convolution(nn.modules.conv._ConvNd):
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to (N, out_channels, …)."""
        if (
            x.ndim == self.weight.ndim
            and x.dtype == self.weight.dtype
            and not x.is_complex()
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and by_hand()
            and not under_autocast(x.device)
        ):
            geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)
            return convolution(x, self.weight, self.bias, geometry)
        return super().forward(x)  # type: ignore[no-any-return]


class Conv1d(_Convolution, nn.Conv1d):
    """`torch.nn.Conv1d` with a fast second derivative."""


class Conv2d(_Convolution, nn.Conv2d):
    """`torch.nn.Conv2d` with a fast second derivative."""


class _BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with a fast second derivative of its batch statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        by_batch = self.training or self.running_mean is None
        if not by_batch or not self.affine or x.ndim != 4:
            return super().forward(x)
        if self.running_mean is not None:
            with torch.no_grad():  # updates the running statistics
                super().forward(x)
        return batch_norm(x, self.weight, self.bias, self.eps)


class _GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with a fast second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same shape."""
        if not self.affine or under_autocast(x.device):
            return super().forward(x)
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` with a fast second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, *normalized_shape) to the same shape."""
        if under_autocast(x.device):
            return super().forward(x)
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


_FAST = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.GroupNorm: _GroupNorm,
    nn.LayerNorm: _LayerNorm,
    nn.Linear: Linear,
    nn.MaxPool1d: MaxPool1d,
    nn.MaxPool2d: MaxPool2d,
    nn.MultiheadAttention: MultiheadAttention,
    nn.LSTM: LSTM,
    nn.GRU: GRU,
}
