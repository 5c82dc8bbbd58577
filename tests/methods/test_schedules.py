"""MAML++'s multi-step loss against numbers worked out by hand from the reference code."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from gradshare.errors import ConfigError
from gradshare.methods.multi_step_loss import MultiStepLoss


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
    weights = MultiStepLoss(15 * 500).weights(5, round(epoch * 500))
    assert weights == pytest.approx([other] * 4 + [last])
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("iteration", [7500, 7501, 50_000])
def test_afterwards_only_the_last_step_counts(iteration: int) -> None:
    assert MultiStepLoss(7500).weights(5, iteration) == [0, 0, 0, 0, 1]


def test_left_out_it_is_the_last_step_from_the_start() -> None:
    assert MultiStepLoss(0).weights(3, 0) == [0, 0, 1]


def test_one_step_has_all_the_weight() -> None:
    assert MultiStepLoss(10).weights(1, 5) == [1]


def test_the_number_of_iterations_must_be_a_whole_number() -> None:
    with pytest.raises(ConfigError) as error:
        MultiStepLoss(0.5)  # type: ignore[arg-type]
    assert str(error.value) == (
        "iterations of the multi-step loss is 0.5; give a whole number, at least 0"
    )


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
