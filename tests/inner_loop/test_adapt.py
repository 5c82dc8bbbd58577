"""The inner loop by itself, with losses whose gradients are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import (
    SGD,
    Adaptation,
    Chain,
    Step,
    Tensors,
    UpdateRule,
    adapt,
    sum_over_local_tasks,
)
from gradshare.methods import MetaLearner

TASKS = 3
LAYOUTS = pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])


def start() -> dict[str, Tensor]:
    return {"w": (torch.arange(6, dtype=torch.float64).view(TASKS, 2) / 6).requires_grad_()}


def losses(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
    """Σ w⁴ / 4 of each task, whose gradient is w³."""
    return params["w"].pow(4).sum(1) / 4


def adapted(support_losses: Any = losses, rule: UpdateRule | None = None, **options: Any) -> Any:
    options = {
        "second_order": True,
        "steps": 2,
        "trained_steps": options.get("steps", 2),
        "meta": {},
        "carried": {},
        "params": start(),
        "sum_over_tasks": sum_over_local_tasks,
        **options,
    }
    result: Adaptation = adapt(support_losses, rule=rule or SGD(0.1), **options)
    return result


@LAYOUTS
def test_two_steps_of_gradient_descent_and_their_derivative_are_those_of_the_formula(
    recompute: bool,
) -> None:
    params = start()
    w = [params["w"].detach()]
    for _ in range(2):
        w.append(w[-1] - 0.1 * w[-1] ** 3)
    result = adapted(params=params, recompute=recompute)
    for found, expected in zip(result.params.values(), w, strict=True):
        assert torch.allclose(found["w"], expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(result.params[max(result.params)]["w"].sum(), params["w"])
    expected = (1 - 0.3 * w[0] ** 2) * (1 - 0.3 * w[1] ** 2)
    assert torch.allclose(gradient, expected, rtol=1e-12)


@LAYOUTS
def test_in_first_order_mode_the_gradients_are_constants(recompute: bool) -> None:
    params = start()
    result = adapted(params=params, second_order=False, recompute=recompute)
    (gradient,) = torch.autograd.grad(result.params[max(result.params)]["w"].sum(), params["w"])
    assert torch.equal(gradient, torch.ones_like(gradient))


class ByLoss(UpdateRule):
    """A rule that multiplies the gradients by the loss."""

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> Any:
        return {"w": step.losses[:, None] * gradients["w"]}, carried, task


@LAYOUTS
def test_a_rule_may_use_the_losses_and_the_derivative_goes_through_them(recompute: bool) -> None:
    params = start()
    result = adapted(params=params, rule=ByLoss(), steps=1, recompute=recompute)
    (gradient,) = torch.autograd.grad(result.params[max(result.params)]["w"].sum(), params["w"])
    w = start()["w"]
    by_formula = w - w.pow(4).sum(1, keepdim=True) / 4 * w**3
    (expected,) = torch.autograd.grad(by_formula.sum(), w)
    assert torch.allclose(gradient, expected, rtol=1e-12)


@LAYOUTS
def test_a_parameter_that_starts_from_another_has_a_gradient_of_its_own(recompute: bool) -> None:
    body = start()["w"]
    params = {"body": body, "head": body**2}
    result = adapted(
        lambda params, *_: (params["body"] * params["head"]).sum(1),
        params=params,
        steps=1,
        recompute=recompute,
    )
    (gradient,) = torch.autograd.grad(
        result.params[max(result.params)]["head"].sum(), body, retain_graph=True
    )
    assert torch.allclose(
        result.params[max(result.params)]["body"], body - 0.1 * body**2, rtol=1e-12
    )
    assert torch.allclose(
        result.params[max(result.params)]["head"], body**2 - 0.1 * body, rtol=1e-12
    )
    assert torch.allclose(gradient, 2 * body - 0.1, rtol=1e-12)


class Recorder(UpdateRule):
    """A rule that keeps what it is shown, and counts its calls in the tasks' state."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensors, Tensors, Step]] = []

    def start(self, params: Tensors) -> Tensors:
        return {"calls": torch.zeros(len(params["w"]))}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> Any:
        self.seen.append((gradients, task, step))
        return gradients, carried, {"calls": task["calls"] + 1}


def test_a_rule_sees_the_step_and_the_tasks_own_gradients_behind_other_rules() -> None:
    recorder = Recorder()
    result = adapted(rule=Chain(first=SGD(0.1), recorder=recorder))
    for k, (gradients, task, step) in enumerate(recorder.seen):
        before = result.params[k]["w"]
        assert (step.k, step.training) == (k, True)
        assert step.params["w"] is before
        assert torch.allclose(step.losses, before.pow(4).sum(1) / 4)
        assert torch.allclose(step.own_gradients["w"], before**3)
        assert torch.allclose(gradients["w"], 0.1 * before**3)
        assert task["calls"].tolist() == [k] * TASKS


