"""The inner loop by itself, with the losses of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, Adaptation, Chain, GradientSharing, Tensors, UpdateRule, adapt
from gradshare.inner_loop.rule import sum_over_local_tasks
from gradshare.methods import MetaLearner

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


class Returning:
    """A rule that returns what it is told to."""

    def __init__(self, *, init: Any = ({}, {}), update: Any = ({}, {})) -> None:
        self.returned = {"init": init, "update": update}

    def init(self, params: Tensors) -> Any:
        return self.returned["init"]

    def update(self, *_: Any) -> Any:
        return self.returned["update"]


W = torch.zeros(TASKS, 2, dtype=torch.float64)
UPDATES: list[tuple[Any, str]] = [
    (None, "returned None; it must return a pair of dictionaries: the updates and its state"),
    (
        {"w": 1},
        "returned {'w': 1}; it must return a pair of dictionaries: the updates and its state",
    ),
    (
        ({"v": W, "w": W}, {}),
        "returned one of 'v' too; it must return one of each of its gradients, 'w'",
    ),
    (({}, {}), "returned no update of 'w'; it must return one of each of its gradients, 'w'"),
    # These two would be broadcast over the parameters, (3, 2), to wrong steps.
    (
        ({"w": W[0]}, {}),
        "returned an update of 'w' of shape (2,); it must have the gradient's, (3, 2), the tasks "
        "first",
    ),
    (
        ({"w": W[:1]}, {}),
        "returned an update of 'w' of shape (1, 2); it must have the gradient's, (3, 2), the tasks "
        "first",
    ),
]


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize(("returned", "message"), UPDATES)
def test_updates_that_do_not_fit_the_gradients(returned: Any, message: str, chained: bool) -> None:
    own = Returning(update=returned)
    rule = Chain(own=own, sgd=SGD(0.1)) if chained else own
    with pytest.raises(ConfigError) as error:
        adapted(rule=rule)
    assert str(error.value) == f"Returning.update {message}"


@pytest.mark.parametrize("chained", [False, True])
def test_a_rule_whose_init_returns_one_tree(chained: bool) -> None:
    own = Returning(init={})
    with pytest.raises(ConfigError) as error:
        MetaLearner(nn.Linear(2, 2), Chain(own=own) if chained else own, steps=2).init()
    assert str(error.value) == (
        "Returning.init returned {}; it must return a pair of dictionaries: what it learns and its "
        "state"
    )
