"""What a meta-learner refuses when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

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
    LearnedRates,
    MetaSGD,
    OwnGradient,
    RateControl,
    SumOverTasks,
    Tensors,
    UpdateRule,
)
from gradshare.methods import MetaLearner, maml
from gradshare.methods.labels import require_classes
from gradshare.methods.multi_step_loss import MultiStepLoss
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
            "batch_norm 'inductve' is unknown; use 'transductive' or 'inductive'",
        ),
        ({"precision": "bf16"}, "precision 'bf16' is unknown; use 'float32' or 'bfloat16'"),
        ({"tasks_at_a_time": 0}, "tasks_at_a_time is 0; give a whole number, at least 1"),
        ({"steps": 0}, "steps is 0; give a whole number, at least 1"),
        ({"steps": 2.0}, "steps is 2.0; give a whole number, at least 1"),
        ({"second_order": "first"}, "second_order is 'first'; give True or False"),
        ({"recompute": None}, "recompute is None; give True or False"),
        ({"per_step_batch_norm": "no"}, "per_step_batch_norm is 'no'; give True or False"),
        (
            {"first_order_iterations": "10"},
            "first_order_iterations is '10'; give a whole number, at least 0",
        ),
        ({"loss": "mse"}, "loss is 'mse'; give a function, or an object that is called"),
        (
            {"loss": nn.MSELoss},
            "loss is <class 'torch.nn.modules.loss.MSELoss'>; give a function, or an object that "
            "is called",
        ),
        (
            {"adapts": ["weight"]},
            "adapts is ['weight']; give a function, or an object that is called",
        ),
        (
            {"inner_lr": "0.1"},
            "the inner learning rate is '0.1'; give a finite number, not below 0",
        ),
        ({"inner_lr": -0.1}, "the inner learning rate is -0.1; give a finite number, not below 0"),
        (
            {"inner_lr": math.nan},
            "the inner learning rate is nan; give a finite number, not below 0",
        ),
    ],
)
def test_a_value_that_an_option_does_not_take(options: dict[str, Any], message: str) -> None:
    assert refused(**options) == message


@pytest.mark.parametrize("rule", [GradientSharing, OwnGradient])
def test_a_norm_that_equation_1_does_not_have(rule: Any) -> None:
    with pytest.raises(ConfigError) as error:
        rule(5, norm="per_tensor")
    assert str(error.value) == "norm 'per_tensor' is unknown; use 'global' or 'per-tensor'"


@pytest.mark.parametrize("steps", [0, 2.0])
@pytest.mark.parametrize("rule", [GradientSharing, RateControl, LearnedRates, LSLR])
def test_a_rule_for_no_number_of_steps(rule: Any, steps: Any) -> None:
    with pytest.raises(ConfigError) as error:
        rule(steps, **({"lr": 0.1} if rule is LSLR else {}))
    assert str(error.value) == f"steps is {steps}; give a whole number, at least 1"


@pytest.mark.parametrize("rule", [SGD, MetaSGD, partial(LSLR, 5)])
@pytest.mark.parametrize("lr", [-0.1, math.inf])
def test_a_rate_that_climbs_or_is_infinite(rule: Any, lr: float) -> None:
    with pytest.raises(ConfigError) as error:
        rule(lr)
    assert str(error.value) == f"the inner learning rate is {lr}; give a finite number, not below 0"


@pytest.mark.parametrize("steps", [3, 10])
@pytest.mark.parametrize("rule", [GradientSharing, RateControl, OwnGradient, LearnedRates])
def test_a_rule_made_for_another_number_of_steps(rule: Any, steps: int) -> None:
    expected = (
        f"{rule.__name__} is made for {steps} inner steps, the learner takes 5; give both the same "
        "number"
    )
    assert refused(steps=5, sharing=rule(steps)) == expected


def test_a_rule_inside_another_made_for_another_number_of_steps() -> None:
    rule: UpdateRule = Held(GradientSharing(3), {"m": 1.0})
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


@pytest.mark.parametrize(("model", "kind"), [(nn.Linear, "class Linear"), ("conv4", "str")])
def test_what_is_no_model(model: Any, kind: str) -> None:
    with pytest.raises(ConfigError) as error:
        maml(model)
    assert str(error.value) == f"the model is a {kind}; give an object of a torch.nn.Module"


class Learns:
    """A rule that learns what it is made with."""

    def __init__(self, **learned: Tensor) -> None:
        self.learned = learned

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        return self.learned, {}

    def update(self, gradients: Tensors, *_: Any) -> tuple[Tensors, Tensors]:
        return gradients, {}


def test_a_rule_that_takes_the_models_name() -> None:
    """It would start the model anew at what the rule starts with."""
    rule = Chain(model=Learns(weight=torch.zeros(2, 2)), sgd=SGD(0.1))
    with pytest.raises(ConfigError) as error:
        MetaLearner(nn.Linear(2, 2), rule, steps=5).init()
    assert str(error.value) == (
        "a rule learns 'model.weight', and names that begin with 'model.' are the model's; give "
        "what it learns another one, as its name in a Chain"
    )


def test_what_a_rule_starts_with_may_require_gradients() -> None:
    start = nn.Parameter(torch.ones(3))
    learned, _ = MetaLearner(nn.Linear(2, 2), Learns(scale=start * 2), steps=5).init()
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in learned.values())
    torch.optim.Adam(learned.values())
    with torch.no_grad():
        learned["scale"].zero_()
    assert torch.equal(start, torch.ones(3))


@LAYOUTS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda y: y.int(),
            "the labels are torch.int32; give torch.int64 (labels.long())",
        ),
        (
            lambda y: y + 1,
            f"the labels go from 1 to {WAYS}, and the model has {WAYS} outputs; number the classes "
            f"from 0 to {WAYS - 1}",
        ),
        (
            lambda y: y - 1,
            f"the labels go from -1 to {WAYS - 2}, and the model has {WAYS} outputs; number the "
            f"classes from 0 to {WAYS - 1}",
        ),
        (
            lambda y: y[..., None],
            f"the labels of a task are (N, 1) for outputs (N, {WAYS}); give (N,)",
        ),
        (
            lambda y: y[:, :2],
            f"the labels of a task are (2,) for outputs (N, {WAYS}); give (N,)",
        ),
    ],
    ids=["int32", "from 1", "below 0", "a dimension more", "too few"],
)
@pytest.mark.parametrize("where", ["support_y", "query_y"])
def test_labels_that_are_none(
    where: str, change: Callable[[Tensor], Tensor], message: str, layout: dict[str, Any]
) -> None:
    batch = tasks(2, 1)
    labels = getattr(batch, where)
    wrong = dataclasses.replace(batch, **{where: change(labels)})
    ours = maml(linear(), **layout)
    with pytest.raises(DataError) as error:
        ours.outer_step(*ours.init(), wrong, iteration=0)
    assert str(error.value) == message.replace("N,", f"{labels.shape[1]},")


@pytest.mark.parametrize("shape", [(2, 7, 1), (2, 1), (2,)])
def test_cross_entropy_of_one_output(shape: tuple[int, ...]) -> None:
    """It would be 0 of whatever label."""
    with pytest.raises(DataError) as error:
        require_classes(torch.zeros(shape), torch.zeros(shape))
    assert str(error.value) == (
        f"the model's outputs for a task are {shape[1:]}, and cross entropy needs two classes or "
        "more; give a loss of its own to what is no classifier, such as loss=F.mse_loss"
    )


def test_the_values_of_labels_elsewhere_are_not_waited_for() -> None:
    """Which a tensor without values would not survive."""
    outputs = torch.zeros(2, 4, 5, device="meta")
    require_classes(outputs, torch.zeros(2, 4, dtype=torch.int64, device="meta"))


def test_no_label_at_all() -> None:
    with pytest.raises(DataError) as error:
        require_classes(torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.int64))
    assert str(error.value) == (
        "the tasks have no labels; give at least one image of each, and its label"
    )


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        ((2, 4, 5), torch.full((2, 4), 4)),
        ((2, 4, 5), torch.full((2, 4), 4, dtype=torch.uint8)),
        ((2, 4, 5), torch.full((2, 4), -100)),  # left out of the mean
        ((2, 4, 5), torch.full((2, 4, 5), 0.2)),  # probabilities
        ((2, 4, 5, 6), torch.full((2, 4, 6), 4)),  # one for each pixel
        ((2, 5), torch.full((2,), 4)),  # one for a whole set
    ],
)
def test_labels_that_cross_entropy_takes(outputs: tuple[int, ...], labels: Tensor) -> None:
    require_classes(torch.zeros(outputs), labels)
    for output, label in zip(torch.zeros(outputs), labels, strict=True):
        F.cross_entropy(output, label)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            maml(linear(), steps=5, sharing=GradientSharing(5)),
            "the outer parameter 'sharing.m' is of shape (5,), and this learner's of (3,); ",
        ),
        (
            maml(
                nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, 9)),
                steps=3,
                sharing=GradientSharing(3),
            ),
            "the outer parameter 'model.1.weight' is of shape (9, 512), and this learner's of "
            f"({WAYS}, 512); ",
        ),
    ],
    ids=["other steps", "a wider model"],
)
def test_outer_parameters_of_another_shape(other: MetaLearner, message: str) -> None:
    ours = maml(linear(), steps=3, sharing=GradientSharing(3))
    learned, _ = other.init()
    _, state = ours.init()
    for call in (
        lambda: ours.outer_step(learned, state, tasks(2, 1), iteration=0),
        lambda: ours.adapt(learned, state, tasks(2, 1)),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert str(error.value) == (
            f"{message}give what this learner's `init` or `outer_step` returned, or a checkpoint "
            "of the same method, rules and model"
        )


@pytest.mark.parametrize("name", ["sharing.m", "sharing.lambda"])
def test_a_gate_of_each_task_is_taken_and_no_other_shape(name: str) -> None:
    """The paper's task-conditioned variant."""
    ours = maml(linear(), steps=3, sharing=GradientSharing(3))
    learned, state = ours.init()
    gates = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    losses = ours.outer_step({**learned, name: gates}, state, tasks(2, 1), iteration=0).losses
    (gradient,) = torch.autograd.grad(losses.mean(), gates)
    assert bool(gradient.any()) == (name == "sharing.lambda")  # no ĝ yet, which m would weigh
    with pytest.raises(ConfigError, match=r"is of shape \(1, 2, 3\), and this learner's of \(3,\)"):
        ours.outer_step({**learned, name: gates[None]}, state, tasks(2, 1), iteration=0)


