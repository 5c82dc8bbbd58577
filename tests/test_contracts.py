"""Learners and a rule as users would write them, by the contracts alone: Reptile, ProtoNet,
ProtoMAML and Adam in the inner loop. Each learns, and its meta-gradient is a literal formula's.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gradshare.inner_loop import (
    SGD,
    Chain,
    GradientSharing,
    Step,
    SumOverTasks,
    Tensors,
    UpdateRule,
    sum_over_local_tasks,
)
from gradshare.methods import Learner, MetaLearner, OuterStep
from gradshare.tasks import TaskBatch
from gradshare.testing import check_rule

WAYS, SHOTS, FEATURES = 3, 2, 12
LAYOUTS = pytest.mark.parametrize("layout", [{}, {"tasks_at_a_time": None}, {"recompute": True}])


def tasks(seed: int, count: int = 4) -> TaskBatch:
    """Three classes around three corners of a triangle, among ten features of noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(WAYS).repeat(SHOTS).expand(count, WAYS * SHOTS)
    means = torch.zeros(count, WAYS, FEATURES).double()
    corners = torch.tensor([[2, 0], [-1, 1.7], [-1, -1.7]])
    means[..., :2] = corners + torch.randn(count, WAYS, 2, generator=generator)

    def rows() -> Tensor:
        noise = torch.randn(count, WAYS * SHOTS, FEATURES, generator=generator).double()
        return means.repeat(1, SHOTS, 1) + noise

    return TaskBatch(rows(), y, rows(), y)


class Model(nn.Module):
    """A body that makes embeddings, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh())
        self.head = nn.Linear(8, WAYS)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y


def leaves_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


def mean_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each task."""
    return torch.stack([F.cross_entropy(o, y) for o, y in zip(outputs, targets, strict=True)])


class Reptile:
    """Moves the initialisation towards where each task ends (Nichol et al., 2018)."""

    def __init__(self, model: nn.Module, steps: int = 5, lr: float = 0.3) -> None:
        self.model, self.steps, self.lr = model, steps, lr

    def init(self) -> tuple[dict[str, Tensor], Tensors]:
        return leaves_of(self.model), {}

    def outer_step(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        iteration: int,
        sum_over_tasks: SumOverTasks = sum_over_local_tasks,
    ) -> OuterStep:
        adapted = self.adapt(meta, carried, tasks)
        outputs = self.predict(meta, adapted, tasks)
        # Its gradient by θ is θ - θ_K.
        objective = [
            torch.stack([((t - theta[n]).detach() * t).sum() for n, t in meta.items()]).sum()
            for theta in adapted
        ]
        losses = mean_losses(outputs, tasks.query_y)
        return OuterStep(torch.stack(objective), losses, outputs, carried)

    def adapt(
        self, meta: Tensors, carried: Tensors, tasks: TaskBatch, *, steps: int | None = None
    ) -> list[Tensors]:
        adapted: list[Tensors] = []
        for x, y in zip(tasks.support_x, tasks.support_y, strict=True):
            theta = {name: t.detach().requires_grad_() for name, t in meta.items()}
            for _ in range(self.steps if steps is None else steps):
                with torch.enable_grad():
                    loss = F.cross_entropy(functional_call(self.model, theta, x), y)
                gradients = torch.autograd.grad(loss, list(theta.values()))
                theta = {
                    n: (t - self.lr * g).detach().requires_grad_()
                    for (n, t), g in zip(theta.items(), gradients, strict=True)
                }
            adapted.append(theta)
        return adapted

    def predict(self, meta: Tensors, adapted: list[Tensors], tasks: TaskBatch) -> Tensor:
        pairs = zip(adapted, tasks.query_x, strict=True)
        with torch.no_grad():
            return torch.stack([functional_call(self.model, dict(theta), x) for theta, x in pairs])


class ProtoNet:
    """The nearest mean of a class in a learned embedding (Snell et al., 2017); no inner loop."""

    def __init__(self, body: nn.Module) -> None:
        self.body = body

    def init(self) -> tuple[dict[str, Tensor], Tensors]:
        return leaves_of(self.body), {}

    def outer_step(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        iteration: int,
        sum_over_tasks: SumOverTasks = sum_over_local_tasks,
    ) -> OuterStep:
        outputs = self.predict(meta, self.adapt(meta, carried, tasks), tasks)
        losses = mean_losses(outputs, tasks.query_y)
        return OuterStep(losses, losses.detach(), outputs.detach(), carried)

    def adapt(
        self, meta: Tensors, carried: Tensors, tasks: TaskBatch, *, steps: int | None = None
    ) -> Tensor:
        embedded = functional_call(self.body, dict(meta), tasks.support_x)
        return prototypes(embedded, tasks.support_y)

    def predict(self, meta: Tensors, adapted: Tensor, tasks: TaskBatch) -> Tensor:
        embedded = functional_call(self.body, dict(meta), tasks.query_x)
        distances: Tensor = (embedded[:, :, None] - adapted[:, None]).square().sum(-1)
        return -distances


