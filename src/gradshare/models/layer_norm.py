"""Layer normalisation with a hand-written second derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.models.derivatives import by_hand, call, tasks_first

_forward = torch.ops.aten.native_layer_norm.default
_backward = torch.ops.aten.native_layer_norm_backward.default


def layer_norm(
    x: Tensor, shape: Sequence[int], gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Tensor:
    """`torch.nn.functional.layer_norm`, with a fast second derivative.

    Args:
        x: (…, *shape).
        shape: of what is normalised together.
        gamma: (*shape,), the scale; None for 1.
        beta: (*shape,), the shift; None for 0.
        eps: added to the variance.
    """
    full = x.dtype in (torch.float32, torch.float64) and (gamma is None or gamma.dtype == x.dtype)
    fits = not x.is_nested and x.shape[-len(shape) :] == tuple(shape) and x.numel() > 0
    if not (full and fits and by_hand()):  # PyTorch's function raises an error for other shapes
        return F.layer_norm(x, shape, gamma, beta, eps)
    y = call(_Normalise, x.flatten(-len(shape)), eps).reshape(x.shape)
    if gamma is None:  # a copy, since callers may change it in place
        return y.clone() if beta is None else y + beta
    return y * gamma if beta is None else torch.addcmul(beta, y, gamma)


# For m values x, μ = mean x, r = (var x + ε)^(-½) and x̂ = r (x - μ), the gradients g of x̂ and ρ of
# r give, with W = Σ g and P = Σ g x̂,
#     gx = B(g) - ρ r² x̂ / m,   B(g) = r (g - W / m - x̂ P / m).
# B is symmetric in g. So the gradient v of B(g) gives B(v) for g, and with U = Σ v x̂
#     -(U g + P v) r / m for x̂,   Σ g B(v) / r for r,
# from where the first line leads to x. All derivatives beyond are those of these formulas.


class _Normalise(torch.autograd.Function):
    """(…, m) to x̂, and to r (…, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        normal, _, r = _forward(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(normal, r)
        ctx.set_materialize_grads(False)
        return normal, r

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, of_r: Tensor | None) -> tuple[Tensor | None, None]:
        normal, r = ctx.saved_tensors
        found = None if g is None else _Backward.apply(g, normal, r)  # type: ignore[no-untyped-call]
        if of_r is not None:
            factor = -of_r * r.square() / normal.shape[-1]
            found = factor * normal if found is None else torch.addcmul(found, factor, normal)
        return found, None

    @staticmethod
    def of_tasks(T: int, dims: Sequence[int | None], x: Tensor, eps: float) -> tuple[Tensor, int]:
        return call(_Normalise, *tasks_first(T, dims, [x]), eps), 0


class _Backward(torch.autograd.Function):
    """B(g), of g, x̂ and r."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, normal: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(g, normal, r)
        zero, one = torch.zeros_like(r), torch.ones_like(r)
        wanted = [True, False, False]
        found, *_ = _backward(g, normal, g.shape[-1:], zero, one, None, None, wanted)
        scaled: Tensor = found.mul_(r)
        return scaled

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, normal, r = ctx.saved_tensors
        of_g = _Backward.apply(v, normal, r)  # type: ignore[no-untyped-call]
        of_r = _dot(g, of_g) / r
        scale = -r / normal.shape[-1]
        of_normal = torch.addcmul(scale * _dot(g, normal) * v, scale * _dot(v, normal), g)
        return of_g, of_normal, of_r


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a, b)
    return product.unsqueeze(-1)
