"""Literal oracles of the field's other methods, each written from its paper with Python loops and
`create_graph=True`. They share no code with the package.

All of them are on one small network: rows, a linear layer, batch norm over the rows of a pass,
tanh, and a linear head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Tree = dict[str, Tensor]
Batch = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]
BODY = ("0.weight",)
NORM = ("1.weight", "1.bias")
HEAD = ("3.weight", "3.bias")


@dataclass(frozen=True)
class Setting:
    """What is computed.

    `adapts` names the adapted parameters. `head` is how a task's head starts: "learned";
    "prototypes" as in ProtoMAML; or "repeated", one learned row for each class as in UNICORN-MAML.
    `rule` is "sgd", "alfa", "momentum", "rmsprop" or "adam"; `rates` is whether each tensor and
    step has a learned rate.
    """

    adapts: tuple[str, ...] = BODY + HEAD
    head: str = "learned"
    rule: str = "sgd"
    rates: bool = False
    sharing: bool = False
    second_order: bool = True
    steps: int = 3
    inner_lr: float = 0.3


def features(p: Tree, x: Tensor) -> Tensor:
    z = x @ p["0.weight"].T
    mean = z.mean(0)
    variance = ((z - mean) ** 2).mean(0)
    z = (z - mean) / torch.sqrt(variance + 1e-5)
    return torch.tanh(p["1.weight"] * z + p["1.bias"])


def logits(p: Tree, x: Tensor) -> Tensor:
    return features(p, x) @ p["3.weight"].T + p["3.bias"]


def prototypes(p: Tree, x: Tensor, y: Tensor) -> Tensor:
    z = features(p, x)
    return torch.stack([z[y == c].mean(0) for c in range(int(y.max()) + 1)])


def start(outer: Tree, x: Tensor, y: Tensor, s: Setting) -> Tree:
    """The parameters of one task before the first step: new tensors, so that a task gradient is
    the partial derivative by each."""
    p = {n.removeprefix("model."): t.clone() for n, t in outer.items() if n.startswith("model.")}
    if s.head == "prototypes":  # Triantafillou et al., 2020, §3: W_c = 2 μ_c, b_c = -|μ_c|²
        means = prototypes({n: outer[f"model.{n}"] for n in BODY + NORM}, x, y)
        p["3.weight"], p["3.bias"] = 2 * means, -(means**2).sum(1)
    if s.head == "repeated":  # Ye & Chao, 2022, §5
        p |= {n: torch.stack([p[n][0]] * (int(y.max()) + 1)) for n in HEAD}
    return p


def sum_of(gradients: list[Tensor]) -> Tensor:
    """The sum over tasks; a head of fewer classes has gradient 0 by the others."""
    total = torch.zeros_like(max(gradients, key=len))
    for gradient in gradients:
        total = total + torch.cat([gradient, torch.zeros_like(total[len(gradient) :])])
    return total


def step_of(
    outer: Tree, p: Tree, delta: Tree, state: dict[str, Tree], k: int, s: Setting
) -> tuple[Tree, dict[str, Tree]]:
    """The parameters after update k (from 0), and the optimiser's state."""
    if s.rule == "alfa":  # Baik et al., 2020, Eqs. 3 to 6
        tau = torch.stack([p[n].mean() for n in s.adapts] + [delta[n].mean() for n in s.adapts])
        hidden = outer["alfa.hidden.weight"] @ tau + outer["alfa.hidden.bias"]
        hidden = torch.where(hidden > 0, hidden, 0 * hidden)
        out = outer["alfa.output.weight"] @ hidden + outer["alfa.output.bias"]
        moved = dict(p)
        for i, n in enumerate(s.adapts):
            alpha = outer[f"alfa.rate.{n}"][k] * out[i]
            beta = 1 - outer[f"alfa.decay.{n}"][k] * out[len(s.adapts) + i]
            moved[n] = beta * p[n] - alpha * delta[n]
        return moved, state
    first, second = dict(state.get("first", {})), dict(state.get("second", {}))
    moved = dict(p)
    for n in s.adapts:
        m, v = first.get(n, 0 * delta[n]), second.get(n, 0 * delta[n])
        direction = delta[n]
        if s.rule == "momentum":
            first[n] = direction = 0.9 * m + delta[n]
        if s.rule == "rmsprop":
            second[n] = 0.99 * v + 0.01 * delta[n] ** 2
            direction = delta[n] / (torch.sqrt(second[n]) + 1e-8)
        if s.rule == "adam":
            first[n] = 0.9 * m + 0.1 * delta[n]
            second[n] = 0.999 * v + 0.001 * delta[n] ** 2
            m_hat, v_hat = first[n] / (1 - 0.9 ** (k + 1)), second[n] / (1 - 0.999 ** (k + 1))
            direction = m_hat / (torch.sqrt(v_hat) + 1e-8)
        rate = outer[f"lslr.rate.{n}"][k] if s.rates else s.inner_lr
        moved[n] = p[n] - rate * direction
    return moved, {"first": first, "second": second}


