"""One learner in several threads at once."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from gradshare.methods import MetaLearner, maml
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
    learned, state = learner.init()
    losses = learner.outer_step(learned, state, tasks(2, seed), iteration=0).losses
    return list(torch.autograd.grad(losses.mean(), list(learned.values())))


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
