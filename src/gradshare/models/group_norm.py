"""Group normalisation with a hand-written second derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.models.derivatives import (
    by_hand,
    call,
    second_derivative,
    tasks_first,
    tasks_to_channels,
)

_forward = torch.ops.aten.native_group_norm.default
_backward = torch.ops.aten.native_group_norm_backward.default


def group_norm(x: Tensor, groups: int, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.group_norm`, with a fast second derivative.

    Args:
        x: (N, C, …).
        groups: into how many groups the channels are divided.
        gamma: (C,), the scale.
        beta: (C,), the shift.
        eps: added to the variance.
    """
    full = x.dtype == gamma.dtype and x.dtype in (torch.float32, torch.float64)
    # PyTorch's function raises an error for other channels, and for one value a group.
    fits = x.ndim > 2 and x.shape[1] == len(gamma) and x.numel() > len(x) * groups
    if not (full and fits and by_hand()):
        return F.group_norm(x, groups, gamma, beta, eps)
    return call(_Norm, x.flatten(2), gamma, beta, groups, eps).reshape(x.shape)


# For the m values of an image's group, μ = mean x, r = (var x + ε)^(-½) and x̂ = r (x - μ), the
# gradient g of y = γ x̂ + β gives, with w = γ g, W = Σ w and P = Σ w x̂,
#     gβ = Σ g,   gγ = Σ g x̂,   gx = r (w - W / m - x̂ P / m).
# For cotangents v of gx, a of gγ and b of gβ, V = Σ v and U = Σ v x̂, the second one is that of
#     Q = r A + Σ_c a gγ + b gβ,   A = Σ v w - (V W + U P) / m,
# a function of g, γ and of x through r and x̂. With z = r (v - V / m - x̂ U / m):
#     ∂Q/∂g = γ z + a x̂ + b,   ∂Q/∂γ = Σ g z,   ∂Q/∂x̂ = h = a g - (U w + P v) r / m,
# and through x̂ and ∂r/∂x = -r² x̂ / m
#     ∂Q/∂x = r (h - Σ h / m - x̂ Σ h x̂ / m) - r² A x̂ / m.
# Both full-sized results are sums of g, v and x with one factor for each channel of each image. The
# factors follow from five sums over the positions.


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, ...]:
        in_order = x.contiguous(), gamma.contiguous(), beta.contiguous()  # as the kernel reads
        y, mean, rstd = _forward(*in_order, *x.shape, groups, eps)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, gamma, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradients = _NormBackward.apply(  # type: ignore[no-untyped-call]
            g, *ctx.saved_tensors, ctx.groups, ctx.eps
        )
        return (*gradients, None, None)

    @staticmethod
    def of_tasks(T: int, dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        *tensors, groups, eps = arguments
        x, gamma, beta = tasks_first(T, dims, tensors)
        y = call(_Norm, tasks_to_channels(x), gamma.flatten(), beta.flatten(), T * groups, eps)
        return torch.unflatten(y, 1, (T, -1)), 1


class _NormBackward(torch.autograd.Function):
    """The backward pass of `_Norm`, with its own derivative (see above)."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        gamma: Tensor,
        mean: Tensor,
        rstd: Tensor,
        groups: int,
        eps: float,
    ) -> Any:
        ctx.save_for_backward(g, x, gamma, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        ctx.set_materialize_grads(False)
        g, x, gamma = g.contiguous(), x.contiguous(), gamma.contiguous()
        N, C, S = x.shape
        return _backward(g, x, mean, rstd, gamma, N, C, S, groups, [True, True, True])

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, gamma, mean, rstd = ctx.saved_tensors
        groups = ctx.groups
        if torch.is_grad_enabled():
            inputs = (x, gamma, torch.zeros_like(gamma))
            *found, _ = second_derivative(
                lambda x, gamma, beta: F.group_norm(x, groups, gamma, beta, ctx.eps),
                g,
                inputs,
                (v, a, b),
            )
            return *found, None, None, None, None

        def grouped(values: Tensor) -> Tensor:
            """(C,) or (N, C) to (1 or N, groups, C / groups)."""
            return values.reshape(-1, groups, x.shape[1] // groups)

        def total(values: Tensor) -> Tensor:
            """The sum over the channels of a group."""
            return values.sum(2, keepdim=True)

        v = torch.zeros_like(x) if v is None else v
        m = x[0].numel() // groups
        mean, r = mean.reshape(-1, groups, 1), rstd.reshape(-1, groups, 1)
        scale = grouped(gamma)
        # Sums over the positions, for each channel of each image.
        sum_g, sum_v = grouped(g.sum(2)), grouped(v.sum(2))
        sum_g_x = r * (grouped(torch.linalg.vecdot(g, x)) - mean * sum_g)  # with x̂
        sum_v_x = r * (grouped(torch.linalg.vecdot(v, x)) - mean * sum_v)
        sum_v_g = grouped(torch.linalg.vecdot(v, g))
        W, P, V, U = total(scale * sum_g), total(scale * sum_g_x), total(sum_v), total(sum_v_x)
        A = total(scale * sum_v_g) - (V * W + U * P) / m
        of_gamma = (r * (sum_v_g - (V * sum_g + U * sum_g_x) / m)).sum(0).flatten()
        sum_h, sum_h_x = -r * (U * W + P * V) / m, -2 * r * U * P / m
        # ∂Q/∂g is the sum of v, x̂ and 1, and ∂Q/∂x that of g, v, x̂ and 1, with these factors.
        v_in_g, x_in_g, one_in_g = scale * r, -scale * r * U / m, -scale * r * V / m
        g_in_x, v_in_x = -r.square() * U * scale / m, -r.square() * P / m
        if a is not None:
            factor = grouped(a)
            sum_h = sum_h + total(factor * sum_g)
            sum_h_x = sum_h_x + total(factor * sum_g_x)
            x_in_g, g_in_x = x_in_g + factor, g_in_x + r * factor
        if b is not None:
            one_in_g = one_in_g + grouped(b)
        x_in_x = -(r * sum_h_x + r.square() * A) / m
        one_in_x = -r * sum_h / m

        def spread(values: Tensor) -> Tensor:
            """The factors to a shape that is broadcast over x."""
            return values.expand(len(x), *scale.shape[1:]).reshape(*x.shape[:2], 1)

        # x̂ = r x - r μ
        of_g = torch.addcmul(spread(one_in_g - r * mean * x_in_g), v, spread(v_in_g))
        of_g.addcmul_(x, spread(r * x_in_g))
        of_x = torch.addcmul(spread(one_in_x - r * mean * x_in_x), x, spread(r * x_in_x))
        of_x.addcmul_(g, spread(g_in_x)).addcmul_(v, spread(v_in_x))
        return of_g, of_x, of_gamma, None, None, None, None
