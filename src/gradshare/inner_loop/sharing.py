"""Gradient sharing (the paper's §2, Equations 1 to 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradshare.errors import require_choice, require_count
from gradshare.inner_loop.rule import SumOverTasks, Tensors

Norm = Literal["global", "per-tensor"]


class GradientSharing:
    """Mixes each task's gradient with a running mean of the gradients of related tasks.

    At inner step k it replaces the task's own gradient by Δ_{t,k} (Eq. 4), an interpolation, with
    the learned weight σ(λ_k), towards ĝ_k: the running mean (Eqs. 2 and 3), with the learned
    momentum σ(m_k), of the normalised sum g_k of the task gradients in the batch (Eq. 1). What
    follows it in the chain turns Δ into a step. It knows nothing of models, losses or images.

    Learned: `m` and `lambda`, both (K,), started at 0. Either may be given as (T, K) instead, the
    task-conditioned variant that the paper names. With such an m there is a ĝ of each task, so that
    every later batch must be of T tasks too, while training and testing.

    State: `g_hat.k.NAME` (1, …), ĝ_k for each inner step and parameter, one for all tasks ((T, …)
    once m is task-conditioned), and `seen` (K,), whether there is a ĝ_k yet. What is stored is
    detached: an iteration's outer loss reaches its own g_k, through the norm too, and nothing of
    the iterations before it.

    Args:
        steps: K, the number of inner steps.
        norm: of Eq. 1, over all adapted tensors together ("global", as the paper's vector
            notation reads) or for each tensor by itself ("per-tensor").

    Raises:
        ConfigError: no steps, or another norm.
    """

    def __init__(self, steps: int, *, norm: Norm = "global") -> None:
        require_count("steps", steps)
        require_choice("norm", norm, Norm)
        self.steps = steps
        self.norm = norm

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """m = λ = 0 (Algorithm 1), and no ĝ yet."""
        like = next(iter(params.values()))
        learned = {"m": like.new_zeros(self.steps), "lambda": like.new_zeros(self.steps)}
        state = {"seen": torch.zeros(self.steps, dtype=torch.bool, device=like.device)}
        for step in range(self.steps):
            state |= {
                f"g_hat.{step}.{name}": torch.zeros_like(p[None]) for name, p in params.items()
            }
        return learned, state

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """Δ_{t,k} for every task: Algorithm 1 while meta-training, Algorithm 2 while testing."""
        g_hat: Tensors = {name: state[f"g_hat.{step}.{name}"] for name in gradients}
        seen = state["seen"][step]
        gate = torch.sigmoid(learned["lambda"][..., step])
        if sum_over_tasks is None:
            gate = gate * seen  # before any training there is no ĝ: Δ is the task's own gradient
        else:
            g = self.shared_gradient(gradients, sum_over_tasks)
            g = {name: tensor[None] for name, tensor in g.items()}  # one for all tasks
            # Eqs. 2 and 3 in one: where there is no history yet, all of ĝ_k is g_k, and the
            # gradient of m_k is exactly zero.
            momentum = torch.where(seen, torch.sigmoid(learned["m"][..., step]), 1.0)
            g_hat = {name: interpolate(g_hat[name], g[name], momentum) for name in g}
            state = {
                **state,
                **{f"g_hat.{step}.{name}": tensor.detach() for name, tensor in g_hat.items()},
                "seen": state["seen"] | (torch.arange(self.steps, device=seen.device) == step),
            }
        deltas = {name: interpolate(own, g_hat[name], gate) for name, own in gradients.items()}
        return deltas, state  # Eq. 4

    def shared_gradient(self, gradients: Tensors, sum_over_tasks: SumOverTasks) -> Tensors:
        """g_k (Eq. 1), without a task dimension."""
        return normalized(sum_over_tasks(gradients), self.norm)


def normalized(gradient: Tensors, norm: Norm) -> dict[str, Tensor]:
    """Eq. 1: the gradient divided by its Euclidean norm; a zero gradient stays zero.

    Args:
        gradient: (…) tensors, without a task dimension.
        norm: see `GradientSharing`.
    """
    units = {name: tensor.detach().abs().amax() for name, tensor in gradient.items()}
    if norm == "global":
        units = dict.fromkeys(units, torch.stack(list(units.values())).amax())
    gradient = {name: tensor / _unit(units[name]) for name, tensor in gradient.items()}
    squares = {name: tensor.square().sum() for name, tensor in gradient.items()}
    if norm == "global":
        squares = dict.fromkeys(squares, torch.stack(list(squares.values())).sum())
    return {name: tensor * _inverse_root(squares[name]) for name, tensor in gradient.items()}


def _unit(largest: Tensor) -> Tensor:
    """What to measure numbers by whose largest is this, so that in float32 neither their squares
    nor the cubes in the norm's derivative vanish or overflow, as they do for the gradients of a
    support set that is fitted well. It is 1 wherever they do not anyway: that rounds nothing.
    """
    small = (largest > 0) & (largest < 1e-6)
    large = (largest > 1e6) & largest.isfinite()
    return torch.where(small | large, largest, 1.0)


def _inverse_root(square: Tensor) -> Tensor:
    """1/√s, and 0 with a gradient of 0, instead of ∞ with one of NaN, at s = 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).rsqrt(), 0.0)


def interpolate(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """start + weight · (end - start) of tensors (1 or T, …), with a weight () or (T,)."""
    weight = weight.reshape(weight.shape + (1,) * (start.ndim - weight.ndim))
    # Of the parameters' own type, where a model has several: the gates are of the first one's.
    return torch.lerp(start, end, weight.to(start.dtype))
