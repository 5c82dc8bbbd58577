"""Modules of every kind as networks: the meta-gradient against a literal loop, and the user's
module left bit for bit as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError
from gradshare.methods import MetaLearner, anil, maml, proto_maml, protonet
from gradshare.methods.network import _say_once
from gradshare.tasks import TaskBatch
from tests.methods.modules import (
    DROPOUT,
    KINDS,
    LR,
    STEPS,
    WAYS,
    Counting,
    assert_close,
    batch,
    batch_norm_2d,
    gradients,
    literal_adapt,
    literal_forward,
    literal_outer_loss,
    made,
    plain_rnn,
    snapshot,
)

# Of vmap, for weight norm and for fused attention in query passes.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

LAYOUTS: dict[str, dict[str, Any]] = {
    "loop": {},
    "vmap": {"tasks_at_a_time": None},
    "recompute": {"recompute": True},
    "recompute, vmap": {"recompute": True, "tasks_at_a_time": None},
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@EVERY_LAYOUT
@EVERY_KIND
def test_the_meta_gradient_equals_the_literal_loops_and_the_module_is_left_alone(
    kind: Callable[[], nn.Module], layout: dict[str, Any]
) -> None:
    model = made(kind)
    before = snapshot(model)
    learner = maml(model, steps=STEPS, inner_lr=LR, **layout)
    meta, carried = learner.init()
    assert set(meta) == {f"model.{n}" for n, p in model.named_parameters() if p.requires_grad}
    for seed in (1, 2):
        tasks = batch(seed=seed)
        objective = learner.outer_step(meta, carried, tasks, iteration=0).objective.mean()
        expected = literal_outer_loss(kind, meta, tasks)
        assert_close("objective", objective, expected)
        theirs = gradients(expected, meta)
        for name, gradient in gradients(objective, meta).items():
            assert_close(name, gradient, theirs[name])
    with torch.no_grad():
        learner.predict(meta, learner.adapt(meta, carried, tasks), tasks)
    assert snapshot(model) == before


class Stop(Exception):  # noqa: N818
    """What a module or loss of the user's raises."""


@EVERY_LAYOUT
@EVERY_KIND
def test_a_call_that_raises_leaves_the_module_and_the_learner_as_they_were(
    kind: Callable[[], nn.Module], layout: dict[str, Any]
) -> None:
    calls_left = 10**6

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls_left
        calls_left -= 1
        if calls_left < 0:
            raise Stop
        return F.cross_entropy(outputs, targets)

    model = made(kind)
    before = snapshot(model)
    learner = maml(model, steps=STEPS, loss=loss, **layout)
    meta, carried = learner.init()
    expected = learner.outer_step(meta, carried, batch(), iteration=0).losses
    calls: list[Callable[[], Any]] = [
        lambda: learner.outer_step(meta, carried, batch(), iteration=0),
        lambda: learner.adapt(meta, carried, batch()),
    ]
    for call in calls:
        for stop_after in (0, 1):  # under vmap one call is for all tasks
            calls_left = stop_after
            with pytest.raises(Stop):
                call()
            assert snapshot(model) == before
    calls_left = 10**6
    assert torch.equal(learner.outer_step(meta, carried, batch(), iteration=0).losses, expected)


@EVERY_LAYOUT
def test_a_forward_pass_that_raises_half_way_leaves_nothing_behind(layout: dict[str, Any]) -> None:
    failing = False

    def change(module: Counting, x: Tensor) -> None:
        module.count += 1
        if failing:
            raise Stop

    model = Counting(change).double()
    before = snapshot(model)
    learner = maml(model, steps=STEPS, **layout)
    meta, carried = learner.init()
    expected = learner.outer_step(meta, carried, batch(), iteration=0).losses
    failing = True
    with pytest.raises(Stop):
        learner.outer_step(meta, carried, batch(), iteration=0)
    failing = False
    assert torch.equal(learner.outer_step(meta, carried, batch(), iteration=0).losses, expected)
    assert snapshot(model) == before


def test_what_vmap_can_not_take_is_computed_by_the_loop_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner = maml(made(plain_rnn), tasks_at_a_time=None)
    meta, carried = learner.init()
    for _ in range(2):
        learner.outer_step(meta, carried, batch(), iteration=0)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(  # and only once
        "Sequence can't be computed for all tasks at once; they are computed one after the other "
        "(torch.vmap: "
    )


def test_an_error_of_the_module_itself_is_raised_and_not_taken_for_one_of_vmap() -> None:
    learner = maml(nn.Linear(5, WAYS).double(), tasks_at_a_time=None)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.outer_step(*learner.init(), batch(), iteration=0)


def test_a_layer_with_running_statistics_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    _say_once.cache_clear()
    for _ in range(2):
        maml(made(batch_norm_2d))
    words = "layer '2' of Sequential has running statistics; those of the batch are used instead"
    assert caplog.text.count(words) == 1


