"""A meta-learner: what it refuses, and what of it can be frozen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError, DataError
from gradshare.inner_loop import (
    LSLR,
    SGD,
    Chain,
    GradientSharing,
    Held,
    MetaSGD,
    RateControl,
    Step,
    Tensors,
    UpdateRule,
)
from gradshare.methods import MetaLearner, maml, maml_plus_plus, meta_sgd
from gradshare.models import Conv4
from tests.oracle import Setting
from tests.problems import WAYS, learner, tasks

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
            "batch_norm 'inductve' is unknown; use 'auto' or 'inductive' or 'transductive'",
        ),
        ({"precision": "bf16"}, "precision 'bf16' is unknown; use 'float32' or 'bfloat16'"),
        ({"steps": 0}, "steps is 0; give a whole number, at least 1"),
        ({"steps": 2.0}, "steps is 2.0; give a whole number, at least 1"),
        ({"steps": True}, "steps is True; give a whole number, at least 1"),
        ({"second_order": "first"}, "second_order 'first' is unknown; use True or False"),
        (
            {"first_order_iterations": "10"},
            "first_order_iterations is '10'; give a whole number, at least 0",
        ),
        ({"loss": "mse"}, "loss is 'mse'; give a function"),
        (
            {"loss": nn.MSELoss},
            "loss is <class 'torch.nn.modules.loss.MSELoss'>; give a function",
        ),
        ({"adapts": ["weight"]}, "adapts is ['weight']; give a function"),
    ],
)
def test_a_value_that_an_option_does_not_take(options: dict[str, Any], message: str) -> None:
    assert refused(**options) == message


@pytest.mark.parametrize("rule", [SGD, MetaSGD, LSLR])
@pytest.mark.parametrize("lr", [-0.1, math.inf, math.nan, "0.1", True, None])
def test_an_inner_rate_must_be_a_finite_number_that_is_not_negative(rule: Any, lr: Any) -> None:
    with pytest.raises(ConfigError) as error:
        rule(lr)
    assert str(error.value) == (
        f"the inner learning rate is {lr!r}; give a finite number, at least 0"
    )


@pytest.mark.parametrize("lr", [0, 0.1, np.float32(0.1), torch.tensor(0.1)])
def test_an_inner_rate_may_be_any_kind_of_number(lr: Any) -> None:
    assert maml(linear(), inner_lr=lr).init()


class Learns(UpdateRule):
    """A rule that learns what it is made with."""

    def __init__(self, **meta: Tensor) -> None:
        self.meta = meta

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        return self.meta, {}

    def update(self, gradients: Tensors, *_: Any) -> Any:
        return gradients, {}, {}


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (Chain(model=Learns(weight=torch.zeros(2, 2))), "Chain.init learns 'model.weight' of"),
        (Learns(count=torch.tensor(1)), "Learns.init learns 'count' of torch.int64;"),
    ],
)
def test_a_rule_may_not_learn_integers_or_what_is_named_like_the_model(
    rule: UpdateRule, found: str
) -> None:
    with pytest.raises(ConfigError) as error:
        MetaLearner(nn.Linear(2, 2), rule, steps=5).init()
    assert str(error.value).startswith(found)
    assert str(error.value).endswith(
        "what a rule learns must be floating-point and not begin with 'model.'"
    )


def test_what_a_rule_starts_with_may_require_gradients() -> None:
    start = nn.Parameter(torch.ones(3))
    meta, _ = MetaLearner(nn.Linear(2, 2), Learns(scale=start * 2), steps=5).init()
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in meta.values())
    torch.optim.Adam(meta.values())
    with torch.no_grad():
        meta["scale"].zero_()
    assert torch.equal(start, torch.ones(3))


def test_a_model_with_nothing_to_adapt_is_refused() -> None:
    message = (
        "Linear has no parameters to adapt; give it some that require gradients ({}), and let "
        "`adapts` choose at least one"
    )
    there = "those are ['weight', 'bias']"
    assert refused(adapts=lambda name: name == "head") == message.format(there)
    with pytest.raises(ConfigError) as error:
        maml(nn.Linear(2, 2).requires_grad_(False))
    assert str(error.value) == message.format("it has none")


def test_the_inductive_mode_needs_a_model_that_takes_the_support_set() -> None:
    cannot = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    can = Conv4(ways=2, image_size=16, channels=1, filters=2)
    assert maml(can).inductive
    assert not maml(can, batch_norm="transductive").inductive
    assert not maml(cannot).inductive
    with pytest.raises(ConfigError) as error:
        maml(cannot, batch_norm="inductive")
    assert str(error.value) == (
        "inductive batch norm needs Sequential.forward(x, support), where the support inputs "
        "supply the statistics; put them in front of x, pass their number to each "
        "gradshare.models.BatchNorm2d as `statistics_from` (see Conv4), or choose the transductive "
        "mode"
    )


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
def test_a_loss_that_is_not_a_scalar_is_refused(
    loss: Any, found: str, layout: dict[str, Any]
) -> None:
    learner = maml(linear(), loss=loss, **layout)
    meta, carried = learner.init()
    with pytest.raises(ConfigError) as error:
        learner.outer_step(meta, carried, tasks(2, 1), iteration=0)
    assert str(error.value) == (
        f"the loss of a task must be a tensor of shape (), and {found}; give one that takes the "
        "mean (reduction='mean')"
    )


def losses_and_gradients(
    learner: MetaLearner, chosen: Callable[[str], bool]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the second of two outer steps, with what is not chosen frozen."""
    meta, carried = learner.init()
    carried = learner.outer_step(meta, carried, tasks(2, 1), iteration=0).carried
    meta = {name: t if chosen(name) else t.detach() for name, t in meta.items()}
    step = learner.outer_step(meta, carried, tasks(2, 2), iteration=1)
    wanted = {name: t for name, t in meta.items() if t.requires_grad}
    gradients = torch.autograd.grad(step.objective.mean(), list(wanted.values()), allow_unused=True)
    return step.losses, {n: g for n, g in zip(wanted, gradients, strict=True) if g is not None}


