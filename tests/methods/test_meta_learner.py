"""What a meta-learner refuses when it is made."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError
from gradshare.inner_loop import (
    GradientSharing,
    Held,
    LearnedRates,
    OwnGradient,
    RateControl,
    UpdateRule,
)
from gradshare.methods import MetaLearner, maml
from gradshare.methods.multi_step_loss import MultiStepLoss
from tests.problems import WAYS, tasks

LAYOUTS = pytest.mark.parametrize("layout", [{}, {"recompute": True}], ids=["keep", "recompute"])


def linear() -> nn.Module:
    """The smallest model of `tests.problems.tasks`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, WAYS)).double()


def refused(**options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        maml(nn.Linear(2, 2), **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_norm": "inductve"},
            "batch_norm 'inductve' is unknown; use 'transductive' or 'inductive'",
        ),
        ({"precision": "bf16"}, "precision 'bf16' is unknown; use 'float32' or 'bfloat16'"),
        ({"tasks_at_a_time": 0}, "tasks_at_a_time is 0; give at least 1, or None for all"),
        ({"steps": 0}, "steps is 0; take at least 1"),
    ],
)
def test_a_value_that_an_option_does_not_take(options: dict[str, Any], message: str) -> None:
    assert refused(**options) == message


@pytest.mark.parametrize("rule", [GradientSharing, OwnGradient])
def test_a_norm_that_equation_1_does_not_have(rule: Any) -> None:
    with pytest.raises(ConfigError) as error:
        rule(5, norm="per_tensor")
    assert str(error.value) == "norm 'per_tensor' is unknown; use 'global' or 'per-tensor'"


@pytest.mark.parametrize("steps", [3, 10])
@pytest.mark.parametrize("rule", [GradientSharing, RateControl, OwnGradient, LearnedRates])
def test_a_rule_made_for_another_number_of_steps(rule: Any, steps: int) -> None:
    expected = (
        f"{rule.__name__} is made for {steps} inner steps, the learner takes 5; give both the same "
        "number"
    )
    assert refused(steps=5, sharing=rule(steps)) == expected


def test_a_rule_inside_another_made_for_another_number_of_steps() -> None:
    rule: UpdateRule = Held(GradientSharing(3), m=1.0)
    assert refused(steps=5, sharing=rule).startswith("GradientSharing is made for 3 inner steps")


def test_a_multi_step_loss_made_for_another_number_of_steps() -> None:
    message = refused(steps=5, multi_step_loss=MultiStepLoss(3, 10))
    assert message.startswith("MultiStepLoss is made for 3 inner steps, the learner takes 5")


def test_a_rule_that_is_made_for_no_number_of_steps_takes_any() -> None:
    class Plain:
        def init(self, params: Any) -> Any:
            return {}, {}

        def update(self, gradients: Any, *_: Any) -> Any:
            return gradients, {}

    assert MetaLearner(nn.Linear(2, 2), Plain(), steps=7).steps == 7


@pytest.mark.parametrize(
    ("norm", "remedy"),
    [
        (nn.InstanceNorm2d(2, track_running_stats=True), ""),
        (
            nn.BatchNorm2d(2),
            ", or pass the model through torch.func.replace_all_batch_norm_modules_",
        ),
    ],
)
def test_running_statistics_that_would_leak_from_task_to_task(norm: nn.Module, remedy: str) -> None:
    with pytest.raises(ConfigError) as error:
        maml(nn.Sequential(nn.Conv2d(2, 2, 3), norm))
    assert str(error.value) == (
        f"{type(norm).__name__} '1' of Sequential keeps running statistics, which would leak from "
        f"task to task; build it with track_running_stats=False{remedy}"
    )


def test_instance_norm_without_running_statistics_is_taken() -> None:
    assert maml(nn.Sequential(nn.Conv2d(2, 2, 3), nn.InstanceNorm2d(2))).steps == 5


def one_for_each_image(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@LAYOUTS
@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (one_for_each_image, f"one_for_each_image returned ({2 * WAYS},)"),
        (nn.CrossEntropyLoss(reduction="none"), f"CrossEntropyLoss returned ({2 * WAYS},)"),
        (lambda outputs, targets: 0.0, "<lambda> returned float"),
    ],
)
def test_a_loss_that_is_no_scalar(loss: Any, found: str, layout: dict[str, Any]) -> None:
    learner = maml(linear(), loss=loss, **layout)
    learned, state = learner.init()
    with pytest.raises(ConfigError) as error:
        learner.outer_step(learned, state, tasks(2, 1), iteration=0)
    assert str(error.value) == (
        f"the loss of a task must be a tensor of shape (), and {found}; give one that takes the "
        "mean (reduction='mean')"
    )
