"""Batch normalisation whose statistics are always those of the images at hand.

As in the reference MAML++ code there are no running statistics: support and query sets, in
training and in testing, are normalised with batch statistics. Which images supply them is stated:

- *transductive* (the paper's): each forward pass supplies its own. A task's queries are one pass,
  so the prediction for one query depends on the others beside it;
- *inductive*: the support set's, at the same weights and inner step, so that the prediction for a
  query depends on no other query. The support images go through the network in front of the
  queries, and `statistics_from` says how many they are.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

BatchNormMode = Literal["transductive", "inductive"]

_native_batch_norm = torch.ops.aten.native_batch_norm.default
_native_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default


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
            statistics_from: take the mean and variance from the first so many images only (the
                inductive mode's support set); None for all of them.
        """
        if statistics_from is not None:
            return _batch_norm(x, self.weight, self.bias, self.eps, x[:statistics_from])
        # The fused form has no rule for torch.func's transforms.
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return _batch_norm(x, self.weight, self.bias, self.eps, x)
        y: Tensor = _FusedBatchNorm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.eps
        )
        return y


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, reference: Tensor) -> Tensor:
    """The definition, differentiable to any order by autograd."""
    variance, mean = torch.var_mean(reference, (0, 2, 3), correction=0)
    scale = weight * torch.rsqrt(variance + eps)
    return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]


# Autograd differentiates PyTorch's batch-norm backward into some forty passes over the
# activations. The two functions below need about ten.
#
# With x̂ = r (x - mean x), r = (var x + ε)^(-1/2), n values a channel, and P the projection
#     P(u) = u - mean(u) - x̂ mean(u x̂),
# the backward pass is  gx = γ r P(g),  gγ = Σ g x̂,  gβ = Σ g.  P is self-adjoint, so what the
# double backward needs of it is the native backward kernel again. For cotangents v of gx, a of gγ
# and b of gβ it differentiates
#     S = γ r A + Σ_c a gγ + b gβ,   A = Σ v P(g) = Σ v g - (Σ v)(Σ g) / n - (Σ v x̂)(Σ g x̂) / n:
#     ∂S/∂g = γ r P(v) + a x̂ + b
#     ∂S/∂γ = r A
#     ∂S/∂x = r P(q) - γ r² A x̂ / n,   q = (a - γ r Σ(v x̂) / n) g - (γ r Σ(g x̂) / n) v,
# the last because ∂r/∂x = -r² x̂ / n, and because a cotangent q of x̂ is one r P(q) of x. Nothing is
# divided by γ, which may be 0.


class _FusedBatchNorm(torch.autograd.Function):
    """Batch norm whose backward pass is `_FusedBatchNormBackward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, rstd = _native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps = eps
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        gradients = _FusedBatchNormBackward.apply(  # type: ignore[no-untyped-call]
            g, x, weight, mean, rstd, ctx.eps
        )
        return (*gradients, None)


class _FusedBatchNormBackward(torch.autograd.Function):
    """The backward pass of batch norm, with its own derivative (see above)."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        gx, g_weight, g_bias = _native_backward(g, x, weight, mean, rstd, eps)
        ctx.save_for_backward(g, x, weight, mean, rstd, g_weight, g_bias)
        ctx.eps = eps
        return gx, g_weight, g_bias

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, rstd, g_weight, g_bias = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        pv, v_weight, v_bias = _native_backward(v, x, weight, mean, rstd, ctx.eps)
        A = (v * g).sum((0, 2, 3)) - (v_bias * g_bias + v_weight * g_weight) / n

        scale = weight * rstd / n
        q = torch.addcmul(
            g * _per_channel(a - scale * v_weight), v, _per_channel(scale * g_weight), value=-1
        )
        pq, _, _ = _native_backward(q, x, torch.ones_like(weight), mean, rstd, ctx.eps)

        # x̂ is affine in x, so neither sum forms it: slope · x + (offset - slope · mean).
        slope = a * rstd
        grad_g = pv.addcmul_(x, _per_channel(slope)).add_(_per_channel(b - slope * mean))
        slope = -scale * rstd.square() * A
        grad_x = pq.addcmul_(x, _per_channel(slope)).add_(_per_channel(-slope * mean))
        return grad_g, grad_x, rstd * A, None, None, None


def _native_backward(
    g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # A gradient in another memory layout than x would send the kernel down a slow path.
    layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    g = g.contiguous(memory_format=layout)
    gradients: tuple[Tensor, Tensor, Tensor] = _native_batch_norm_backward(
        g, x, weight, None, None, mean, rstd, True, eps, [True, True, True]
    )
    return gradients


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
