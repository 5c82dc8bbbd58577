"""Flat memory: what is kept, what is repeated, what is refused. Its numbers: see test_parity."""

from __future__ import annotations

import random
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError
from gradshare.inner_loop import Tensors, UpdateRule
from gradshare.methods import maml, maml_plus_plus
from gradshare.methods.meta_learner import MetaLearner
from gradshare.models import Conv4
from tests.problems import WAYS, tasks


def outer_gradients(
    learner: MetaLearner, count: int = 2, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    meta, carried = learner.init()
    objective = learner.outer_step(meta, carried, tasks(count, 1, dtype), iteration=0).objective
    gradients = torch.autograd.grad(objective.mean(), list(meta.values()), allow_unused=True)
    return {n: g for n, g in zip(meta, gradients, strict=True) if g is not None}


def test_parameters_of_several_types_get_the_gradients_of_kept_graphs() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(16)
            self.head = nn.Linear(16, WAYS).double()

        def forward(self, x: Tensor) -> Tensor:
            pooled: Tensor = F.adaptive_avg_pool2d(x.float(), 4)[:, 0].flatten(1)
            outputs: Tensor = self.head(self.norm(pooled).double())
            return outputs

    model = Mixed()
    flat, kept = (
        outer_gradients(maml(model, sharing=True, adapts=lambda n: "head" in n, recompute=r))
        for r in (True, False)
    )
    for name, gradient in kept.items():
        assert flat[name].dtype == gradient.dtype
        assert torch.allclose(flat[name], gradient, rtol=1e-5, atol=1e-7), name


def kept_bytes(steps: int, count: int, *, recompute: bool) -> int:
    """What the graph of an outer step of MAML++, its multi-step loss on, keeps alive."""
    torch.manual_seed(0)
    learner = maml_plus_plus(
        Conv4(ways=WAYS, image_size=16, channels=2, filters=8).double(),
        steps=steps,
        sharing=True,
        multi_step_iterations=10,
        recompute=recompute,
    )
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor.detach())  # with its own node the graph would never be freed
        alive.add(kept)
        return kept

    meta, carried = learner.init()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        step = learner.outer_step(meta, carried, tasks(count, 1), iteration=0)
    storages = {
        kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes()
        for kept in alive
    }
    assert step.objective.requires_grad
    return sum(storages.values())


def test_the_memory_kept_has_no_activations_of_any_step_or_task() -> None:
    images = 2 * WAYS * 8 * 16 * 16 * 8  # one activation of the first layer, of one support set
    theta = 8 * (2 * 9 * 8 + 3 * 8 * 9 * 8 + 8 * WAYS + WAYS)  # the adapted parameters of one task
    # A handful of parameter-sized tensors a step and task, and no activations.
    for steps, count in ((1, 1), (6, 1), (1, 4), (6, 4)):
        assert kept_bytes(steps, count, recompute=True) < 8 * theta * (steps + 1) * (count + 1)
    assert kept_bytes(6, 4, recompute=False) > 6 * 4 * 5 * images


class Dropping(nn.Module):
    """A network that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * 16 * 16, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(F.dropout(x.flatten(1), 0.5, training=True))
        return y.tanh()


@pytest.mark.parametrize("tasks_at_a_time", [1, 2, None])
def test_the_second_pass_draws_the_same_random_numbers(tasks_at_a_time: int | None) -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        learner = maml(
            Dropping().double(), steps=2, tasks_at_a_time=tasks_at_a_time, recompute=recompute
        )
        torch.manual_seed(1)
        results.append((outer_gradients(learner, 3), torch.rand(3)))
    for name, gradient in results[0][0].items():
        assert torch.allclose(gradient, results[1][0][name], rtol=1e-9), name
    assert torch.equal(results[0][1], results[1][1])  # and leaves the generator where it would be


class Counting(nn.Module):
    """A network that counts its calls, and whose outputs depend on the count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * 16 * 16, WAYS)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.linear(x.flatten(1)) * self.calls
        return y


@pytest.mark.parametrize("tasks_at_a_time", [1, None])
def test_a_module_that_counts_its_calls_is_refused_with_the_reason(
    tasks_at_a_time: int | None,
) -> None:
    torch.manual_seed(0)
    model = Counting().double()
    with pytest.raises(ConfigError) as error:
        outer_gradients(maml(model, recompute=True, tasks_at_a_time=tasks_at_a_time))
    assert re.fullmatch(
        r"the model computed a loss of [\d.e+]+ where it computed [\d.e+]+ before: it has hidden "
        "state, such as a counter, a generator of its own or numpy's random numbers; use "
        "memory='keep', or torch's global generator",
        str(error.value),
    )
    assert outer_gradients(maml(model, tasks_at_a_time=tasks_at_a_time))


class CountingRule(UpdateRule):
    """A rule that counts its calls, and takes longer steps with each."""

    def __init__(self) -> None:
        self.calls = 0

    def update(self, gradients: Any, meta: Any, carried: Any, task: Any, step: Any) -> Any:
        self.calls += 1
        return {n: 1e-3 * self.calls * g for n, g in gradients.items()}, carried, task