FROZEN: dict[str, Callable[[str], bool]] = {
    "the model": lambda name: name.startswith("sharing."),
    "what is adapted": lambda name: ".norm." in name or name.startswith("sharing."),
    "a bias": lambda name: name != "model.linear.bias",
    "what is shared": lambda name: ".norm." not in name,
    "all but a filter": lambda name: name == "model.blocks.1.conv.weight",
}


@LAYOUTS
@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_frozen_changes_no_other_gradient(frozen: str, layout: dict[str, Any]) -> None:
    ours = learner(Setting("maml", "sharing", 2, 0.4), **layout)
    expected_losses, expected = losses_and_gradients(ours, lambda _: True)
    losses, gradients = losses_and_gradients(ours, FROZEN[frozen])
    assert torch.allclose(losses, expected_losses, rtol=1e-12)
    assert set(gradients) == {name for name in expected if FROZEN[frozen](name)}
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-9 * expected[name].norm() + 1e-13, name


@LAYOUTS
@pytest.mark.parametrize("how", ["no_grad", "nothing requires gradients"])
def test_losses_alone_need_no_gradients(how: str, layout: dict[str, Any]) -> None:
    ours = learner(Setting("maml", "sharing", 2, 0.4), **layout)
    meta, carried = ours.init()
    expected = ours.outer_step(meta, carried, tasks(2, 1), iteration=0).losses
    if how != "no_grad":
        meta = {name: t.detach() for name, t in meta.items()}
    with torch.set_grad_enabled(how != "no_grad"):
        step = ours.outer_step(meta, carried, tasks(2, 1), iteration=0)
    assert torch.equal(step.losses, expected)
    assert not step.objective.requires_grad  # so that learning nothing is an error


@LAYOUTS
@pytest.mark.parametrize("second_order", [True, False])
def test_inference_mode_is_refused_by_name(second_order: bool, layout: dict[str, Any]) -> None:
    ours = maml(linear(), second_order=second_order, **layout)
    meta, carried = ours.init()
    for call in (
        lambda: ours.outer_step(meta, carried, tasks(2, 1), iteration=0),
        lambda: ours.adapt(meta, carried, tasks(2, 1)),
    ):
        with torch.inference_mode(), pytest.raises(ConfigError) as error:
            call()
        assert str(error.value) == (
            "the inner loop takes gradients, which torch.inference_mode() does not allow; use "
            "torch.no_grad()"
        )


