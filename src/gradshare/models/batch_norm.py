"""Batch normalisation without running statistics, with a hand-written second derivative.

As in the reference MAML++ code, support and query sets are normalised with batch statistics, in
training and in testing. Two modes differ in the images that supply the statistics of the queries:

- *inductive*: the support set, at the same weights and inner step, so that the prediction for a
  query depends on no other query. The support images go through the network in front of the
  queries, and `statistics_from` is their number;
- *transductive* (the paper's): the queries themselves. All queries of a task are one forward pass,
  so the prediction for one query depends on the others. One image alone is predicted badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.models.derivatives import (
    by_hand,
    call,
    like,
    second_derivative,
    tasks_first,
    tasks_to_channels,
)

BatchNormMode = Literal["auto", "inductive", "transductive"]

_norm_backward = torch.ops.aten.native_batch_norm_backward.default


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
            return batch_norm(x, self.weight, self.bias, self.eps)
        # `torch.var_mean` would be five times as slow on images whose channels are last in memory.
        reference = x[:statistics_from]
        mean = reference.mean((0, 2, 3))
        variance = (reference - mean[:, None, None]).square().mean((0, 2, 3))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.batch_norm` by batch statistics, with a fast second derivative.

    Args:
        x: (N, C, H, W).
        gamma: (C,), the scale.
        beta: (C,), the shift.
        eps: added to the variance.
    """
    several = x.numel() > x.shape[1]  # PyTorch's function raises an error for one value a channel
    full = x.dtype == gamma.dtype and x.dtype in (torch.float32, torch.float64)
    fits = x.ndim == 4 and x.shape[1] == len(gamma)  # else PyTorch's function raises an error
    if not (several and full and fits):
        return F.batch_norm(x, None, None, gamma, beta, True, eps=eps)
    if not by_hand():
        return literal_batch_norm(x, gamma, beta, eps)
    return call(_Norm, x, gamma, beta, eps)


def literal_batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """The same, slowly. Unlike PyTorch's function (2.13.0) it has a correct third derivative."""
    mean = x.mean((0, 2, 3))
    centred = x - per_channel(mean)
    variance = centred.square().mean((0, 2, 3))
    return centred * per_channel(gamma * torch.rsqrt(variance + eps)) + per_channel(beta)


# For n values a channel, μ = mean x, r = (var x + ε)^(-½) and x̂ = r (x - μ), the gradient g of
# y = γ x̂ + β gives
#     gβ = Σ g,   gγ = Σ g x̂,   gx = γ r (g - gβ / n - x̂ gγ / n).
# For cotangents v of gx, a of gγ and b of gβ, V = Σ v and U = Σ v x̂, the second one is that of
#     Q = γ r A + Σ_c a gγ + b gβ,   A = Σ v g - (V gβ + U gγ) / n,
# a function of g, γ and of x through r and x̂. With e = a - γ r U / n, f = γ r gγ / n:
#     ∂Q/∂g = γ r (v - V / n - x̂ U / n) + a x̂ + b,   ∂Q/∂γ = r A,
#     ∂Q/∂x̂ = h = e g - f v,   and through x̂ and ∂r/∂x = -r² x̂ / n
#     ∂Q/∂x = r (h - Σ h / n - x̂ Σ h x̂ / n) - γ r² A x̂ / n.


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, ...]:
        y, mean, rstd = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, gamma, mean, rstd)
        ctx.eps = eps
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        gradients = _NormBackward.apply(  # type: ignore[no-untyped-call]
            g, *ctx.saved_tensors, ctx.eps
        )
        return (*gradients, None)

    @staticmethod
    def of_tasks(T: int, dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        *tensors, eps = arguments
        x, gamma, beta = tasks_first(T, dims, tensors)
        y = call(_Norm, tasks_to_channels(x), gamma.flatten(), beta.flatten(), eps)
        return torch.unflatten(y, 1, (T, -1)), 1


class _NormBackward(torch.autograd.Function):
    """The backward pass of `_Norm`, with its own derivative (see above)."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        gx, g_gamma, g_beta = _native_backward(like(g, x), x, gamma, mean, rstd)
        ctx.save_for_backward(g, x, gamma, mean, rstd, g_gamma, g_beta)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return gx, g_gamma, g_beta

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, gamma, mean, rstd, g_gamma, g_beta = ctx.saved_tensors
        if torch.is_grad_enabled():
            literal = partial(literal_batch_norm, eps=ctx.eps)
            inputs = (x, gamma, torch.zeros_like(gamma))
            *found, _ = second_derivative(literal, g, inputs, (v, a, b))
            return *found, None, None, None

        g = like(g, x)
        v = torch.zeros_like(x) if v is None else like(v, x)
        n = x.numel() // x.shape[1]
        scale = gamma * rstd
        of_g, U, V = _native_backward(v, x, gamma, mean, rstd)
        A = sums(g, v, torch.zeros_like(mean), torch.ones_like(rstd))[1]
        A -= (V * g_beta + U * g_gamma) / n
        e, f = -scale * U / n, scale * g_gamma / n
        if a is not None:
            of_g.addcmul_(x, per_channel(a * rstd)).sub_(per_channel(a * rstd * mean))
            e = e + a
        if b is not None:
            of_g.add_(per_channel(b))
        sum_h, sum_h_x = e * g_beta - f * V, e * g_gamma - f * U
        tilt = -(rstd.square() / n) * (sum_h_x + scale * A)
        of_x = torch.addcmul(per_channel(-rstd * sum_h / n - tilt * mean), x, per_channel(tilt))
        of_x.addcmul_(g, per_channel(rstd * e)).addcmul_(v, per_channel(-rstd * f))
        return of_g, of_x, rstd * A, None, None, None


def _native_backward(
    g: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, γ and β."""
    gradients: tuple[Tensor, Tensor, Tensor] = _norm_backward(
        g, x, gamma, None, None, mean, rstd, True, 0.0, [True, True, True]
    )
    return gradients


def sums(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Σ g and Σ g r (x - mean) of each channel: the native backward pass without its output."""
    _, product, plain = _norm_backward(
        g, x, None, None, None, mean, rstd, True, 0.0, [False, True, True]
    )
    return plain, product


def per_channel(values: Tensor) -> Tensor:
    """(C,) to a shape that is broadcast over (N, C, H, W)."""
    return values[:, None, None]
