"""RMSprop and Adam as inner optimisers."""

from __future__ import annotations

import torch
from torch import Tensor

from gradshare.inner_loop.rule import Step, Tensors, UpdateRule, under, with_prefix


class RMSprop(UpdateRule):
    """Divide the gradient by the root of a running mean of its square (Tieleman & Hinton, 2012).

    In each task v starts at 0: v ← α v + (1 - α) ∇², and the update is ∇ / (√v + ε), as in
    `torch.optim.RMSprop`. The rates come from the next rule of a chain.

    Args:
        alpha: α.
        eps: ε. The second-order outer gradient of an entry whose gradient is as small as ε has a
            factor of about 1 / ε; a larger ε limits it.
    """

    def __init__(self, *, alpha: float = 0.99, eps: float = 1e-8) -> None:
        self.alpha = alpha
        self.eps = eps

    def start(self, params: Tensors) -> Tensors:
        """v = 0."""
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """∇ / (√v + ε)."""
        squares = {n: torch.lerp(g.square(), task[n], self.alpha) for n, g in gradients.items()}
        updates = {n: g / (root(squares[n]) + self.eps) for n, g in gradients.items()}
        return updates, carried, squares


class Adam(UpdateRule):
    """Adam (Kingma & Ba, 2015) within a task, with its bias corrections.

    In each task m and v start at 0, as in `torch.optim.Adam`. The rates come from the next rule of
    a chain: `SGD` for a fixed one, `LSLR` for one that is learned for each tensor and step.

    Args:
        beta1: the decay of m, the running mean of the gradient.
        beta2: the decay of v, the running mean of its square.
        eps: see `RMSprop`.
    """

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps

    def start(self, params: Tensors) -> Tensors:
        """m = v = 0, after no step."""
        zeros = {name: torch.zeros_like(p) for name, p in params.items()}
        like = next(iter(params.values()))
        # The steps are counted here, since `Step.k` does not grow beyond the trained ones.
        count = like.new_zeros(len(like), dtype=torch.int64)
        return {"count": count, **with_prefix("m", zeros), **with_prefix("v", zeros)}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """m̂ / (√v̂ + ε)."""
        m, v, count = under("m", task), under("v", task), task["count"] + 1
        m = {n: torch.lerp(g, m[n], self.beta1) for n, g in gradients.items()}
        v = {n: torch.lerp(g.square(), v[n], self.beta2) for n, g in gradients.items()}
        updates = {}
        for name, g in gradients.items():
            of_task = count.to(g.dtype).view(-1, *(1,) * (g.ndim - 1))
            mean = m[name] / (1 - self.beta1**of_task)
            square = v[name] / (1 - self.beta2**of_task)
            updates[name] = mean / (root(square) + self.eps)
        return updates, carried, {"count": count, **with_prefix("m", m), **with_prefix("v", v)}


def root(square: Tensor) -> Tensor:
    """√s, whose derivative at s = 0 is 0 and not infinite."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
