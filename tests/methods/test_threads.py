"""Learners in several threads at once."""

from __future__ import annotations

import copy
import pickle
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradshare.methods import MetaLearner, maml
from gradshare.tasks import TaskBatch
from tests.problems import WAYS, tasks

THREADS = 8


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def small_learner(*, recompute: bool = False) -> MetaLearner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, 4), nn.Tanh(), nn.Linear(4, WAYS))
    return maml(model.double(), steps=2, recompute=recompute)


def outer_gradients(learner: MetaLearner, seed: int) -> list[Tensor]:
    meta, carried = learner.init()
    objective = learner.outer_step(meta, carried, tasks(2, seed), iteration=0).objective
    return list(torch.autograd.grad(objective.mean(), list(meta.values())))


@pytest.mark.parametrize("recompute", [False, True])
def test_threads_get_what_each_would_get_alone(recompute: bool) -> None:
    learner = small_learner(recompute=recompute)
    before = copy.deepcopy(learner.model.state_dict())
    seeds = list(range(3)) * THREADS
    alone = [outer_gradients(learner, seed) for seed in range(3)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda seed: outer_gradients(learner, seed), seeds))
    for seed, gradients in zip(seeds, together, strict=True):
        for mine, other in zip(gradients, alone[seed], strict=True):
            assert torch.equal(mine, other)
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("layout", [{}, {"tasks_at_a_time": None}, {"recompute": True}], ids=str)
def test_several_learners_on_one_module_do_not_disturb_each_other(layout: dict[str, Any]) -> None:
    class Slow(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.001)  # lets another thread in
            y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return y

    torch.manual_seed(0)
    module = Slow(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    before = copy.deepcopy(module.state_dict())
    x, y = torch.randn(2, 4, 6), torch.randint(0, 3, (2, 4))
    batch = TaskBatch(x, y, x, y)
    learners = [maml(module, steps=2, sharing=True, **layout) for _ in range(4)]

    def losses(learner: MetaLearner) -> list[str]:
        meta, carried = learner.init()
        return [
            str(learner.outer_step(meta, carried, batch, iteration=0).losses.tolist())
            for _ in range(20)
        ]

    with ThreadPoolExecutor(4) as pool:
        found = {value for values in pool.map(losses, learners) for value in values}
    assert len(found) == 1
    assert all(torch.equal(tensor, before[n]) for n, tensor in module.state_dict().items())


def test_a_learner_can_be_copied_and_pickled() -> None:
    learner = small_learner()
    expected = outer_gradients(learner, 1)
    for other in (
        copy.copy(learner),
        copy.deepcopy(learner),
        pickle.loads(pickle.dumps(learner)),
    ):
        for mine, right in zip(outer_gradients(other, 1), expected, strict=True):
            assert torch.equal(mine, right)
