"""The inner loop by itself, with the losses of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import (
    SGD,
    Adaptation,
    Chain,
    GradientSharing,
    Held,
    Tensors,
    UpdateRule,
    adapt,
)
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
        "returned updates with 'v'; it must return one for each of its gradients, and no more",
    ),
    (
        ({}, {}),
        "returned updates without 'w'; it must return one for each of its gradients, and no more",
    ),
    (({"w": 0.1}, {}), "returned 0.1 as 'w'; it must be a tensor"),
    (({"w": W}, {"seen": 1}), "returned 1 as 'seen'; it must be a tensor"),
    (
        ({"w": W}, {"seen": W}),
        "returned a state with 'seen'; it must return all of the state that it was given, and no "
        "more",
    ),
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


PLACES = pytest.mark.parametrize(
    "place",
    [lambda rule: rule, lambda rule: Chain(own=rule, sgd=SGD(0.1)), lambda rule: Held(rule, {})],
    ids=["alone", "chained", "held"],
)


@PLACES
@pytest.mark.parametrize(("returned", "message"), UPDATES)
def test_what_does_not_fit_the_gradients_or_the_state(
    returned: Any, message: str, place: Callable[[Any], UpdateRule]
) -> None:
    with pytest.raises(ConfigError) as error:
        adapted(rule=place(Returning(update=returned)))
    assert str(error.value) == f"Returning.update {message}"


def test_a_state_that_loses_what_it_had() -> None:
    with pytest.raises(ConfigError) as error:
        adapted(rule=Returning(update=({"w": W}, {})), state={"seen": W})
    assert str(error.value) == (
        "Returning.update returned a state without 'seen'; it must return all of the state that it "
        "was given, and no more"
    )


@PLACES
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            {},
            "returned {}; it must return a pair of dictionaries: what it learns and its state",
        ),
        (({"rate": 0.1}, {}), "returned 0.1 as 'rate'; it must be a tensor"),
        (
            ({"rate": torch.tensor(1)}, {}),
            "returned 'rate' of torch.int64 to be learned, which has no gradients; make it "
            "floating-point, or put it into the state",
        ),
    ],
)
def test_a_rule_that_cannot_start(
    returned: Any, message: str, place: Callable[[Any], UpdateRule]
) -> None:
    with pytest.raises(ConfigError) as error:
        MetaLearner(nn.Linear(2, 2), place(Returning(init=returned)), steps=2).init()
    assert str(error.value) == f"Returning.init {message}"
