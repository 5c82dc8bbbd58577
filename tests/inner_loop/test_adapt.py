"""The inner loop by itself, with the losses of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, Adaptation, Chain, GradientSharing, Tensors, UpdateRule, adapt
from gradshare.inner_loop.rule import sum_over_local_tasks

TASKS = 3


def start() -> dict[str, Tensor]:
    return {"w": torch.arange(6, dtype=torch.float64).view(TASKS, 2).requires_grad_()}


def losses(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
    """Σ w⁴ / 4 of each task, whose gradient is w³."""
    return params["w"].pow(4).sum(1) / 4


def adapted(support_losses: Any = losses, rule: UpdateRule | None = None, **options: Any) -> Any:
    options = {"second_order": True, "steps": 2, "learned": {}, "state": {}, **options}
    result: Adaptation = adapt(
        support_losses,
        start(),
        rule or SGD(0.1),
        options.pop("learned"),
        options.pop("state"),
        sum_over_tasks=sum_over_local_tasks,
        **options,
    )
    return result


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("shape", [(), (TASKS, 2), (TASKS + 1,)])
def test_losses_that_are_not_one_for_each_task(
    shape: tuple[int, ...], recompute: bool, second_order: bool
) -> None:
    def of_another_shape(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
        return params["w"].sum().expand(shape)

    with pytest.raises(ConfigError) as error:
        adapted(of_another_shape, second_order=second_order, recompute=recompute)
    assert str(error.value) == (
        f"the losses are of shape {shape}; give one for each task, ({TASKS},)"
    )


def test_a_rule_made_for_another_number_of_steps() -> None:
    with pytest.raises(ConfigError) as error:
        adapted(rule=Chain(sharing=GradientSharing(5), sgd=SGD(0.1)), steps=7)
    assert str(error.value) == (
        "GradientSharing is made for 5 inner steps, the learner takes 7; give both the same number"
    )