def prototypes(embedded: Tensor, targets: Tensor) -> Tensor:
    """(T, ways, d): the mean embedding of each class."""
    members = F.one_hot(targets).to(embedded.dtype).mT
    means: Tensor = members @ embedded / members.sum(-1, keepdim=True)
    return means


class ProtoMAML(MetaLearner):
    """MAML whose head starts from the prototypes of its classes (Triantafillou et al., 2020)."""

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self.body = model.body

    def start(self, meta: Tensors, tasks: TaskBatch, *, training: bool) -> dict[str, Tensor]:
        prefix = "model.body."
        named = {n.removeprefix(prefix): t for n, t in meta.items() if n.startswith(prefix)}
        embedded = functional_call(self.body, named, tasks.support_x)
        means = prototypes(embedded, tasks.support_y)
        head = {"head.weight": 2 * means, "head.bias": -means.square().sum(-1)}
        return {**super().start(meta, tasks, training=training), **head}


class Adam(UpdateRule):
    """Adam in the inner loop, begun anew for each task (Kingma & Ba, 2015)."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def start(self, params: Tensors) -> Tensors:
        first = next(iter(params.values()))
        zero = {f"{m}.{name}": torch.zeros_like(p) for m in "mv" for name, p in params.items()}
        return {**zero, "steps": first.new_zeros(len(first))}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        new, updates = {"steps": task["steps"] + 1}, {}
        for name, g in gradients.items():
            m = new[f"m.{name}"] = 0.9 * task[f"m.{name}"] + 0.1 * g
            v = new[f"v.{name}"] = 0.999 * task[f"v.{name}"] + 0.001 * g**2
            t = new["steps"].view(-1, *[1] * (g.ndim - 1))
            # Inside the root, so that its derivative at zero is finite.
            updates[name] = self.lr * m / (1 - 0.9**t) / (v / (1 - 0.999**t) + 1e-16).sqrt()
        return updates, carried, new


def reptile() -> Learner:
    return Reptile(Model())


def proto_net() -> Learner:
    return ProtoNet(Model().body)


def proto_maml(**options: Any) -> MetaLearner:
    return ProtoMAML(Model(), rule=SGD(0.1), steps=3, **options)


def proto_maml_with_sharing() -> Learner:
    rule = Chain(sharing=GradientSharing(), sgd=SGD(0.1))
    return ProtoMAML(Model(), rule=rule, steps=3)


def with_adam(**options: Any) -> MetaLearner:
    return MetaLearner(Model(), Adam(0.05), steps=3, **options)


def evaluation_loss(learner: Learner, meta: Tensors, carried: Tensors) -> float:
    held_out = tasks(999, 50)
    with torch.no_grad():
        outputs = learner.predict(meta, learner.adapt(meta, carried, held_out), held_out)
    return float(mean_losses(outputs, held_out.query_y).mean())


@pytest.mark.parametrize(
    "make", [reptile, proto_net, proto_maml, proto_maml_with_sharing, with_adam]
)
def test_each_learner_learns(make: Any) -> None:
    learner: Learner = make()
    meta, carried = learner.init()
    before = evaluation_loss(learner, meta, carried)
    optimizer = torch.optim.Adam(meta.values(), lr=0.02)
    for iteration in range(60):
        step = learner.outer_step(meta, carried, tasks(iteration), iteration=iteration)
        assert step.objective.shape == step.losses.shape == (4,)
        assert not step.losses.requires_grad
        optimizer.zero_grad()
        step.objective.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        carried = step.carried
    after = evaluation_loss(learner, meta, carried)
    assert after < 0.65 * before


def outer_gradients(learner: Learner, batch: TaskBatch) -> dict[str, Tensor]:
    meta, carried = learner.init()
    step = learner.outer_step(meta, carried, batch, iteration=0)
    found = torch.autograd.grad(
        step.objective.mean(), list(meta.values()), allow_unused=True, materialize_grads=True
    )
    return {n.removeprefix("model."): g for n, g in zip(meta, found, strict=True)}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 1e-9 * tensor.norm() + 1e-13, name


def test_reptiles_gradient_is_the_way_back_from_where_sgd_ends() -> None:
    batch, model = tasks(1), Model()
    ways_back = []
    for x, y in zip(batch.support_x, batch.support_y, strict=True):
        moved = copy.deepcopy(model)
        optimizer = torch.optim.SGD(moved.parameters(), lr=0.3)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(moved(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        end = dict(moved.named_parameters())
        ways_back.append({n: (p - end[n]).detach() for n, p in model.named_parameters()})
    expected = {n: torch.stack([way[n] for way in ways_back]).mean(0) for n in ways_back[0]}
    assert_equal(outer_gradients(reptile(), batch), expected)


def test_proto_nets_gradient_is_that_of_its_formula() -> None:
    batch, body = tasks(1), Model().body
    total = torch.zeros(()).double()
    for t in range(len(batch)):
        support, query = body(batch.support_x[t]), body(batch.query_x[t])
        means = [support[batch.support_y[t] == way].mean(0) for way in range(WAYS)]
        logits = torch.stack([-((query - mean) ** 2).sum(1) for mean in means], 1)
        total = total + F.cross_entropy(logits, batch.query_y[t]) / len(batch)
    total.backward()  # type: ignore[no-untyped-call]
    expected = {name: p.grad for name, p in body.named_parameters() if p.grad is not None}
    assert_equal(outer_gradients(proto_net(), batch), expected)


def literal(batch: TaskBatch, *, prototypes: bool, adam: bool) -> dict[str, Tensor]:
    """The meta-gradient of three inner steps, from the prototypes or the head, by Adam or SGD."""
    model = Model()
    meta = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    total = torch.zeros(()).double()
    for t in range(len(batch)):
        theta = {name: 1 * p for name, p in meta.items()}
        if prototypes:
            embedded = torch.tanh(
                batch.support_x[t] @ meta["body.0.weight"].T + meta["body.0.bias"]
            )
            means = [embedded[batch.support_y[t] == way].mean(0) for way in range(WAYS)]
            theta["head.weight"] = torch.stack([2 * mean for mean in means])
            theta["head.bias"] = torch.stack([-(mean @ mean) for mean in means])
        m = {n: torch.zeros_like(p) for n, p in theta.items()}
        v = {n: torch.zeros_like(p) for n, p in theta.items()}
        for k in range(1, 4):
            loss = F.cross_entropy(
                functional_call(model, theta, batch.support_x[t]), batch.support_y[t]
            )
            found = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            for name, g in zip(list(theta), found, strict=True):
                if adam:
                    m[name] = 0.9 * m[name] + 0.1 * g
                    v[name] = 0.999 * v[name] + 0.001 * g**2
                    root = torch.sqrt(v[name] / (1 - 0.999**k) + 1e-16)
                    theta[name] = theta[name] - 0.05 * (m[name] / (1 - 0.9**k)) / root
                else:
                    theta[name] = theta[name] - 0.1 * g
        outputs = functional_call(model, theta, batch.query_x[t])
        total = total + F.cross_entropy(outputs, batch.query_y[t]) / len(batch)
    found = torch.autograd.grad(
        total, list(meta.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(meta, found, strict=True))


@LAYOUTS
def test_proto_mamls_gradient_goes_through_the_prototypes(layout: dict[str, Any]) -> None:
    batch = tasks(1)
    assert_equal(
        outer_gradients(proto_maml(**layout), batch), literal(batch, prototypes=True, adam=False)
    )


@LAYOUTS
def test_adams_meta_gradient_is_that_of_a_literal_loop(layout: dict[str, Any]) -> None:
    batch = tasks(1)
    assert_equal(
        outer_gradients(with_adam(**layout), batch), literal(batch, prototypes=False, adam=True)
    )


def test_adam_in_the_inner_loop_ends_where_pytorchs_adam_does() -> None:
    batch, learner = tasks(1), with_adam()
    adapted = learner.adapt(*learner.init(), batch, steps=7)
    for t in range(len(batch)):
        model = Model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(7):
            optimizer.zero_grad()
            F.cross_entropy(model(batch.support_x[t]), batch.support_y[t]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for name, p in model.named_parameters():
            assert torch.allclose(adapted.params[name][t], p, atol=1e-4)  # ε is elsewhere


def test_adam_has_the_properties_of_a_rule() -> None:
    check_rule(Adam(0.05))
