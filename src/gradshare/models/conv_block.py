"""One layer of the backbone: convolution, batch norm, activation and 2×2 max-pooling.

On a CPU the layer is computed by two functions with hand-written derivatives. PyTorch needs some
fifty passes over the activations to differentiate batch norm and pooling twice, most of them over
full-sized ones. These functions need ten, and about as many over the pooled quarter.

Under `torch.autocast` only the convolutions compute in bfloat16, in each derivative: their inputs
are cast to it, and their outputs are cast back. Statistics with 8 bits would be useless, and the
passes between convolutions take little of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch.nn import functional as F

from gradshare.errors import ConfigError
from gradshare.models.batch_norm import BatchNorm2d

# Size of the part of a tensor that is computed at a time.
CACHED_BYTES = 7_000_000

_convolution_backward = torch.ops.aten.convolution_backward.default
_statistics = torch.ops.aten.batch_norm_update_stats.default
_norm_backward = torch.ops.aten.native_batch_norm_backward.default
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
        self.conv = nn.Conv2d(channels, filters, 3, padding=1, bias=conv_bias)
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
        transforms = torch._C._functorch.get_interpreter_stack() or []
        vmapped = [transform.key() for transform in transforms] == [TransformType.Vmap]
        if (
            (transforms and not vmapped)
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
        y: Tensor
        if vmapped:
            y = _Grouped.apply(  # type: ignore[no-untyped-call]
                *tensors, self.norm.eps, self.negative_slope
            )
        else:
            y, *_ = _Block.apply(  # type: ignore[no-untyped-call]
                *tensors, self.norm.eps, self.negative_slope, 1
            )
        return y

    def _is_as_it_was_made(self) -> bool:
        """Whether the functions below compute this convolution and norm: neither has been changed,
        replaced or given a hook.
        """
        conv, norm = self.conv, self.norm
        return (
            type(conv) is nn.Conv2d
            and type(norm) is BatchNorm2d
            and conv.kernel_size == (3, 3)
            and conv.stride == conv.padding == conv.dilation == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == "zeros"
            and not _has_hooks(conv)
            and not _has_hooks(norm)
        )


class _Grouped(torch.autograd.Function):
    """The layer under `torch.vmap`: T tasks are T groups of one convolution and T · C channels of
    one norm, so that each pass over the activations serves all tasks.
    """

    @staticmethod
    def forward(*_: Any) -> Tensor:
        raise AssertionError("only under torch.vmap")

    @staticmethod
    def setup_context(*_: Any) -> None:
        raise AssertionError("only under torch.vmap")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        *tensors, eps, slope = arguments
        T = info.batch_size
        x, *parameters = (
            t.expand(T, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims[:4], strict=True)
        )
        x = x.movedim(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        y, *_ = _Block.apply(  # type: ignore[no-untyped-call]
            x, *(parameter.flatten(0, 1) for parameter in parameters), eps, slope, T
        )
        return y.unflatten(1, (T, -1)), 1


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
        y = torch.addcmul(_per_channel(beta - mean * scale), pooled, _per_channel(scale))
        F.leaky_relu_(y, slope)
        ctx.save_for_backward(x, W, gamma, z, pooled, mean, rstd, where, y)
        ctx.slope, ctx.groups = slope, groups
        ctx.set_materialize_grads(False)
        return y, z, pooled, mean, rstd

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, *more: Any) -> tuple[Tensor | None, ...]:
        *_, y = ctx.saved_tensors
        gy = torch.zeros_like(y) if gy is None else gy
        gradients = _BlockBackward.apply(  # type: ignore[no-untyped-call]
            gy, *ctx.saved_tensors, more, ctx.slope, ctx.groups, ctx.needs_input_grad[0]
        )
        return (*gradients, None, None, None)


class _BlockBackward(torch.autograd.Function):
    """The backward pass of `_Block`, with its own derivative (see above)."""

    @staticmethod
    def forward(
        ctx: Any,
        gy: Tensor,
        x: Tensor,
        W: Tensor,
        gamma: Tensor,
        z: Tensor,
        pooled: Tensor,
        mean: Tensor,
        rstd: Tensor,
        where: Tensor,
        y: Tensor,
        more: tuple[Tensor, ...] | tuple[None, ...],
        slope: float,
        groups: int,
        needs_gx: bool,
    ) -> tuple[Tensor | None, ...]:
        g = _leaky_relu_backward(_like(gy, y), y, slope, True)
        g_beta, g_gamma = _sums(g, pooled, mean, rstd)
        n = z.numel() // z.shape[1]
        scale = gamma * rstd
        gp, g_mean, g_rstd = g * _per_channel(scale), -scale * g_beta, gamma * g_gamma / rstd
        more_gz, *of_p_mean_rstd = more
        if more_gz is not None:  # the double backward gives all four
            gp, g_mean, g_rstd = (
                g + more for g, more in zip((gp, g_mean, g_rstd), of_p_mean_rstd, strict=True)
            )
        tilt = -g_rstd * rstd.pow(3) / n
        shift = g_mean / n - tilt * mean

        def gz_of(images: slice) -> Tensor:
            gz = _put_back(gp[images], z[images], where[images])
            gz.addcmul_(z[images], _per_channel(tilt)).add_(_per_channel(shift))
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
        ctx.save_for_backward(g, x, W, gamma, z, pooled, mean, rstd, where, y, g_gamma, g_beta, gz)
        ctx.slope, ctx.groups = slope, groups
        ctx.set_materialize_grads(False)
        return gx, gW, g_gamma, g_beta

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, vx: Tensor | None, vW: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, W, gamma, z, pooled, mean, rstd, where, y, g_gamma, g_beta, gz = ctx.saved_tensors
        vW = torch.zeros_like(W) if vW is None else vW
        a = torch.zeros_like(gamma) if a is None else a
        b = torch.zeros_like(gamma) if b is None else b

        grad_x = grad_W = None
        v = F.conv2d(x, vW, padding=1, groups=ctx.groups).to(z.dtype)
        if gz is not None:  # x requires gradients
            vx = torch.zeros_like(x) if vx is None else vx
            v += F.conv2d(vx, W, padding=1, groups=ctx.groups)
            grad_x, grad_W = _through_convolution(gz, vx, vW, ctx.groups, True)

        n = z.numel() // z.shape[1]
        v_pooled = _at_maxima(v, where)
        V, U = _sums(v, z, mean, rstd)
        A = (v_pooled * g).sum((0, 2, 3)) - (V * g_beta + U * g_gamma) / n
        scale = gamma * rstd
        e, f = a - scale * U / n, scale * g_gamma / n
        tilt = e * rstd
        grad_g = v_pooled.mul_(_per_channel(scale)).addcmul_(pooled, _per_channel(tilt))
        grad_g.add_(_per_channel(b - scale * V / n - tilt * mean))
        return (
            _leaky_relu_backward(grad_g, y, ctx.slope, True),
            grad_x,
            grad_W,
            rstd * A,
            v.mul_(_per_channel(-f * rstd)),
            g * _per_channel(tilt),
            rstd * (f * V - e * g_beta),
            gamma * A + (e * g_gamma - f * U) / rstd,
            *(None,) * 6,
        )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _convolves_in(x: Tensor, filters: Tensor) -> torch.dtype:
    """The dtype of the convolution: that of its inputs, or under `torch.autocast`, which leaves
    float64 and integers alone, autocast's.
    """
    device = x.device.type
    if (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and all(t.is_floating_point() and t.dtype != torch.float64 for t in (x, filters))
    ):
        return torch.get_autocast_dtype(device)
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


def _sums(g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Σ g and Σ g r (z - mean) of each channel: the native backward pass without its output."""
    _, product, plain = _norm_backward(
        g, z, None, None, None, mean, rstd, True, 0.0, [False, True, True]
    )
    return plain, product


def _put_back(pooled: Tensor, z: Tensor, where: Tensor) -> Tensor:
    """S(g): pooled values where the maxima of z were, zero elsewhere."""
    full: Tensor = _max_pool_backward(pooled, z, [2, 2], [2, 2], [0, 0], [1, 1], False, where)
    return full


def _at_maxima(v: Tensor, where: Tensor) -> Tensor:
    """The adjoint of `_put_back`: the values of v where the maxima of z were."""
    if not _is_channels_last(v):
        return v.flatten(2).gather(2, where.flatten(2)).view_as(where)
    # In the order of the memory, (N, H, W, C).
    v, last = v.permute(0, 2, 3, 1), where.permute(0, 2, 3, 1)
    chosen = v.flatten(1, 2).gather(1, last.flatten(1, 2))
    return chosen.view_as(last).permute(0, 3, 1, 2)


def _like(g: Tensor, y: Tensor) -> Tensor:
    """g in the memory layout of y; with another layout the native kernels are slow."""
    layout = torch.channels_last if _is_channels_last(y) else torch.contiguous_format
    return g.contiguous(memory_format=layout)


def _is_channels_last(y: Tensor) -> bool:
    return y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