@pytest.mark.parametrize("tasks_at_a_time", [1, None])
def test_a_rule_that_counts_its_calls_is_refused_with_the_reason(
    tasks_at_a_time: int | None,
) -> None:
    model = Conv4(ways=WAYS, image_size=16, channels=2, filters=4).double()
    learner = MetaLearner(
        model, CountingRule(), steps=2, recompute=True, tasks_at_a_time=tasks_at_a_time
    )
    with pytest.raises(ConfigError, match=r"the rule moved a parameter to a norm of .* before: it"):
        outer_gradients(learner)


def numbers_of_numpy() -> Callable[[], float]:
    generator = np.random.default_rng(0)
    return generator.random


def numbers_of_python() -> Callable[[], float]:
    return random.Random(0).random


def numbers_of_a_torch_generator() -> Callable[[], float]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.rand((), generator=generator).item()


@pytest.mark.parametrize(
    "make", [numbers_of_numpy, numbers_of_python, numbers_of_a_torch_generator]
)
@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_a_module_with_random_numbers_of_another_kind_is_refused_too(
    dtype: torch.dtype, noise: float, make: Callable[[], Callable[[], float]]
) -> None:
    draw = make()

    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) * (1 + noise * draw())

    model = Noisy(2 * 16 * 16, WAYS).to(dtype)
    with pytest.raises(ConfigError, match=r"numpy's random numbers; use memory='keep', or torch's"):
        outer_gradients(maml(model, recompute=True), dtype=dtype)


def test_a_graph_that_is_retained_can_be_differentiated_twice() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, WAYS)).double()
    learner = maml(model, steps=2, recompute=True)
    meta, carried = learner.init()
    loss = learner.outer_step(meta, carried, tasks(2, 1), iteration=0).objective.mean()
    first = torch.autograd.grad(loss, list(meta.values()), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, list(meta.values())), strict=True):
        assert torch.equal(one, other)


def test_the_second_pass_is_under_the_autocast_of_the_first() -> None:
    def gradients(*, recompute: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(2 * 16 * 16, 8), nn.Tanh(), nn.Linear(8, WAYS)
        )
        learner = maml(model, steps=3, recompute=recompute)
        meta, carried = learner.init()
        with torch.autocast("cpu", torch.bfloat16):
            batch = tasks(2, 1, torch.float32)
            objective = learner.outer_step(meta, carried, batch, iteration=0).objective
        found = torch.autograd.grad(objective.mean(), list(meta.values()))
        return dict(zip(meta, found, strict=True))

    kept, recomputed = gradients(recompute=False), gradients(recompute=True)
    for name, gradient in kept.items():
        assert (gradient - recomputed[name]).norm() <= 1e-5 * gradient.norm(), name


def test_a_parameter_that_would_get_no_gradient_is_refused() -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def learned_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs * scale, targets)

    model = Conv4(ways=WAYS, image_size=16, channels=2, filters=2).double()
    with pytest.raises(ConfigError) as error:
        outer_gradients(maml(model, loss=learned_loss, recompute=True))
    assert str(error.value) == (
        "the loss depends on a tensor of shape () that requires gradients and is not a parameter "
        "of the model: with memory='recompute' it would get none; make it a parameter of the "
        "model, or use memory='keep'"
    )
    outer_gradients(maml(model, loss=learned_loss))


class Frozen(nn.Module):
    """A body that is learned by the outer loop alone, and a head that is adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2 * 16 * 16, 5)
        self.head = nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x.flatten(1)).tanh())
        return y


@pytest.mark.parametrize("tasks_at_a_time", [1, None])
def test_what_is_not_adapted_learns_from_the_support_sets_too(
    tasks_at_a_time: int | None,
) -> None:
    def gradients(**layout: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return outer_gradients(
            maml(
                Frozen().double(),
                steps=3,
                adapts=lambda name: name.startswith("head"),
                sharing=True,
                **layout,
            )
        )

    kept = gradients()
    recomputed = gradients(recompute=True, tasks_at_a_time=tasks_at_a_time)
    assert kept.keys() == recomputed.keys()
    for name, gradient in kept.items():
        difference = (gradient - recomputed[name]).norm()
        assert difference <= 1e-9 * gradient.norm() + 1e-13, name


def test_a_loss_without_a_second_derivative() -> None:
    def linear(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean() + 0 * targets.sum()

    def gradients(**layout: Any) -> Tensors:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, WAYS)).double()
        return outer_gradients(maml(model, loss=linear, **layout))

    kept, recomputed = gradients(), gradients(recompute=True)
    for name, gradient in kept.items():
        assert torch.allclose(gradient, recomputed[name]), name


def test_a_derivative_of_the_outer_gradient_is_refused() -> None:
    learner = maml(
        nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, WAYS)).double(), recompute=True
    )
    meta, carried = learner.init()
    objective = learner.outer_step(meta, carried, tasks(2, 1), iteration=0).objective
    with pytest.raises(ConfigError, match="Hessian-vector product; use memory='keep'"):
        torch.autograd.grad(objective.mean(), list(meta.values()), create_graph=True)