def test_a_loss_that_leaves_a_label_out() -> None:
    ours = maml(linear(), loss=nn.CrossEntropyLoss(ignore_index=-1))
    batch = tasks(2, 1)
    labels = batch.query_y.clone()
    labels[:, 0] = -1
    masked = dataclasses.replace(batch, query_y=labels)
    assert ours.outer_step(*ours.init(), masked, iteration=0).losses.isfinite().all()
    labels[:, 1] = WAYS
    with pytest.raises(DataError, match=f"the labels go from 0 to {WAYS}, and the model has "):
        ours.outer_step(*ours.init(), masked, iteration=0)


def test_a_model_that_vmap_does_not_bear() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(32, 8, batch_first=True)
            self.head = nn.Linear(8, WAYS)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.cell(x.flatten(1, 2))[0][:, -1])
            return outputs

    batch = tasks(2, 1, torch.float32)
    batch = dataclasses.replace(
        batch,
        support_x=batch.support_x.reshape(*batch.support_x.shape[:2], 4, 4, 32),
        query_x=batch.query_x.reshape(*batch.query_x.shape[:2], 4, 4, 32),
    )
    model = Recurrent()
    one_by_one = maml(model, steps=1)
    learned, state = one_by_one.init()
    assert one_by_one.outer_step(learned, state, batch, iteration=0).losses.isfinite().all()
    with pytest.raises(ConfigError) as error:
        maml(model, steps=1, tasks_at_a_time=None).outer_step(learned, state, batch, iteration=0)
    assert str(error.value).startswith("Recurrent cannot take several tasks at a time (")
    assert str(error.value).endswith("; make the learner with tasks_at_a_time=1")


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
    with pytest.raises(ConfigError) as error:
        maml(
            nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
            batch_norm="inductive",
        )
    assert str(error.value) == (
        "inductive batch norm needs Sequential.forward(x, support), where the support images "
        "supply the statistics; put them in front of x, pass their number to every "
        "gradshare.models.BatchNorm2d as `statistics_from` (see Conv4), or choose the transductive "
        "mode"
    )


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
        "task to task; build it with track_running_stats=False, or put it into evaluation mode"
        f"{remedy}"
    )