@LAYOUTS
@pytest.mark.parametrize("tasks_at_a_time", [1, None])
@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda y: (y, y), "tuple"),
        (lambda y: {"logits": y}, "dict"),
        (lambda y: None, "NoneType"),
    ],
)
def test_a_model_that_does_not_return_a_tensor_is_refused(
    wrap: Callable[[Tensor], Any], kind: str, tasks_at_a_time: int | None, layout: dict[str, Any]
) -> None:
    class Wrapped(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x.flatten(1)))

    model = Wrapped(2 * 16 * 16, WAYS).double()
    ours = maml(model, tasks_at_a_time=tasks_at_a_time, **layout)
    meta, carried = ours.init()
    with pytest.raises(ConfigError) as error:
        ours.outer_step(meta, carried, tasks(2, 1), iteration=0)
    assert str(error.value) == (
        f"Wrapped.forward returned a {kind}; it must return one tensor: wrap it in a module that "
        "returns its outputs alone"
    )


@pytest.mark.parametrize("rule", [0.5, nn.Linear(2, 2), "sharing"], ids=repr)
def test_a_rule_must_be_an_object_of_a_subclass_of_update_rule(rule: Any) -> None:
    expected = (
        f"is {rule!r}, not an update rule; give an object of a subclass of gradshare.UpdateRule, "
        "such as GradientSharing()"
    )
    assert refused(sharing=rule) == f"sharing {expected}"
    assert refused(rule=rule) == f"rule {expected}"
    for make in (MetaLearner, lambda _, rule: Held(rule, {"lambda": 0.5})):
        with pytest.raises(ConfigError) as error:
            make(linear(), rule)
        assert str(error.value) == f"rule {expected}"


def test_a_rule_that_is_a_class_is_refused() -> None:
    assert refused(sharing=GradientSharing) == (
        "sharing is the class GradientSharing; call it: GradientSharing(…)"
    )


def test_a_chain_without_a_rule_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Chain(left_out=None)
    assert str(error.value) == "a chain has no rule; give one, such as sgd=SGD(0.1)"


@pytest.mark.parametrize(
    "method", [maml, meta_sgd, partial(maml_plus_plus, multi_step_iterations=0)]
)
def test_sharing_true_a_rule_and_none_are_put_in_front_of_the_rates(method: Any) -> None:
    own = Learns()
    for sharing, names in ((True, ["sharing"]), (RateControl(), ["sharing"]), (False, [])):
        rules = method(linear(), sharing=sharing, rule=own).rule.rules
        assert list(rules)[:-1] == [*names, "rule"]
        assert rules["rule"] is own
    kept = RateControl()
    assert method(linear(), sharing=kept).rule.rules["sharing"] is kept


REMEDY = "; give what this learner's `init` returned, or a checkpoint of the same method and model"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "model.1.bias",
            None,
            f"the meta-parameter 'model.1.bias' is missing, this learner has one of ({WAYS},)",
        ),
        (  # of a learner with more inner steps
            "sharing.m",
            torch.zeros(3),
            "the meta-parameter 'sharing.m' is (3,), this learner has one of (2,)",
        ),
        (  # which could be broadcast
            "sharing.g_hat.0.1.weight",
            torch.zeros(1, 2 * 16 * 16),
            "the carried tensor 'sharing.g_hat.0.1.weight' is (1, 512), this learner has one of "
            f"({WAYS}, 512)",
        ),
        (
            "sharing.seen",
            None,
            "the carried tensor 'sharing.seen' is missing, this learner has one of (2,)",
        ),
    ],
)
def test_the_state_of_another_learner_is_refused_by_name(
    name: str, tensor: Tensor | None, message: str
) -> None:
    ours = maml(linear(), steps=2, sharing=True)
    state = ours.init()
    meta, carried = ({n: t for n, t in part.items() if n != name} for part in state)
    if tensor is not None:
        (meta if name in state[0] else carried)[name] = tensor
    uses: list[Any] = [partial(ours.outer_step, iteration=0), ours.adapt]
    for use in uses:
        with pytest.raises(ConfigError) as error:
            use(meta, carried, tasks(2, 1))
        assert str(error.value) == message + REMEDY