def evaluated(learner: MetaLearner) -> Tensor:
    meta, carried = learner.init()
    return learner.predict(meta, learner.adapt(meta, carried, batch()), batch())


@pytest.mark.parametrize("layout", [LAYOUTS["loop"], LAYOUTS["vmap"]], ids=["loop", "vmap"])
@pytest.mark.parametrize("kind", DROPOUT, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("grad_enabled", [True, False])
def test_evaluation_has_dropout_off(
    grad_enabled: bool, kind: Callable[[], nn.Module], layout: dict[str, Any]
) -> None:
    def without_dropout() -> nn.Module:
        return kind().eval()

    model = made(kind)
    learner = maml(model, steps=STEPS, inner_lr=LR, **layout)
    with torch.set_grad_enabled(grad_enabled):
        outputs = evaluated(learner)
    tasks, theta = batch(), {n.removeprefix("model."): t for n, t in learner.init()[0].items()}
    for t, found in enumerate(outputs):
        adapted = literal_adapt(
            without_dropout, theta, {}, tasks.support_x[t], tasks.support_y[t], STEPS
        )
        assert_close("outputs", found, literal_forward(without_dropout, adapted, tasks.query_x[t]))
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("kind", DROPOUT, ids=lambda kind: kind.__name__)
@EVERY_LAYOUT
def test_an_outer_step_has_dropout_on_in_training_mode_and_off_in_evaluation_mode(
    layout: dict[str, Any], kind: Callable[[], nn.Module]
) -> None:
    for model, varies in ((made(kind), True), (made(kind).eval(), False)):
        learner = maml(model, steps=STEPS, **layout)
        meta, carried = learner.init()
        # The same task twice, since each task draws its own dropout.
        one = batch(1)
        tasks = one.map(lambda t: t.expand(2, *t.shape[1:]))
        losses = [
            learner.outer_step(meta, carried, tasks, iteration=0).losses.tolist() for _ in range(2)
        ]
        assert len({f"{loss:.9f}" for pair in losses for loss in pair}) == (4 if varies else 1)


@pytest.mark.parametrize("kind", DROPOUT, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("tasks_at_a_time", [1, None])
def test_recomputed_passes_have_the_dropout_of_the_first(
    tasks_at_a_time: int | None, kind: Callable[[], nn.Module]
) -> None:
    found = []
    for recompute in (False, True):
        learner = maml(
            made(kind), steps=STEPS, tasks_at_a_time=tasks_at_a_time, recompute=recompute
        )
        meta, carried = learner.init()
        torch.manual_seed(1)
        step = learner.outer_step(meta, carried, batch(), iteration=0)
        found.append(gradients(step.objective.mean(), meta))
    for name, gradient in found[0].items():
        assert_close(name, found[1][name], gradient)


class WithGenerator(nn.Linear):
    """A module that copy.deepcopy can't copy."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.numbers = (number for number in range(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear, "the model is a class Linear; give an object of a torch.nn.Module"),
        (lambda: "conv4", "the model is a str; give an object of a torch.nn.Module"),
        (
            lambda: nn.DataParallel(nn.Linear(2, 2)),
            "the model is a DataParallel; give the module inside it: model.module",
        ),
        (
            lambda: nn.Sequential(nn.LazyLinear(3)),
            "0.weight of Sequential has no shape yet; call the model once on an example input",
        ),
        (
            torch.jit.ScriptModule,
            "the model is a ScriptModule, compiled by TorchScript; give the module itself",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")),
            "1.weight of Sequential has no values; make the model on another device",
        ),
        (
            lambda: nn.Sequential(nn.Embedding(3, 2, sparse=True)),
            "0 of Sequential has sparse gradients, which cannot be differentiated; make it with "
            "sparse=False",
        ),
        (
            WithGenerator,
            "WithGenerator can't be copied (cannot pickle 'generator' object); make it a module "
            "that copy.deepcopy accepts",
        ),
    ],
)
def test_a_model_that_can_not_be_used_is_refused_with_the_remedy(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        maml(make())
    assert str(error.value) == message


@pytest.mark.parametrize("method", [maml, proto_maml, protonet, anil])
def test_weights_that_are_loaded_after_the_learner_was_made_count(
    method: Callable[..., MetaLearner],
) -> None:
    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        norm = nn.BatchNorm1d(4).eval()
        norm.running_mean = torch.randn(4)
        return nn.Sequential(nn.Linear(6, 4).requires_grad_(False), norm, nn.Linear(4, 3))

    changed = model(0)
    learner = method(changed)
    changed.load_state_dict(model(1).state_dict())
    y = torch.arange(3).repeat(2, 2)
    batch = TaskBatch(torch.randn(2, 6, 6), y, torch.randn(2, 6, 6), y)
    losses = [
        learner.outer_step(*learner.init(), batch, iteration=0).losses
        for learner in (learner, method(model(1)))
    ]
    assert torch.equal(*losses)