def adapted(
    outer: Tree, g_hat: list[Tree] | None, batch: Batch, s: Setting, *, training: bool
) -> tuple[list[Tree], list[Tree]]:
    """The parameters of each task after K steps, and the new ĝ; Algorithm 1 or 2."""
    support_x, support_y, _, _ = batch
    T = len(support_x)
    theta = [start(outer, support_x[t], support_y[t], s) for t in range(T)]
    states: list[dict[str, Tree]] = [{} for _ in range(T)]
    new: list[Tree] = []
    for k in range(s.steps):
        own: list[Tree] = []
        for t in range(T):
            loss = F.cross_entropy(logits(theta[t], support_x[t]), support_y[t])
            found = torch.autograd.grad(loss, [theta[t][n] for n in s.adapts], create_graph=True)
            if not s.second_order:
                found = tuple(g.detach() for g in found)
            own.append(dict(zip(s.adapts, found, strict=True)))
        deltas = own
        if s.sharing and training:
            total = {n: sum_of([g[n] for g in own]) for n in s.adapts}
            norm = torch.sqrt(torch.stack([(g**2).sum() for g in total.values()]).sum())
            mixed = {n: g / norm for n, g in total.items()}
            if s.head != "learned":  # one ĝ for all classes: the mean of theirs
                mixed |= {n: mixed[n].mean(0, keepdim=True) for n in HEAD}
            if g_hat is not None:
                m = torch.sigmoid(outer["sharing.m"][k])
                mixed = {n: m * g + (1 - m) * g_hat[k][n] for n, g in mixed.items()}
            new.append({n: g.detach() for n, g in mixed.items()})
        elif s.sharing and g_hat is not None:
            mixed = g_hat[k]
        if s.sharing and (training or g_hat is not None):
            gate = torch.sigmoid(outer["sharing.lambda"][k])
            deltas = [{n: gate * mixed[n] + (1 - gate) * g[n] for n in s.adapts} for g in own]
        for t in range(T):
            theta[t], states[t] = step_of(outer, theta[t], deltas[t], states[t], k, s)
    return theta, new


def outer_losses(
    outer: Tree, g_hat: list[Tree] | None, batch: Batch, s: Setting
) -> tuple[Tensor, list[Tree]]:
    """The (T,) query losses and the new ĝ of one outer iteration."""
    theta, new = adapted(outer, g_hat, batch, s, training=True)
    _, _, query_x, query_y = batch
    return torch.stack(
        [F.cross_entropy(logits(p, query_x[t]), query_y[t]) for t, p in enumerate(theta)]
    ), new


def test_logits(outer: Tree, g_hat: list[Tree] | None, batch: Batch, s: Setting) -> list[Tensor]:
    """Algorithm 2."""
    theta, _ = adapted(outer, g_hat, batch, s, training=False)
    return [logits(p, batch[2][t]).detach() for t, p in enumerate(theta)]


def reptile_gradient(outer: Tree, batch: Batch, s: Setting) -> Tree:
    """Nichol et al., 2018, Algorithm 2: the mean over tasks of (θ - φ_K) / α, which Adam or SGD
    takes as a gradient. All parameters are adapted, on all of a task's examples."""
    support_x, support_y, query_x, query_y = batch
    T = len(support_x)
    total = {n: torch.zeros_like(t) for n, t in outer.items()}
    for t in range(T):
        x, y = torch.cat([support_x[t], query_x[t]]), torch.cat([support_y[t], query_y[t]])
        p = {n.removeprefix("model."): v.detach().requires_grad_() for n, v in outer.items()}
        for _ in range(s.steps):
            found = torch.autograd.grad(F.cross_entropy(logits(p, x), y), list(p.values()))
            p = {
                n: (v - s.inner_lr * g).detach().requires_grad_()
                for (n, v), g in zip(p.items(), found, strict=True)
            }
        for n, v in outer.items():
            total[n] += (v - p[n.removeprefix("model.")]).detach() / s.inner_lr / T
    return total


