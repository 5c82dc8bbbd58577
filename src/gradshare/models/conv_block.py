"""One layer of the backbone: convolution, batch norm, activation and 2×2 max-pooling.

On a CPU the layer is computed by two functions with hand-written derivatives. PyTorch needs some
fifty passes over the activations to differentiate batch norm and pooling twice, most of them over
full-sized ones. These functions need ten, and about as many over the pooled quarter.

Under `torch.autocast` only the convolutions compute in bfloat16, in each derivative: their inputs
are cast to it, and their outputs are cast back. Statistics with 8 bits would be useless, and the
passes between convolutions take little of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError
from gradshare.models.batch_norm import BatchNorm2d, literal_batch_norm, per_channel, sums
from gradshare.models.derivatives import (
    by_hand,
    call,
    has_hooks,
    is_channels_last,
    like,
    second_derivative,
    tasks_first,
    tasks_to_channels,
    under_autocast,
)
from gradshare.models.layers import Conv2d

# Size of the part of a tensor that is computed at a time.
CACHED_BYTES = 7_000_000

_convolution_backward = torch.ops.aten.convolution_backward.default
_statistics = torch.ops.aten.batch_norm_update_stats.default
_max_pool = torch.ops.aten.max_pool2d_with_indices.default
_max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default
_leaky_relu_backward = torch.ops.aten.leaky_relu_backward.default


class ConvBlock(nn.Module):
    """3×3 convolution, batch norm, leaky ReLU, 2×2 max-pooling.

    Args:
        channels: of the input.
        filters: of the output.
        negative_slope: of the activation, 0 for ReLU.
        conv_bias: see `Conv4`.
    """

    def __init__(
        self, channels: int, filters: int, *, negative_slope: float, conv_bias: bool
    ) -> None:
        super().__init__()
        self.conv: nn.Conv2d = Conv2d(channels, filters, 3, padding=1, bias=conv_bias)
        self.norm = BatchNorm2d(filters)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor, statistics_from: int | None = None) -> Tensor:
        """(N, channels, H, W) to (N, filters, H // 2, W // 2).

        Args:
            x: the input.
            statistics_from: see `BatchNorm2d`.

        Raises:
            ConfigError: x is of another type than the parameters.
        """
        convolves_in = _convolves_in(x, self.conv.weight)
        if (
            not by_hand()
            or statistics_from is not None
            or x.device.type != "cpu"
            or not self._is_as_it_was_made()
        ):
            z = self.conv(x).to(x.dtype)
            # A norm that replaces ours need not have `statistics_from`.
            z = self.norm(z) if statistics_from is None else self.norm(z, statistics_from)
            # The activation never decreases, so pooling before it gives the same result and leaves
            # it a quarter of the work.
            return F.leaky_relu(F.max_pool2d(z, 2), self.negative_slope)
        # The sign of a negative γ is moved to the filter, so that the norm never decreases either.
        # The bias is left out, since the norm removes it.
        sign = torch.where(self.norm.weight < 0, -1.0, 1.0).to(x.dtype)
        filters, gamma = self.conv.weight * sign[:, None, None, None], self.norm.weight * sign
        tensors = (x.to(convolves_in), filters.to(convolves_in), gamma, self.norm.bias)
        return call(_Block, *tensors, self.norm.eps, self.negative_slope, 1)

    def _is_as_it_was_made(self) -> bool:
        """Whether the functions below compute this convolution and norm: neither has been changed,
        replaced or given a hook.
        """
        conv, norm = self.conv, self.norm
        return (
            type(conv) is Conv2d
            and type(norm) is BatchNorm2d
            and conv.kernel_size == (3, 3)
            and conv.stride == conv.padding == conv.dilation == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == "zeros"
            and not has_hooks(conv)
            and not has_hooks(norm)
        )


# With γ >= 0 normalising is an increasing function of each channel, so pooling comes first and only
# a quarter of the values is normalised. For z = W * x with n values a channel, μ = mean z,
# r = (var z + ε)^(-½) and the pooled values p = max z, the layer's output is
#     y = φ(γ p̂ + β),   p̂ = r (p - μ).
# z reaches y through p, μ and r alone. With S(h) for pooled values h put back where the maxima
# were, zero elsewhere, and since ∂μ/∂z = 1 / n and ∂r/∂z = -r³ (z - μ) / n, a gradient of p, μ and
# r is
#     gz = S(gp) + gμ / n - gr r³ (z - μ) / n
# of z; and with g = gy φ', gβ = Σ g and gγ = Σ g p̂ those of y are
#     gp = γ r g,   gμ = -γ r gβ,   gr = γ gγ / r,
# while gx and gW are the convolution's for gz. The double backward pass has cotangents vx, vW, a
# and b of gx, gW, gγ and gβ. Through the convolution's backward, which is bilinear, they give
#     v = W * vx + vW * x   of gz,    ∂W += gW for (vx, gz),    ∂x += gx for (vW, gz).
# What is left to differentiate, with v_p for v at the maxima, V = Σ v and U = r Σ v (z - μ), is
#     Q = γ r A + Σ_c a gγ + b gβ,   A = Σ v_p g - (V gβ + U gγ) / n,
# a function of g, γ, z, p, μ and r, so that with e = a - γ r U / n and f = γ r gγ / n
#     ∂Q/∂g = γ r (v_p - V / n) + e p̂ + b,   ∂Q/∂γ = r A,   ∂Q/∂z = -f r v,   ∂Q/∂p = e r g,
#     ∂Q/∂μ = r (f V - e gβ),   ∂Q/∂r = γ A + (e gγ - f U) / r.
# Nothing is divided by γ; at γ = 0, where max(γ ẑ) has a kink, the derivative is that from above.


class _Block(torch.autograd.Function):
    """The layer. It also returns z, p, μ and r, so that the gradients of the first and of the
    second derivative are added before they are spread over z and go through the convolution.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        slope: float,
        groups: int,
    ) -> tuple[Tensor, ...]:
        z = F.conv2d(x, W, padding=1, groups=groups).to(gamma.dtype)
        mean, variance = _statistics(z, None, None, 0.0)
        rstd = torch.rsqrt(variance + eps)
        pooled, where = _max_pool(z, [2, 2], [2, 2])
        scale = gamma * rstd
        y = torch.addcmul(per_channel(beta - mean * scale), pooled, per_channel(scale))
        F.leaky_relu_(y, slope)
        ctx.mark_non_differentiable(where)
        ctx.save_for_backward(x, W, gamma, beta, y, z, pooled, mean, rstd, where)
        ctx.constants = eps, slope, groups
        ctx.set_materialize_grads(False)
        return y, z, pooled, mean, rstd, where

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, *more: Any) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        gy = torch.zeros_like(tensors[4]) if gy is None else gy
        gradients = _BlockBackward.apply(  # type: ignore[no-untyped-call]
            gy, *tensors, more[:-1], ctx.constants, ctx.needs_input_grad[0]
        )
        return (*gradients, None, None, None)

    @staticmethod
    def of_tasks(T: int, dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        # T tasks are T groups of one convolution and T · C channels of one norm, so that each pass
        # over the activations serves all tasks.
        *tensors, eps, slope, _ = arguments
        x, *parameters = tasks_first(T, dims, tensors)
        x = tasks_to_channels(x).contiguous(memory_format=torch.channels_last)
        y = call(_Block, x, *(p.flatten(0, 1) for p in parameters), eps, slope, T)
        return torch.unflatten(y, 1, (T, -1)), 1


class _BlockBackward(torch.autograd.Function):
    """The backward pass of `_Block`, with its own derivative (see above)."""

    @staticmethod
    def forward(
        ctx: Any,
        gy: Tensor,
        x: Tensor,
        W: Tensor,
        gamma: Tensor,
        beta: Tensor,
        y: Tensor,
        z: Tensor,
        pooled: Tensor,
        mean: Tensor,
        rstd: Tensor,
        where: Tensor,
        more: tuple[Tensor, ...] | tuple[None, ...],
        constants: tuple[float, float, int],
        needs_gx: bool,
    ) -> tuple[Tensor | None, ...]:
        _, slope, groups = constants
        g = _leaky_relu_backward(like(gy, y), y, slope, True)
        g_beta, g_gamma = sums(g, pooled, mean, rstd)
        n = z.numel() // z.shape[1]
        scale = gamma * rstd
        gp, g_mean, g_rstd = g * per_channel(scale), -scale * g_beta, gamma * g_gamma / rstd
        more_gz, *of_p_mean_rstd = more
        if more_gz is not None:  # the double backward gives all four
            gp, g_mean, g_rstd = (
                g + more for g, more in zip((gp, g_mean, g_rstd), of_p_mean_rstd, strict=True)
            )
        tilt = -g_rstd * rstd.pow(3) / n
        shift = g_mean / n - tilt * mean

        def gz_of(images: slice) -> Tensor:
            gz = _put_back(gp[images], z[images], where[images])
            gz.addcmul_(z[images], per_channel(tilt)).add_(per_channel(shift))
            if more_gz is not None:
                gz.add_(more_gz[images])
            return gz.to(x.dtype)

        gz = gx = None
        if needs_gx:
            gz = gz_of(slice(None))
            gx, gW = _through_convolution(gz, x, W, groups, True)
        else:
            # The first layer. Its gz is the largest tensor of all, and only gW needs it.
            gW = torch.zeros_like(W)
            for images in _within_cache(z):
                gW += _through_convolution(gz_of(images), x[images], W, groups, False)[1]
        ctx.save_for_backward(
            gy, x, W, gamma, beta, y, z, pooled, mean, rstd, where, g_gamma, g_beta, gz
        )
        ctx.constants = constants
        ctx.set_materialize_grads(False)
        return gx, gW, g_gamma, g_beta

    @staticmethod
    def backward(
        ctx: Any, vx: Tensor | None, vW: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gy, x, W, gamma, beta, y, z, pooled, mean, rstd, where, *rest = ctx.saved_tensors
        eps, slope, groups = ctx.constants
        if torch.is_grad_enabled():

            def block(x: Tensor, W: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
                z = F.conv2d(x, W, padding=1, groups=groups).to(gamma.dtype)
                z = literal_batch_norm(z, gamma, beta, eps)
                return F.leaky_relu(F.max_pool2d(z, 2), slope)

            found = second_derivative(block, gy, (x, W, gamma, beta), (vx, vW, a, b))
            return *found, *(None,) * 9

        g_gamma, g_beta, gz = rest
        g = _leaky_relu_backward(like(gy, y), y, slope, True)
        vW = torch.zeros_like(W) if vW is None else vW
        a = torch.zeros_like(gamma) if a is None else a
        b = torch.zeros_like(gamma) if b is None else b

        grad_x = grad_W = None
        v = F.conv2d(x, vW, padding=1, groups=groups).to(z.dtype)
        if gz is not None:  # x requires gradients
            vx = torch.zeros_like(x) if vx is None else vx
            v += F.conv2d(vx, W, padding=1, groups=groups)
            grad_x, grad_W = _through_convolution(gz, vx, vW, groups, True)

        n = z.numel() // z.shape[1]
        v_pooled = _at_maxima(v, where)
        V, U = sums(v, z, mean, rstd)
        A = (v_pooled * g).sum((0, 2, 3)) - (V * g_beta + U * g_gamma) / n
        scale = gamma * rstd
        e, f = a - scale * U / n, scale * g_gamma / n
        tilt = e * rstd
        grad_g = v_pooled.mul_(per_channel(scale)).addcmul_(pooled, per_channel(tilt))
        grad_g.add_(per_channel(b - scale * V / n - tilt * mean))
        return (
            _leaky_relu_backward(grad_g, y, slope, True),
            grad_x,
            grad_W,
            rstd * A,
            None,  # β and y are only looked at for the sign
            None,
            v.mul_(per_channel(-f * rstd)),
            g * per_channel(tilt),
            rstd * (f * V - e * g_beta),
            gamma * A + (e * g_gamma - f * U) / rstd,
            *(None,) * 4,
        )


def _convolves_in(x: Tensor, filters: Tensor) -> torch.dtype:
    """The dtype of the convolution: that of its inputs, or under `torch.autocast`, which leaves
    float64 and integers alone, autocast's.
    """
    if under_autocast(x.device) and all(
        t.is_floating_point() and t.dtype != torch.float64 for t in (x, filters)
    ):
        return torch.get_autocast_dtype(x.device.type)
    if x.dtype != filters.dtype:
        raise ConfigError(
            f"the images are {x.dtype}, the model's parameters {filters.dtype}; give both the same "
            f"type: Normalization(mean, std).batch(tasks, {filters.dtype}) makes it of uint8 images"
        )
    return x.dtype


def _through_convolution(
    gz: Tensor, x: Tensor, W: Tensor, groups: int, needs_gx: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients of a convolution's input and filters."""
    gx, gW, _ = _convolution_backward(
        gz, x, W, None, [1, 1], [1, 1], [1, 1], False, [0, 0], groups, [needs_gx, True, False]
    )
    return gx, gW


def _within_cache(z: Tensor) -> Iterator[slice]:
    """Slices of the images that are small enough for the cache. gz and gW of 75 images of 84×84
    take 19 ms slice by slice and 31 ms at once (slices from 4 MB to 11 MB take the same time).
    """
    count = max(1, CACHED_BYTES // (z[0].numel() * z.element_size()))
    for start in range(0, len(z), count):
        yield slice(start, start + count)


def _put_back(pooled: Tensor, z: Tensor, where: Tensor) -> Tensor:
    """S(g): pooled values where the maxima of z were, zero elsewhere."""
    full: Tensor = _max_pool_backward(pooled, z, [2, 2], [2, 2], [0, 0], [1, 1], False, where)
    return full


def _at_maxima(v: Tensor, where: Tensor) -> Tensor:
    """The adjoint of `_put_back`: the values of v where the maxima of z were."""
    if not is_channels_last(v):
        return v.flatten(2).gather(2, where.flatten(2)).view_as(where)
    # In the order of the memory, (N, H, W, C).
    v, last = v.permute(0, 2, 3, 1), where.permute(0, 2, 3, 1)
    chosen = v.flatten(1, 2).gather(1, last.flatten(1, 2))
    return chosen.view_as(last).permute(0, 3, 1, 2)
