"""Learners as users would write them, by the contract alone, beside our own: each learns, and the
meta-gradient of a user's learner is a literal formula's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gradshare import methods
from gradshare.inner_loop import Adam, SumOverTasks, Tensors, sum_over_local_tasks
from gradshare.methods import Learner, MetaLearner, OuterStep
from gradshare.tasks import TaskBatch

WAYS, SHOTS, FEATURES = 3, 2, 12


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


def reptile() -> Learner:
    return Reptile(Model())


def proto_net() -> Learner:
    return ProtoNet(Model().body)


def evaluation_loss(learner: Learner, meta: Tensors, carried: Tensors) -> float:
    held_out = tasks(999, 50)
    with torch.no_grad():
        outputs = learner.predict(meta, learner.adapt(meta, carried, held_out), held_out)
    return float(mean_losses(outputs, held_out.query_y).mean())


OURS = {
    "ANIL": lambda model: methods.anil(model, inner_lr=0.3),
    "BOIL": lambda model: methods.boil(model, inner_lr=0.3),
    "ALFA": methods.alfa,
    "ProtoMAML": methods.proto_maml,
    "ProtoNet": methods.protonet,
    "Reptile": methods.reptile,
    "iMAML": lambda model: methods.imaml(model, steps=5),
    "Adam": lambda model: methods.maml(model, rule=Adam(), inner_lr=0.05),
}


@pytest.mark.parametrize("make", [reptile, proto_net], ids=lambda make: make.__name__)
def test_a_learner_by_the_contract_alone_learns(make: Callable[[], Learner]) -> None:
    require_learning(make())


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_each_method_of_the_field_learns(make: Callable[[nn.Module], MetaLearner]) -> None:
    require_learning(make(Model()).laid_out(tasks_at_a_time=None, recompute=False))


def require_learning(learner: Learner) -> None:
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
