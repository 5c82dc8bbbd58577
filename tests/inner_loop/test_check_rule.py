"""`check_rule`: all our own rules pass, and a rule without a property fails with its sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradshare.errors import ConfigError
from gradshare.inner_loop import (
    ALFA,
    LSLR,
    SGD,
    Adam,
    Chain,
    DetachedSharing,
    ForgottenAtTest,
    GradientSharing,
    Held,
    LearnedRates,
    MetaSGD,
    Momentum,
    OwnGradient,
    Proximal,
    RateControl,
    RMSprop,
    Step,
    Tensors,
    UnnormalizedSharing,
    UpdateRule,
)
from gradshare.testing import check_rule


class OwnMomentum(UpdateRule):
    """A rule as a user would write it. Its β is float32 whatever the model is."""

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        return {"beta": torch.full((steps,), 0.5)}, {}

    def start(self, params: Tensors) -> Tensors:
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> Any:
        velocity = {n: meta["beta"][step.k] * task[n] + g for n, g in gradients.items()}
        return velocity, carried, velocity


RULES = [
    SGD(0.1),
    MetaSGD(0.1),
    LSLR(0.1),
    ALFA(0.1),
    Momentum(),
    RMSprop(),
    Adam(),
    Proximal(0.5),
    GradientSharing(),
    GradientSharing(norm="per-tensor"),
    UnnormalizedSharing(),
    DetachedSharing(),
    ForgottenAtTest(),
    RateControl(),
    OwnGradient(),
    OwnGradient(norm="per-tensor"),
    LearnedRates(),
    Held(GradientSharing(), {"m": 1.0, "lambda": 0.0}),
    OwnMomentum(),
    Chain(sharing=GradientSharing(), momentum=Momentum(), lslr=LSLR(0.1)),
]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_our_own_rules_have_all_properties(rule: UpdateRule, steps: int) -> None:
    check_rule(rule, steps=steps)


def test_the_callers_random_numbers_and_grad_mode_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.no_grad():
        check_rule(OwnMomentum())
    assert torch.equal(torch.rand(2), expected)


class ChangesState(OwnMomentum):
    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        for name, g in gradients.items():
            task[name].mul_(0.5).add_(g)
        return task, carried, task


class ReplacesState(OwnMomentum):
    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        for name, g in gradients.items():
            task[name] = task[name] + g
        return task, carried, task


class MovesParameters(OwnMomentum):
    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        step.params["bias"].sub_(gradients["bias"])
        return gradients, carried, task


class Counts(OwnMomentum):
    calls = 0

    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        self.calls += 1
        return {n: g / self.calls for n, g in gradients.items()}, carried, task


class Draws(OwnMomentum):
    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        return {n: g + torch.randn_like(g) for n, g in gradients.items()}, carried, task


class ScalarState(OwnMomentum):
    def start(self, params: Tensors) -> Tensors:
        return {"count": torch.zeros(())}

    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        return gradients, carried, {"count": task["count"] + 1}


class CarriesAtTest(OwnMomentum):
    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        return {}, {"count": torch.zeros(())}

    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        return gradients, {"count": carried["count"] + 1}, task


class MeanOverTasks(OwnMomentum):
    """Right in training by one process, and nowhere else."""

    only_in_training = False

    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        if self.only_in_training and not step.training:
            return gradients, carried, task
        return {n: g.mean(0).expand_as(g) for n, g in gradients.items()}, carried, task


class MeanOverTasksInTraining(MeanOverTasks):
    only_in_training = True


class Normalizes(OwnMomentum):
    """0/0 at a zero gradient."""

    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        updates = {
            n: g / g.flatten(1).norm(dim=1).view(-1, *[1] * (g.ndim - 1))
            for n, g in gradients.items()
        }
        return updates, carried, task


class OwnAdam(OwnMomentum):
    """Finite at a zero gradient, but the derivative of its root is not."""

    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        squares = {n: 0.9 * task[n] + 0.1 * g**2 for n, g in gradients.items()}
        updates = {n: g / (squares[n].sqrt() + 1e-8) for n, g in gradients.items()}
        return updates, carried, squares


class LooksAtMemory(OwnMomentum):
    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        scale = 2.0 if gradients["weight"].is_contiguous() else 1.0
        return {n: scale * g for n, g in gradients.items()}, carried, task


class CountsStepsItself(OwnMomentum):
    def start(self, params: Tensors) -> Tensors:
        return {"k": torch.zeros(len(params["bias"]), dtype=torch.int64)}

    def update(self, gradients: Tensors, meta: Tensors, carried: Any, task: Any, step: Step) -> Any:
        rate = meta["beta"][int(task["k"][0])]
        return {n: rate * g for n, g in gradients.items()}, carried, {"k": task["k"] + 1}


IN_PLACE = "in place; make new tensors and a new dictionary"
BESIDE = (
    ".update lets a task depend on those beside it; combine tasks by `step.sum_over_tasks` only, "
    "which is None at test"
)
AGAIN = (
    ".update returns something else when it is called again with the same arguments; keep what "
    "changes in `carried` or `task`, not in the rule"
)
AT_ZERO = (
    ".update or its derivative is not finite at a zero gradient; guard divisions and roots: "
    "torch.where(x > 0, x, 1)"
)
BROKEN: list[tuple[type[UpdateRule], str]] = [
    (ChangesState, f"ChangesState.update changed 'weight' of `task` {IN_PLACE}"),
    (ReplacesState, f"ReplacesState.update changed 'weight' of `task` {IN_PLACE}"),
    (MovesParameters, f"MovesParameters.update changed 'bias' of `step.params` {IN_PLACE}"),
    (Counts, f"Counts{AGAIN}"),
    (Draws, f"Draws{AGAIN}"),
    (
        ScalarState,
        "the rule made a state 'count' of shape (); its first dimension must be the tasks, here 3",
    ),
    (
        CarriesAtTest,
        "CarriesAtTest.update changed `carried` at test; return it as it was unless "
        "`step.training`",
    ),
    (MeanOverTasks, f"MeanOverTasks{BESIDE}"),
    (MeanOverTasksInTraining, f"MeanOverTasksInTraining{BESIDE}"),
    (Normalizes, f"Normalizes{AT_ZERO}"),
    (OwnAdam, f"OwnAdam{AT_ZERO}"),
    (
        LooksAtMemory,
        "LooksAtMemory has other results with tasks_at_a_time=None and recompute=False; compute "
        "from the values that `update` gets alone, not from their graphs or memory",
    ),
    (
        CountsStepsItself,
        "CountsStepsItself.update fails with more inner steps than it was made for (index 3 is out "
        "of bounds for dimension 0 with size 3); index what is per step by `step.k`",
    ),
]


@pytest.mark.parametrize(
    ("rule", "message"), BROKEN, ids=lambda case: getattr(case, "__name__", "")
)
def test_a_rule_without_a_property_fails_with_a_sentence(
    rule: type[UpdateRule], message: str
) -> None:
    with pytest.raises(AssertionError) as error:
        check_rule(rule())
    assert str(error.value) == message


def test_wrong_names_and_shapes_and_what_is_not_a_rule_are_config_errors() -> None:
    class Broadcasts(OwnMomentum):
        def update(self, gradients: Tensors, meta: Any, carried: Any, task: Any, step: Step) -> Any:
            return {n: g.mean(0) for n, g in gradients.items()}, carried, task

    with pytest.raises(ConfigError, match=r"Broadcasts.update returned updates with 'weight' of"):
        check_rule(Broadcasts())
    with pytest.raises(
        ConfigError, match=r"rule is the class OwnMomentum; call it: OwnMomentum\(…\)"
    ):
        check_rule(OwnMomentum)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"rule is <class .*Adam'>, not an update rule"):
        check_rule(torch.optim.Adam)  # type: ignore[arg-type]
