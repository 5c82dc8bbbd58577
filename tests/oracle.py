"""The literal oracle: the paper's Algorithms 1 and 2 and the reference MAML++ semantics, written
out with Python loops and `create_graph=True`.

It shares no code with the package. It is slow and plain on purpose: each formula stands as it
stands in the paper, so that it can be checked by reading, and by the finite differences of
`test_oracle.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Tree = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What is computed.

    `method` is "maml", "meta-sgd" or "maml++"; `sharing` "none", "sharing" or a control: those of
    `SHARES` do all of Eqs. 1 to 4 but for one part, "rate-control", "learned-rates" and
    "own-gradient" see nothing of other tasks. `fixed_lambda` and `fixed_m` stand for σ(λ), σ(m).
    `multi_step_iterations` is how long the multi-step loss is annealed, None for the last step
    alone; `first_order_iterations` how long derivative-order annealing lasts.
    """

    method: str
    sharing: str
    steps: int
    inner_lr: float
    second_order: bool = True
    first_order_iterations: int = 0
    multi_step_iterations: int | None = None
    per_step_rates: bool = True
    per_step_batch_norm: bool = False
    inductive: bool = False
    negative_slope: float = 0.01
    per_tensor_norm: bool = False
    fixed_lambda: float | None = None
    fixed_m: float | None = None


SHARES = ("sharing", "unnormalized", "detached", "forgotten")