def test_steps_beyond_the_trained_ones_have_the_last_ones_number() -> None:
    recorder = Recorder()
    adapted(rule=recorder, steps=4, trained_steps=2, sum_over_tasks=None)
    assert [step.k for *_, step in recorder.seen] == [0, 1, 1, 1]
    assert not any(step.training for *_, step in recorder.seen)


def test_what_is_carried_is_detached() -> None:
    class Mean(UpdateRule):
        def update(
            self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
        ) -> Any:
            return gradients, {"mean": gradients["w"].mean(0)}, task

    result = adapted(rule=Mean(), carried={"mean": torch.zeros(2)})
    assert result.carried["mean"].any()
    assert not result.carried["mean"].requires_grad


@pytest.mark.parametrize("second_order", [True, False])
@LAYOUTS
@pytest.mark.parametrize("shape", [(), (TASKS, 2), (TASKS + 1,)])
def test_losses_that_are_not_one_for_each_task_are_refused(
    shape: tuple[int, ...], recompute: bool, second_order: bool
) -> None:
    def of_another_shape(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
        return params["w"].sum().expand(shape)

    with pytest.raises(ConfigError) as error:
        adapted(of_another_shape, second_order=second_order, recompute=recompute)
    assert str(error.value) == (
        f"the losses are of shape {shape}; give one for each task, ({TASKS},)"
    )


class Returning(UpdateRule):
    """A rule that returns what it is told to."""

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def update(self, *_: Any) -> Any:
        return self.returned


class Made(UpdateRule):
    """Returns the same from `init`, whatever it is given."""

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def init(self, *_: Any) -> Any:
        return self.returned

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        return gradients, carried, task


TWO = "return two dictionaries of tensors: `meta`, which is learned, and `carried`"


@pytest.mark.parametrize("chained", [False, True], ids=["alone", "in a chain"])
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"rate": torch.ones(3)}, f"returned a dict; {TWO}"),
        (({}, None), f"returned a tuple; {TWO}"),
        (({"rate": 0.1}, {}), "returned 'rate' as a float; make it a tensor: torch.tensor(0.1)"),
    ],
)
def test_what_a_rule_begins_with_wrongly_is_named(
    returned: Any, message: str, chained: bool
) -> None:
    rule: UpdateRule = Made(returned)
    with pytest.raises(ConfigError) as error:
        MetaLearner(nn.Linear(2, 2), Chain(own=rule) if chained else rule).init()
    assert str(error.value) == f"Made.init {message}"


W = torch.zeros(TASKS, 2, dtype=torch.float64)
THREE = "return three dictionaries: the updates, `carried` and `task`"
WRONG: list[tuple[Any, str]] = [
    (None, f"returned a NoneType; {THREE}"),
    ({"w": W}, f"returned a dict; {THREE}"),
    (({"w": W}, {}), f"returned a tuple; {THREE}"),
    (({"w": W}, None, {}), f"returned a tuple; {THREE}"),
    ((W, {}, {}), f"returned a tuple; {THREE}"),
    (
        ({"v": W, "w": W}, {}, {}),
        "must return updates with the names it was given; 'v' is missing or new",
    ),
    (({}, {}, {}), "must return updates with the names it was given; 'w' is missing or new"),
    (
        ({"w": W}, {"mean": W}, {}),
        "must return carried with the names it was given; 'mean' is missing or new",
    ),
    (({"w": 0.1}, {}, {}), "returned updates with 'w' of shape float; it must be (3, 2)"),
    # PyTorch would broadcast these two over the parameters.
    (({"w": W[0]}, {}, {}), "returned updates with 'w' of shape (2,); it must be (3, 2)"),
    (({"w": W[:1]}, {}, {}), "returned updates with 'w' of shape (1, 2); it must be (3, 2)"),
]


@pytest.mark.parametrize("chained", [False, True], ids=["alone", "in a chain"])
@pytest.mark.parametrize(("returned", "message"), WRONG)
def test_what_a_rule_returns_wrongly_is_named(returned: Any, message: str, chained: bool) -> None:
    rule: UpdateRule = Returning(returned)
    with pytest.raises(ConfigError) as error:
        adapted(rule=Chain(own=rule, sgd=SGD(0.1)) if chained else rule)
    assert str(error.value) == f"Returning.update {message}"


@pytest.mark.parametrize(
    ("carried", "message"),
    [
        ({}, "must return carried with the names it was given; 'mean' is missing or new"),
        ({"mean": W[0]}, "returned carried with 'mean' of shape (2,); it must be (3, 2)"),
    ],
)
def test_a_rule_must_return_all_that_is_carried(carried: Tensors, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        adapted(rule=Returning(({"w": W}, carried, {})), carried={"mean": W})
    assert str(error.value) == f"Returning.update {message}"
