"""Gradient sharing (the paper's §2, Equations 1 to 4)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gradshare.errors import require_choice
from gradshare.inner_loop.memory_order import in_order_of, inner_product, sum_over_first
from gradshare.inner_loop.rule import Step, SumOverTasks, Tensors, UpdateRule, for_each_step

Norm = Literal["global", "per-tensor"]


class GradientSharing(UpdateRule):
    """Mix each task's gradient with a running mean of the gradients of related tasks.

    At inner step k, Δ_{t,k} (Eq. 4) interpolates between the task's own gradient and ĝ_k with the
    learned weight σ(λ_k). ĝ_k is a running mean (Eqs. 2 and 3), with the learned momentum σ(m_k),
    of g_k, the normalised sum of the gradients of all tasks in the batch (Eq. 1). The next rule of
    the chain turns Δ into a step.

    Learned: `m` and `lambda`, both (K,), started at 0.

    Carried: `g_hat.k.NAME`, ĝ_k of each parameter, and `seen` (K,), whether there is a ĝ_k yet.
    Both are detached: an outer loss is differentiated through g_k of the same iteration, the norm
    included, and not through earlier iterations. A head that is repeated for each class of a task
    has one ĝ_k for all classes: their mean, which is zero with cross entropy.

    Args:
        norm: the norm of Eq. 1, over all adapted tensors together ("global", as the paper's vector
            notation reads) or for each tensor on its own ("per-tensor").

    Raises:
        ConfigError: another norm.
    """

    def __init__(self, *, norm: Norm = "global") -> None:
        require_choice("norm", norm, Norm)
        self.norm = norm

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """m = λ = 0 (Algorithm 1), and no ĝ yet."""
        zeros = for_each_step(params, steps, 0)
        carried = {"seen": torch.zeros_like(zeros, dtype=torch.bool)}
        for k in range(steps):
            carried |= {f"g_hat.{k}.{name}": torch.zeros_like(p) for name, p in params.items()}
        return {"m": zeros, "lambda": zeros.clone()}, carried

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Δ_{t,k} of each task: Algorithm 1 while meta-training, Algorithm 2 while meta-testing."""
        g_hat: Tensors = {name: carried[f"g_hat.{step.k}.{name}"] for name in gradients}
        has_history = carried["seen"][step.k]
        gate = torch.sigmoid(meta["lambda"][step.k])
        if step.sum_over_tasks is None:
            gate = gate * has_history  # before any training Δ is the task's own gradient
        else:
            g = self.shared_gradient(gradients, step.sum_over_tasks)
            # Eqs. 2 and 3 in one: without a history all of ĝ_k is g_k, and m_k's gradient is 0.
            momentum = torch.where(has_history, torch.sigmoid(meta["m"][step.k]), 1.0)
            g_hat = {
                name: torch.lerp(stored, _shaped_like(stored, g[name]), momentum.to(stored.dtype))
                for name, stored in g_hat.items()
            }
            seen = carried["seen"].clone()
            seen[step.k] = True
            detached = {f"g_hat.{step.k}.{name}": tensor.detach() for name, tensor in g_hat.items()}
            carried = {**carried, **detached, "seen": seen}
        deltas = {
            name: interpolate(own, in_order_of(g_hat[name], own), gate)
            for name, own in gradients.items()
        }
        return deltas, carried, task  # Eq. 4

    def shared_gradient(self, gradients: Tensors, sum_over_tasks: SumOverTasks) -> Tensors:
        """g_k (Eq. 1), without a task dimension."""
        return normalized(sum_over_tasks(gradients), self.norm)

    def report(self, meta: Tensors) -> dict[str, list[float]]:
        """σ(m_k) and σ(λ_k)."""
        return {name: torch.sigmoid(gate).tolist() for name, gate in meta.items()}


def normalized(gradient: Tensors, norm: Norm) -> dict[str, Tensor]:
    """Divide a gradient by its Euclidean norm (Eq. 1); a zero gradient stays zero.

    Args:
        gradient: (…) tensors, without a task dimension.
        norm: see `GradientSharing`.
    """
    if norm == "per-tensor":
        return {n: normalized({n: tensor}, "global")[n] for n, tensor in gradient.items()}
    unit = _unit(torch.stack([_largest(tensor) for tensor in gradient.values()]).amax())
    gradient = {name: tensor / unit for name, tensor in gradient.items()}
    square = torch.stack([tensor.square().sum() for tensor in gradient.values()]).sum()
    inverse = _inverse_root(square)
    return {name: tensor * inverse for name, tensor in gradient.items()}


def interpolate(own: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """own + weight · (other - own).

    Args:
        own: (T, …).
        other: (T, …), or (…) for all tasks, or a scalar.
        weight: a scalar.
    """
    # A model can have parameters of several types; the gates have the widest.
    other, weight = other.to(own.dtype), weight.to(own.dtype)
    mixed: Tensor = _Interpolation.apply(own, other, weight)  # type: ignore[no-untyped-call]
    return mixed


class _Interpolation(torch.autograd.Function):
    """`torch.lerp`, whose own derivative writes three more tensors of the size of all tasks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(own, other, weight)
        return torch.lerp(own, other, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        own, other, weight = ctx.saved_tensors
        of_own = v * (1 - weight) if ctx.needs_input_grad[0] else None
        # `other` is broadcast over the tasks, or over all dimensions.
        v_other = (sum_over_first(v) if v.ndim == other.ndim + 1 else v).sum_to_size(other.shape)
        of_other = v_other * weight if ctx.needs_input_grad[1] else None
        return of_own, of_other, inner_product(v_other, other) - inner_product(v, own)


def _largest(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.abs().amax() if tensor.numel() else tensor.new_zeros(())


def _unit(largest: Tensor) -> Tensor:
    """A number to divide a gradient by, so that in float32 neither its squares nor the cubes in the
    norm's derivative underflow or overflow, as they would for a support set that is fitted well. It
    is 1 for gradients of ordinary size, so that these are not rounded.
    """
    small = (largest > 0) & (largest < 1e-6)
    large = (largest > 1e6) & largest.isfinite()
    return torch.where(small | large, largest, 1.0)


def _inverse_root(square: Tensor) -> Tensor:
    """1/√s; at s = 0 it is 0 and has gradient 0, instead of ∞ and NaN."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).rsqrt(), 0.0)


def _shaped_like(stored: Tensor, g: Tensor) -> Tensor:
    """g, averaged over each dimension in which `stored` has size 1."""
    if stored.shape == g.shape:
        return g
    grown = [d for d, (one, n) in enumerate(zip(stored.shape, g.shape, strict=True)) if one != n]
    return g.mean(grown, keepdim=True)