def network(theta: Mapping[str, Tensor], x: Tensor, slope: float, support: Tensor | None) -> Tensor:
    """The reference backbone: conv, batch norm, activation, max-pool, four times; linear."""
    for layer in range(4):
        name = f"blocks.{layer}"
        weight, bias = theta[f"{name}.conv.weight"], theta.get(f"{name}.conv.bias")
        gamma, beta = theta[f"{name}.norm.weight"], theta[f"{name}.norm.bias"]

        def block(
            z: Tensor,
            statistics: tuple[Tensor, Tensor] | None,
            weight: Tensor = weight,
            bias: Tensor | None = bias,
            gamma: Tensor = gamma,
            beta: Tensor = beta,
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            z = F.conv2d(z, weight, bias, padding=1)
            if statistics is None:
                mean = z.mean(dim=(0, 2, 3), keepdim=True)
                variance = ((z - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
                statistics = mean, variance
            mean, variance = statistics
            z = (z - mean) / torch.sqrt(variance + 1e-5)
            z = gamma.view(1, -1, 1, 1) * z + beta.view(1, -1, 1, 1)
            z = torch.where(z > 0, z, slope * z)
            return F.max_pool2d(z, 2), statistics

        if support is None:
            x, _ = block(x, None)
        else:
            support, statistics = block(support, None)
            x, _ = block(x, statistics)
    return x.flatten(1) @ theta["linear.weight"].T + theta["linear.bias"]


def multi_step_weight(s: Setting, i: int, k: int) -> float:
    """The reference code's weight of the query loss after update k: its epoch e of E is here
    iteration i - 1 of `multi_step_iterations`."""
    K, e, E = s.steps, i - 1, s.multi_step_iterations
    if E is None or e >= E:
        return 1.0 if k == K else 0.0
    if k == K:
        return min(1 / K + e * (K - 1) / (K * E), 1 - (K - 1) * 0.03 / K)
    return max(1 / K - e / (K * E), 0.03 / K)


def is_norm(name: str) -> bool:
    return ".norm." in name


def gate(outer: Tree, name: str, k: int, fixed: float | None) -> Tensor | float:
    return torch.sigmoid(outer[f"sharing.{name}"][k - 1]) if fixed is None else fixed


def delta_of_control(outer: Tree, gradient: Tree, k: int, s: Setting) -> Tree:
    """Δ of an arm in which a task sees nothing of the others."""
    if s.sharing == "none":
        return gradient
    if s.sharing == "learned-rates":
        return {n: outer["sharing.rate"][k - 1] * g for n, g in gradient.items()}
    sl = gate(outer, "lambda", k, s.fixed_lambda)
    if s.sharing == "rate-control":
        return {n: (1 - sl) * g for n, g in gradient.items()}
    assert s.sharing == "own-gradient"
    if s.per_tensor_norm:
        return {n: sl * g / torch.sqrt((g**2).sum()) + (1 - sl) * g for n, g in gradient.items()}
    norm = torch.sqrt(sum(((g**2).sum() for g in gradient.values()), torch.zeros(())))
    return {n: sl * g / norm + (1 - sl) * g for n, g in gradient.items()}


def outer_loss(
    outer: Tree,
    g_hat: list[Tree] | None,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    s: Setting,
    i: int = 1,
) -> tuple[Tensor, list[Tree] | None]:
    """Eq. 5's objective for one task batch, and the new ĝ_1, …, ĝ_K.

    `g_hat` is None before the first iteration; `i` counts iterations from 1 for the schedules.
    """
    support_x, support_y, query_x, query_y = batch
    T, K = len(support_x), s.steps
    names = [n.removeprefix("model.") for n in outer if n.startswith("model.") and not is_norm(n)]
    norms = [n.removeprefix("model.") for n in outer if n.startswith("model.") and is_norm(n)]
    theta: list[Tree] = [{n: outer[f"model.{n}"] for n in names} for _ in range(T)]
    new_g_hat: list[Tree] = []
    total_loss = torch.zeros((), dtype=support_x.dtype)

    def with_norm(task: Tree, index: int) -> Tree:
        if s.per_step_batch_norm:
            return {**task, **{n: outer[f"model.{n}"][index] for n in norms}}
        return {**task, **{n: outer[f"model.{n}"] for n in norms}}

    def query_loss(t: int, k: int) -> Tensor:
        """The query loss of task t after update k (from 1): batch norm index k - 1."""
        support = support_x[t] if s.inductive else None
        logits = network(with_norm(theta[t], k - 1), query_x[t], s.negative_slope, support)
        return F.cross_entropy(logits, query_y[t])

    for k in range(1, K + 1):
        gradients: list[Tree] = []
        for t in range(T):
            logits = network(with_norm(theta[t], k - 1), support_x[t], s.negative_slope, None)
            loss = F.cross_entropy(logits, support_y[t])
            grads = torch.autograd.grad(loss, [theta[t][n] for n in names], create_graph=True)
            if not s.second_order or i <= s.first_order_iterations:
                grads = tuple(g.detach() for g in grads)
            gradients.append(dict(zip(names, grads, strict=True)))

        if s.sharing in SHARES:
            total = {n: sum((gradients[t][n] for t in range(T)), torch.zeros(())) for n in names}
            if s.sharing == "unnormalized":
                g_k = {n: total[n] / T for n in names}
            elif s.per_tensor_norm:
                g_k = {n: total[n] / torch.sqrt((total[n] ** 2).sum()) for n in names}
            else:
                norm = torch.sqrt(sum(((total[n] ** 2).sum() for n in names), torch.zeros(())))
                g_k = {n: total[n] / norm for n in names}  # Eq. 1
            if s.sharing == "detached":
                g_k = {n: g_k[n].detach() for n in names}
            if g_hat is None:
                g_hat_k = g_k  # Eq. 2
            else:
                sm = gate(outer, "m", k, s.fixed_m)
                g_hat_k = {n: sm * g_k[n] + (1 - sm) * g_hat[k - 1][n] for n in names}  # Eq. 3
            new_g_hat.append({n: g_hat_k[n].detach() for n in names})

        for t in range(T):
            if s.sharing not in SHARES:
                alone = delta_of_control(outer, gradients[t], k, s)
            for n in names:
                if s.sharing in SHARES:
                    sl = gate(outer, "lambda", k, s.fixed_lambda)
                    delta = sl * g_hat_k[n] + (1 - sl) * gradients[t][n]  # Eq. 4
                else:
                    delta = alone[n]
                rate: Tensor | float = s.inner_lr
                if s.method == "meta-sgd":
                    rate = outer[f"meta_sgd.alpha.{n}"]
                elif s.method == "maml++" and s.per_step_rates:
                    rate = outer[f"lslr.rate.{n}"][k - 1]
                theta[t] = {**theta[t], n: theta[t][n] - rate * delta}

        weight = multi_step_weight(s, i, k)
        for t in range(T):
            total_loss = total_loss + weight * query_loss(t, k) / T
    return total_loss, new_g_hat if s.sharing in SHARES else None


def meta_test_logits(
    outer: Tree,
    g_hat: list[Tree] | None,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    s: Setting,
) -> list[Tensor]:
    """Algorithm 2: each task by itself, with the stored ĝ; the query logits of each task.

    `g_hat` None means before any training: Δ is the task's own gradient.
    """
    support_x, support_y, query_x, _ = batch
    names = [n.removeprefix("model.") for n in outer if n.startswith("model.") and not is_norm(n)]
    norms = [n.removeprefix("model.") for n in outer if n.startswith("model.") and is_norm(n)]
    result = []
    for t in range(len(support_x)):
        theta = {n: outer[f"model.{n}"] for n in names}
        norm: Tree = {}
        for k in range(1, s.steps + 1):
            norm = {
                n: outer[f"model.{n}"][k - 1] if s.per_step_batch_norm else outer[f"model.{n}"]
                for n in norms
            }
            logits = network({**theta, **norm}, support_x[t], s.negative_slope, None)
            loss = F.cross_entropy(logits, support_y[t])
            grads = torch.autograd.grad(loss, [theta[n] for n in names])
            gradient = dict(zip(names, grads, strict=True))
            if s.sharing not in SHARES:
                alone = delta_of_control(outer, gradient, k, s)
            for n in names:
                if s.sharing not in SHARES:
                    delta = alone[n]
                elif g_hat is None:
                    delta = gradient[n]
                else:
                    sl = gate(outer, "lambda", k, s.fixed_lambda)
                    stored = 0 * g_hat[k - 1][n] if s.sharing == "forgotten" else g_hat[k - 1][n]
                    delta = sl * stored + (1 - sl) * gradient[n]
                rate: Tensor | float = s.inner_lr
                if s.method == "meta-sgd":
                    rate = outer[f"meta_sgd.alpha.{n}"]
                elif s.method == "maml++" and s.per_step_rates:
                    rate = outer[f"lslr.rate.{n}"][k - 1]
                theta[n] = (theta[n] - rate * delta).detach().requires_grad_()
        support = support_x[t] if s.inductive else None
        logits = network({**theta, **norm}, query_x[t], s.negative_slope, support)
        result.append(logits.detach())
    return result