@pytest.mark.parametrize("iteration", [-1, math.nan, 1.5, True, None])
def test_an_iteration_that_is_no_number_of_iterations_is_refused(iteration: Any) -> None:
    ours = maml(linear())
    with pytest.raises(ConfigError) as error:
        ours.outer_step(*ours.init(), tasks(2, 1), iteration=iteration)
    assert str(error.value) == f"iteration is {iteration}; give a whole number, at least 0"


@pytest.mark.parametrize("steps", [-1, True, 2.0])
def test_a_number_of_inner_steps_at_test_that_is_none_is_refused(steps: Any) -> None:
    ours = maml(linear())
    with pytest.raises(ConfigError) as error:
        ours.adapt(*ours.init(), tasks(2, 1), steps=steps)
    assert str(error.value) == f"steps is {steps}; give a whole number, at least 0"


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [(F.cross_entropy, -100), (nn.CrossEntropyLoss(ignore_index=1), 1)],
    ids=["function", "module"],
)
@pytest.mark.parametrize("padded", [False, True])
def test_a_task_without_a_support_label_is_refused(loss: Any, ignored: int, padded: bool) -> None:
    ours = maml(linear(), loss=loss)
    batch = tasks(2, 1)
    batch.support_y[1, : -1 if padded else None] = ignored
    if padded:
        n = batch.support_y.shape[1]
        batch = dataclasses.replace(batch, support_n=[n, n - 1])
    with pytest.raises(DataError) as error:
        ours.outer_step(*ours.init(), batch, iteration=0)
    assert str(error.value) == (
        f"all support labels of task 2 are {ignored}, which cross entropy ignores; label at least "
        "one example"
    )


class MeanOfUpdates(UpdateRule):
    """A rule that does not detach what it carries."""

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        return {"mu": torch.zeros(())}, {n: torch.zeros_like(p) for n, p in params.items()}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        updates = {n: meta["mu"].sigmoid() * carried[n] + g for n, g in gradients.items()}
        if step.training:
            carried = {n: update.mean(0) for n, update in updates.items()}
        return updates, carried, task


@LAYOUTS
@pytest.mark.parametrize("second_order", [True, False])
def test_what_is_carried_leaves_an_iteration_without_its_graph(
    second_order: bool, layout: dict[str, Any]
) -> None:
    rule = Chain(mean=MeanOfUpdates(), sgd=SGD(0.1))
    ours = MetaLearner(linear(), rule, steps=2, second_order=second_order, **layout)
    meta, carried = ours.init()
    for iteration in range(3):
        step = ours.outer_step(meta, carried, tasks(2, iteration), iteration=iteration)
        gradients = torch.autograd.grad(step.objective.mean(), list(meta.values()))
        # Within an iteration it has one: the first update's share in the second learns μ.
        assert gradients[list(meta).index("mean.mu")] != 0
        assert not any(t.requires_grad for t in step.carried.values())
        carried = step.carried


@LAYOUTS
def test_the_losses_that_are_reported_are_detached_and_equal_the_objective(
    layout: dict[str, Any],
) -> None:
    ours = learner(Setting("maml++", "sharing", 2, 0.4, multi_step_iterations=10), **layout)
    step = ours.outer_step(*ours.init(), tasks(2, 1), iteration=3)
    assert step.objective.requires_grad
    assert not step.losses.requires_grad and not step.outputs.requires_grad
    assert torch.equal(step.objective, step.losses)


def test_another_layout_leaves_the_learner_as_it_is() -> None:
    ours = maml(linear(), steps=2, sharing=True)
    other = ours.laid_out(tasks_at_a_time=None, recompute=True)
    assert (ours.tasks_at_a_time, ours.recompute) == (1, False)
    meta, carried = ours.init()
    expected = ours.outer_step(meta, carried, tasks(3, 1), iteration=0).losses
    losses = other.outer_step(meta, carried, tasks(3, 1), iteration=0).losses
    assert torch.allclose(losses, expected, rtol=1e-12)
