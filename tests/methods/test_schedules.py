"""MAML++'s multi-step loss against numbers worked out by hand from the reference code."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gradshare.errors import ConfigError
from gradshare.methods import MetaLearner, maml_plus_plus


def learner(iterations: int, steps: int = 5) -> MetaLearner:
    return maml_plus_plus(nn.Linear(2, 2), multi_step_iterations=iterations, steps=steps)


@pytest.mark.parametrize(
    ("epoch", "other", "last"),
    [
        (0, 0.2, 0.2),
        (3, 0.16, 0.36),
        (14, 0.2 - 14 / 75, 0.2 + 4 * 14 / 75),
        # The reference keeps 0.03 / K for the steps before the last: from 97 % of the way on.
        (14.9, 0.006, 0.976),
    ],
)
def test_multi_step_weights_of_the_reference(epoch: float, other: float, last: float) -> None:
    # K = 5, 15 epochs of 500 iterations.
    weights = learner(15 * 500).query_weights(round(epoch * 500))
    assert weights == pytest.approx([other] * 4 + [last])
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("iteration", [7500, 7501, 50_000])
def test_afterwards_only_the_last_step_counts(iteration: int) -> None:
    assert learner(7500).query_weights(iteration) == [0, 0, 0, 0, 1]


def test_left_out_it_is_the_last_step_from_the_start() -> None:
    assert learner(0, steps=3).query_weights(0) == [0, 0, 1]


def test_one_step_has_all_the_weight() -> None:
    assert learner(10, steps=1).query_weights(5) == [1]


def test_the_number_of_iterations_must_be_a_whole_number() -> None:
    with pytest.raises(ConfigError) as error:
        learner(0.5)  # type: ignore[arg-type]
    assert str(error.value) == "multi_step_iterations is 0.5; give a whole number, at least 0"


def test_the_documented_cosine_is_the_references_which_moves_once_an_epoch() -> None:
    page = Path("docs/methods.md").read_text(encoding="utf-8")
    found = re.search(r"`schedule=(lambda .*?)`", page)
    assert found is not None
    schedule = eval(found[1], {"math": math, "epochs": 4})
    optimizer = torch.optim.Adam([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for epoch in range(4):
        for iteration in (500 * epoch, 500 * epoch + 499):
            assert math.isclose(schedule(iteration), reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