def test_a_pretrained_norm_in_evaluation_mode_keeps_what_it_has() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    backbone(torch.randn(8, 2, 16, 16))  # what it was trained on
    backbone.eval().requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(4 * 14 * 14, WAYS))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = tasks(3, 1, torch.float32)
    learner = maml(model, steps=2, inner_lr=0.1, batch_norm="inductive", tasks_at_a_time=None)
    assert learner.adapted == ("1.weight", "1.bias")
    learned, state = learner.init()
    losses = learner.outer_step(learned, state, batch, iteration=0).losses
    # The same as the head alone on the features that the frozen part makes.
    head = maml(nn.Sequential(nn.Flatten(), model[1]), steps=2, inner_lr=0.1)
    with torch.no_grad():
        features = [
            backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            for x in (batch.support_x, batch.query_x)
        ]
    alone = dataclasses.replace(batch, support_x=features[0], query_x=features[1])
    own, own_state = head.init()
    expected = head.outer_step(own, own_state, alone, iteration=0).losses
    assert torch.allclose(losses, expected, rtol=1e-5)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    model.train()
    with pytest.raises(ConfigError, match=r"BatchNorm2d '0\.1' of Sequential keeps running stat"):
        learner.outer_step(learned, state, batch, iteration=0)


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


def losses_and_gradients(
    learner: MetaLearner, chosen: Callable[[str], bool]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the second of two outer steps, with what is not chosen frozen."""
    learned, state = learner.init()
    state = learner.outer_step(learned, state, tasks(2, 1), iteration=0).state
    learned = {name: t if chosen(name) else t.detach() for name, t in learned.items()}
    losses = learner.outer_step(learned, state, tasks(2, 2), iteration=1).losses
    wanted = {name: t for name, t in learned.items() if t.requires_grad}
    gradients = torch.autograd.grad(losses.mean(), list(wanted.values()), allow_unused=True)
    return losses, {n: g for n, g in zip(wanted, gradients, strict=True) if g is not None}


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
    learned, state = ours.init()
    expected = ours.outer_step(learned, state, tasks(2, 1), iteration=0).losses
    if how != "no_grad":
        learned = {name: t.detach() for name, t in learned.items()}
    with torch.set_grad_enabled(how != "no_grad"):
        losses = ours.outer_step(learned, state, tasks(2, 1), iteration=0).losses
    assert torch.equal(losses, expected)
    assert not losses.requires_grad  # so that learning nothing is an error, and not silent


@LAYOUTS
@pytest.mark.parametrize("second_order", [True, False])
def test_inference_mode_is_named(second_order: bool, layout: dict[str, Any]) -> None:
    ours = maml(linear(), second_order=second_order, **layout)
    learned, state = ours.init()
    for call in (
        lambda: ours.outer_step(learned, state, tasks(2, 1), iteration=0),
        lambda: ours.adapt(learned, state, tasks(2, 1)),
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
def test_a_model_that_returns_no_tensor(
    wrap: Callable[[Tensor], Any], kind: str, tasks_at_a_time: int | None, layout: dict[str, Any]
) -> None:
    class Wrapped(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x.flatten(1)))

    model = Wrapped(2 * 16 * 16, WAYS).double()
    ours = maml(model, tasks_at_a_time=tasks_at_a_time, **layout)
    learned, state = ours.init()
    with pytest.raises(ConfigError) as error:
        ours.outer_step(learned, state, tasks(2, 1), iteration=0)
    assert str(error.value) == (
        f"Wrapped.forward must return one tensor, but returns a {kind}; wrap it in a module that "
        "returns its outputs alone"
    )


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (True, "True, which is no update rule: it has no `init` and `update`; give one, such as "),
        (0.5, "0.5, which is no update rule: it has no `init` and `update`; give one, such as "),
        (GradientSharing, "the class GradientSharing; give an object of it, "),
    ],
)
def test_what_is_no_rule(rule: Any, found: str) -> None:
    assert refused(sharing=rule).startswith(f"sharing is {found}GradientSharing(")
    for make in (
        lambda: MetaLearner(nn.Linear(2, 2), rule, steps=5),
        lambda: Held(rule, {"lambda": 0.5}),
    ):
        with pytest.raises(ConfigError) as error:
            make()
        assert str(error.value).startswith(f"rule is {found}GradientSharing(")


def test_a_chain_without_a_rule() -> None:
    with pytest.raises(ConfigError) as error:
        Chain(left_out=None)
    assert str(error.value) == "a chain has no rule; give one, such as sgd=SGD(0.1)"


def test_the_tensors_of_another_learner() -> None:
    with_sharing = learner(Setting("maml", "sharing", 2, 0.4))
    without = learner(Setting("maml", "none", 2, 0.4))
    remedy = (
        "; give what this learner's `init` or `outer_step` returned, or a checkpoint of the same "
        "method, rules and model"
    )
    (learned, state), (theta, _) = with_sharing.init(), without.init()
    short = {name: t for name, t in state.items() if "g_hat.1" not in name}
    for of_another, kept, message in (
        (theta, state, "the outer parameter 'sharing.m' is missing (2 of 16 are)"),
        (learned, {}, "the rules' state 'sharing.seen' is missing (13 of 13 are)"),
        (
            learned,
            short,
            "the rules' state 'sharing.g_hat.1.blocks.0.conv.weight' is missing (6 of 13 are)",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            with_sharing.adapt(of_another, kept, tasks(2, 1))
        assert str(error.value) == message + remedy
        with pytest.raises(ConfigError):
            with_sharing.outer_step(of_another, kept, tasks(2, 1), iteration=0)


def test_what_more_a_learner_is_given_than_it_has_is_the_callers_affair() -> None:
    ours = maml(linear())
    learned, state = ours.init()
    more = {**learned, "scale": torch.ones(())}
    other = {"sharing.seen": torch.ones(5, dtype=torch.bool)}
    expected = ours.outer_step(learned, state, tasks(2, 1), iteration=0).losses
    found = ours.outer_step(more, {**state, **other}, tasks(2, 1), iteration=0)
    assert torch.equal(found.losses, expected)
    assert found.state == other


class Momentum:
    """A rule as one would write it: what it keeps has its graph."""

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        like = next(iter(params.values()))
        return {"mu": like.new_zeros(())}, {n: torch.zeros_like(p) for n, p in params.items()}

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        updates = {n: learned["mu"].sigmoid() * state[n] + g for n, g in gradients.items()}
        if sum_over_tasks is None:
            return updates, state
        return updates, {n: update.mean(0) for n, update in updates.items()}


@LAYOUTS
@pytest.mark.parametrize("second_order", [True, False])
def test_a_rules_state_leaves_an_iteration_without_its_graph(
    second_order: bool, layout: dict[str, Any]
) -> None:
    rule = Chain(momentum=Momentum(), sgd=SGD(0.1))
    ours = MetaLearner(linear(), rule, steps=2, second_order=second_order, **layout)
    learned, state = ours.init()
    for iteration in range(3):
        step = ours.outer_step(learned, state, tasks(2, iteration), iteration=iteration)
        gradients = torch.autograd.grad(step.losses.mean(), list(learned.values()))
        # Within an iteration it has one: the first update's share in the second learns μ.
        assert gradients[list(learned).index("momentum.mu")] != 0
        assert not any(t.requires_grad for t in step.state.values())
        state = step.state
