"""A convolution whose derivatives of every order are convolutions that PyTorch has fast code for.

A convolution y = x * W is bilinear. For the gradient g of y, the gradients of x and W are two more
bilinear functions, B_x(g, W) and B_W(g, x), which PyTorch computes together. With cotangents u and
v of them, the second derivative is that of

    <u, B_x(g, W)> + <v, B_W(g, x)> = <u * W, g> + <x * v, g>,

so u * W + x * v is the gradient of g, B_x(g, v) that of x, and B_W(g, u) that of W: the same three
functions again. PyTorch's own second derivative computes the last one slowly: as a convolution
whose filter is g, as large as the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradshare.models import winograd
from gradshare.models.derivatives import call, tasks_first, tasks_to_channels

_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Geometry:
    """The arguments of `torch.nn.functional.conv2d` that are not tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def convolution(x: Tensor, W: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """`torch.nn.functional.conv2d` of four-dimensional x, where `by_hand()`."""
    return call(_Convolution, x, W, bias, geometry)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.geometry = geometry
        if _by_winograd(x, W, geometry):
            z = winograd.forward(x, W)
            return z if bias is None else z.add_(bias[:, None, None])
        y: Tensor = _convolution(x, W, bias, *_arguments(geometry))
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _ConvolutionBackward.apply(  # type: ignore[no-untyped-call]
            g, *ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad[:3]
        )
        return (*gradients, None)

    @staticmethod
    def of_tasks(T: int, dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        x, W, bias, geometry = arguments
        if dims[1] is None and dims[2] is None:  # tasks that share the layer are one batch
            (x,) = tasks_first(T, dims, [x])
            return torch.unflatten(convolution(x.flatten(0, 1), W, bias, geometry), 0, (T, -1)), 0
        x, W = tasks_first(T, dims, [x, W])
        if bias is not None:
            (bias,) = tasks_first(T, dims[2:], [bias])
            bias = bias.flatten()
        grouped = replace(geometry, groups=T * geometry.groups)
        y = convolution(tasks_to_channels(x), W.flatten(0, 1), bias, grouped)
        return torch.unflatten(y, 1, (T, -1)), 1


class _ConvolutionBackward(torch.autograd.Function):
    """The gradients of x, W and the bias, those that are needed."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        W: Tensor,
        geometry: Geometry,
        needed: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, W)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        if _by_winograd(x, W, geometry):
            of_bias = g.sum((0, 2, 3)) if needed[2] else None
            return *winograd.backward(g, x, W, needed[:2]), of_bias
        gradients: tuple[Tensor | None, ...] = _convolution_backward(
            g, x, W, [len(W)], *_arguments(geometry), list(needed)
        )
        return gradients

    @staticmethod
    def backward(
        ctx: Any, u: Tensor | None, v: Tensor | None, of_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, W = ctx.saved_tensors
        _, needs_x, needs_W, *_ = ctx.needs_input_grad
        of_g = None
        if v is not None or of_bias is not None:
            of_g = convolution(x, torch.zeros_like(W) if v is None else v, of_bias, ctx.geometry)
        if u is not None:
            through_x = convolution(u, W, None, ctx.geometry)
            of_g = through_x if of_g is None else of_g + through_x
        of_x, of_W, _ = _ConvolutionBackward.apply(  # type: ignore[no-untyped-call]
            g,
            x if u is None else u,
            W if v is None else v,
            ctx.geometry,
            (needs_x and v is not None, needs_W and u is not None, False),
        )
        return of_g, of_x, of_W, None, None


def _by_winograd(x: Tensor, W: Tensor, geometry: Geometry) -> bool:
    suits = (x.shape[1], *W.shape[2:]) == (W.shape[1], 3, 3)
    return suits and geometry == Geometry((1, 1), (1, 1), (1, 1), 1) and winograd.is_faster(x, W)


def _arguments(geometry: Geometry) -> tuple[Any, ...]:
    """As `aten::convolution` takes them, which can be transposed too."""
    g = geometry
    return g.stride, g.padding, g.dilation, False, [0] * len(g.stride), g.groups