def prototypical_losses(outer: Tree, batch: Batch) -> Tensor:
    """Snell et al., 2017, Eqs. 1 and 2 with the squared Euclidean distance."""
    p = {n.removeprefix("model."): t for n, t in outer.items()}
    support_x, support_y, query_x, query_y = batch
    losses = []
    for t in range(len(support_x)):
        means, z = prototypes(p, support_x[t], support_y[t]), features(p, query_x[t])
        distances = ((z[:, None] - means[None]) ** 2).sum(2)
        probabilities = torch.exp(-distances) / torch.exp(-distances).sum(1, keepdim=True)
        picked = probabilities[torch.arange(len(z)), query_y[t]]
        losses.append(-torch.log(picked).mean())
    return torch.stack(losses)


def proximal_solution(
    outer: Tree, x: Tensor, y: Tensor, strength: float, s: Setting
) -> tuple[Tree, Tree]:
    """Rajeswaran et al., 2019, Eq. 3: K steps of gradient descent on L(φ) + λ/2 |φ - θ|². Returns φ
    and the parameters that are not adapted, all as constants."""
    p = {n.removeprefix("model."): v.detach().requires_grad_() for n, v in outer.items()}
    theta = {n: p[n].detach() for n in s.adapts}
    for _ in range(s.steps):
        distance = torch.stack([((p[n] - theta[n]) ** 2).sum() for n in s.adapts]).sum()
        loss = F.cross_entropy(logits(p, x), y) + strength / 2 * distance
        found = torch.autograd.grad(loss, [p[n] for n in s.adapts])
        for n, g in zip(s.adapts, found, strict=True):
            p[n] = (p[n] - s.inner_lr * g).detach().requires_grad_()
    return {n: p[n].detach() for n in s.adapts}, {
        n: t.detach() for n, t in p.items() if n not in s.adapts
    }


def implicit_gradient(
    outer: Tree, batch: Batch, strength: float, damping: float, s: Setting
) -> Tree:
    """Rajeswaran et al., 2019, Theorem 1 and Eq. 6: dL/dθ = (I + ∇²L_support(φ) / λ)⁻¹ ∇L_query(φ),
    by the whole Hessian. What is not adapted, ω, enters the stationarity condition as well:
    dL/dω = ∂L_query/∂ω - ∂/∂ω (∇L_support(φ, ω) · dL/dθ) / λ. With damping δ, each λ in these two
    equations is λ + δ."""
    support_x, support_y, query_x, query_y = batch
    T = len(support_x)
    total = {n: torch.zeros_like(t) for n, t in outer.items()}
    for t in range(T):
        phi, omega = proximal_solution(outer, support_x[t], support_y[t], strength, s)
        sizes = [v.numel() for v in phi.values()]
        point = torch.cat([v.flatten() for v in phi.values()])

        def named(flat: Tensor, phi: Tree = phi, sizes: list[int] = sizes) -> Tree:
            pieces = torch.split(flat, sizes)
            return {n: part.view_as(v) for (n, v), part in zip(phi.items(), pieces, strict=True)}

        def loss(
            flat: Tensor, rest: Tree, x: Tensor, y: Tensor, named: Callable[[Tensor], Tree] = named
        ) -> Tensor:
            return F.cross_entropy(logits({**named(flat), **rest}, x), y)

        free = {n: v.clone().requires_grad_() for n, v in omega.items()}
        leaf = point.clone().requires_grad_()
        of_query = loss(leaf, free, query_x[t], query_y[t])
        v, *direct = torch.autograd.grad(of_query, [leaf, *free.values()])
        hessian: Tensor = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
            lambda flat, t=t, omega=omega, loss=loss: loss(flat, omega, support_x[t], support_y[t]),
            point,
        )
        solution = torch.linalg.solve(
            torch.eye(len(point), dtype=point.dtype) + hessian / (strength + damping), v
        )
        of_support = loss(leaf, free, support_x[t], support_y[t])
        (slope,) = torch.autograd.grad(of_support, [leaf], create_graph=True)
        product = (slope * solution).sum() / (strength + damping)
        mixed = torch.autograd.grad(product, list(free.values()))
        for n, part in named(solution).items():
            total[f"model.{n}"] += part / T
        for n, one, other in zip(free, direct, mixed, strict=True):
            total[f"model.{n}"] += (one - other) / T
    return total
