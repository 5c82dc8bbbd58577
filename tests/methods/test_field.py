"""The field's other methods against their literal oracles, in float64: every meta-parameter, ĝ, and
the predictions of Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pad_sequence

from gradshare.errors import ConfigError, DataError
from gradshare.inner_loop import (
    ALFA,
    SGD,
    Adam,
    Chain,
    Momentum,
    Proximal,
    RMSprop,
    Tensors,
    UpdateRule,
)
from gradshare.methods import (
    Learner,
    MetaLearner,
    alfa,
    anil,
    boil,
    imaml,
    maml,
    maml_plus_plus,
    proto_maml,
    protonet,
    reptile,
    unicorn_maml,
)
from gradshare.models import freeze
from gradshare.tasks import TaskBatch
from gradshare.tasks.batch import PARTS
from tests import oracle_methods as oracle
from tests.methods.modules import assert_close, gradients
from tests.methods.test_networks import EVERY_LAYOUT
from tests.oracle_methods import BODY, HEAD, NORM, Setting
from tests.problems import oracle_g_hat, perturbed

TASKS, WAYS, STEPS, LR = 2, 3, 3, 0.3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, WAYS)
    ).double()


def tasks(seed: int, ways: int = WAYS) -> TaskBatch:
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(TASKS, ways, 6, generator=generator, dtype=torch.float64)

    def rows(each: int) -> Tensor:
        shape = (TASKS, each * ways, 6)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return kinds.repeat(1, each, 1) + noise

    y = torch.arange(ways).expand(TASKS, ways)
    return TaskBatch(rows(2), y.repeat(1, 2), rows(3), y.repeat(1, 3))


def as_batch(t: TaskBatch) -> oracle.Batch:
    return t.support_x, t.support_y, t.query_x, t.query_y


PLUS: dict[str, Any] = {"multi_step_iterations": 0, "per_step_batch_norm": False}
METHODS: dict[str, tuple[Callable[..., MetaLearner], dict[str, Any], Setting]] = {
    "ANIL": (anil, {}, Setting(adapts=HEAD)),
    "BOIL": (boil, {}, Setting(adapts=BODY)),
    "ALFA": (alfa, {}, Setting(rule="alfa")),
    "ProtoMAML": (proto_maml, {}, Setting(head="prototypes")),
    "momentum": (maml, {"rule": Momentum()}, Setting(rule="momentum")),
    "RMSprop": (maml, {"rule": RMSprop()}, Setting(rule="rmsprop", inner_lr=0.02)),
    "Adam": (maml, {"rule": Adam()}, Setting(rule="adam", inner_lr=0.05)),
    "Adam with learned rates": (
        maml_plus_plus,
        {"rule": Adam(), **PLUS},
        Setting(rule="adam", rates=True, inner_lr=0.05),
    ),
}


@EVERY_LAYOUT
@pytest.mark.parametrize("second_order", [True, False], ids=["second-order", "first-order"])
@pytest.mark.parametrize("sharing", [False, True], ids=["plain", "sharing"])
@pytest.mark.parametrize("name", METHODS)
def test_each_method_equals_its_oracle(
    name: str, sharing: bool, second_order: bool, layout: dict[str, Any]
) -> None:
    method, options, s = METHODS[name]
    s = replace(s, sharing=sharing, second_order=second_order)
    learner = method(
        model(),
        steps=STEPS,
        inner_lr=s.inner_lr,
        sharing=sharing,
        second_order=second_order,
        **options,
        **layout,
    )
    meta, carried = learner.init()
    meta = perturbed(meta)
    g_hat = None
    for seed in (1, 2):
        batch = tasks(seed)
        step = learner.outer_step(meta, carried, batch, iteration=0)
        losses, g_hat = oracle.outer_losses(dict(meta), g_hat, as_batch(batch), s)
        assert_close("losses", step.losses, losses)
        theirs = gradients(losses.mean(), meta)
        for parameter, gradient in gradients(step.objective.mean(), meta).items():
            assert_close(parameter, gradient, theirs[parameter])
        carried = step.carried
        for ours, other in zip(oracle_g_hat(carried, STEPS) or [], g_hat, strict=True):
            for parameter, tensor in other.items():
                assert_close(f"ĝ of {parameter}", ours[parameter], tensor)
        g_hat = g_hat or None
    batch = tasks(3)
    outputs = learner.predict(meta, learner.adapt(meta, carried, batch), batch)
    for mine, expected in zip(
        outputs, oracle.test_logits(dict(meta), g_hat, as_batch(batch), s), strict=True
    ):
        assert_close("outputs", mine, expected)


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_of_each_oracle_is_that_of_its_finite_differences(name: str) -> None:
    method, options, s = METHODS[name]
    meta = perturbed(method(model(), steps=STEPS, inner_lr=s.inner_lr, **options).init()[0])
    torch.manual_seed(1)
    direction = {parameter: torch.randn_like(t) for parameter, t in meta.items()}

    def mean_loss(shift: float) -> Tensor:
        shifted = {n: (t + shift * direction[n]).detach().requires_grad_() for n, t in meta.items()}
        return oracle.outer_losses(shifted, None, as_batch(tasks(1)), s)[0].mean()

    found = gradients(oracle.outer_losses(dict(meta), None, as_batch(tasks(1)), s)[0].mean(), meta)
    slope = (mean_loss(1e-6) - mean_loss(-1e-6)) / 2e-6
    expected = torch.stack([(found[n] * d).sum() for n, d in direction.items()]).sum()
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=2e-8)


@EVERY_LAYOUT
@pytest.mark.parametrize("frozen", [BODY, HEAD], ids=["body", "head"])
def test_frozen_parameters_are_neither_adapted_nor_learned(
    frozen: tuple[str, ...], layout: dict[str, Any]
) -> None:
    network = model()
    freeze(network, [frozen[0].partition(".")[0]])
    learner = laid_out(maml(network, steps=STEPS, inner_lr=LR, sharing=True), layout)
    meta, carried = learner.init()
    assert {f"model.{name}" for name in frozen}.isdisjoint(meta)
    meta = perturbed(meta)
    kept = {f"model.{n}": p.detach() for n, p in network.named_parameters() if n in frozen}
    adapts = tuple(name for name in BODY + HEAD if name not in frozen)
    s, g_hat = Setting(adapts=adapts, sharing=True), None
    for seed in (1, 2):
        batch = tasks(seed)
        step = learner.outer_step(meta, carried, batch, iteration=0)
        losses, g_hat = oracle.outer_losses({**meta, **kept}, g_hat, as_batch(batch), s)
        assert_close("losses", step.losses, losses)
        theirs = gradients(losses.mean(), meta)
        for parameter, gradient in gradients(step.objective.mean(), meta).items():
            assert_close(parameter, gradient, theirs[parameter])
        carried = step.carried


def laid_out(learner: MetaLearner, layout: dict[str, Any]) -> MetaLearner:
    return learner.laid_out(**{"tasks_at_a_time": 1, "recompute": False, **layout})


def require_gradients(learner: Learner, batch: TaskBatch, theirs: oracle.Tree) -> None:
    meta = perturbed(learner.init()[0])
    step = learner.outer_step(meta, {}, batch, iteration=0)
    ours = gradients(step.objective.mean(), meta)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert_close(name, ours[name], gradient)


@EVERY_LAYOUT
def test_reptile_gives_the_outer_optimiser_the_papers_gradient(layout: dict[str, Any]) -> None:
    learner = laid_out(reptile(model(), steps=STEPS, inner_lr=LR), layout)
    meta = perturbed(learner.init()[0])
    s = Setting(adapts=BODY + NORM + HEAD)
    require_gradients(learner, tasks(1), oracle.reptile_gradient(dict(meta), as_batch(tasks(1)), s))


@EVERY_LAYOUT
def test_a_prototypical_network_equals_its_oracle(layout: dict[str, Any]) -> None:
    learner = laid_out(protonet(model()), layout)
    meta = perturbed(learner.init()[0])
    assert not any(name.endswith(HEAD) for name in meta)
    batch = tasks(1)
    losses = oracle.prototypical_losses(dict(meta), as_batch(batch))
    assert_close("losses", learner.outer_step(meta, {}, batch, iteration=0).losses, losses)
    require_gradients(learner, batch, gradients(losses.mean(), meta))


STRENGTH = 2.0


@EVERY_LAYOUT
@pytest.mark.parametrize("damping", [0.0, 3.0])
def test_imaml_equals_the_implicit_formula_solved_with_the_whole_hessian(
    damping: float, layout: dict[str, Any]
) -> None:
    learner = laid_out(implicit(steps=STEPS, damping=damping), layout)
    meta = perturbed(learner.init()[0])
    expected = oracle.implicit_gradient(
        dict(meta), as_batch(tasks(1)), STRENGTH, damping, Setting(inner_lr=LR)
    )
    require_gradients(learner, tasks(1), expected)


def implicit(steps: int, **options: Any) -> MetaLearner:
    given: dict[str, Any] = {"inner_lr": LR, "strength": STRENGTH, "damping": 0.0, "cg_steps": 60}
    return imaml(model(), steps=steps, **(given | options))


def test_imaml_with_a_large_damping_has_the_gradient_of_first_order_maml() -> None:
    implicit_one = implicit(steps=STEPS, damping=1e12)
    chain = Chain(proximal=Proximal(STRENGTH), sgd=SGD(LR))
    first_order = MetaLearner(model(), chain, steps=STEPS, second_order=False)
    meta = perturbed(first_order.init()[0])
    step = first_order.outer_step(meta, {}, tasks(1), iteration=0)
    require_gradients(implicit_one, tasks(1), gradients(step.objective.mean(), meta))


def test_imamls_gradient_is_that_of_the_inner_minimum_by_finite_differences() -> None:
    # With so strong a pull to the start, 60 steps reach the minimum.
    learner, batch = implicit(steps=60, inner_lr=0.1, strength=5.0), tasks(1)
    meta = perturbed(learner.init()[0])
    step = learner.outer_step(meta, {}, batch, iteration=0)
    found = gradients(step.objective.mean(), meta)

    def mean_loss(changed: Tensors) -> Tensor:
        outputs = learner.predict(changed, learner.adapt(changed, {}, batch), batch)
        return learner.losses(outputs, batch.query_y).mean()

    # Those that the inner loop adapts, and those that it does not.
    for names in (BODY + HEAD, NORM):
        torch.manual_seed(1)
        way = {f"model.{n}": torch.randn_like(meta[f"model.{n}"]) for n in names}
        h = 1e-5
        ahead, behind = (
            mean_loss({n: (t + s * h * way.get(n, 0.0)).detach() for n, t in meta.items()})
            for s in (1, -1)
        )
        expected = torch.stack([(found[n] * d).sum() for n, d in way.items()]).sum()
        torch.testing.assert_close((ahead - behind) / (2 * h), expected, rtol=1e-6, atol=1e-9)


def test_few_conjugate_gradients_are_an_approximation() -> None:
    few = implicit(steps=STEPS, cg_steps=2)
    meta = perturbed(few.init()[0])
    many = implicit(steps=STEPS)
    ours, theirs = (
        gradients(learner.outer_step(meta, {}, tasks(1), iteration=0).objective.mean(), meta)
        for learner in (few, many)
    )
    for name, gradient in theirs.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert 1e-9 < error < 0.2, name


@pytest.mark.parametrize("rule", [Momentum(), RMSprop(), Adam()], ids=lambda r: type(r).__name__)
def test_an_inner_optimiser_takes_the_steps_of_torchs_own(rule: UpdateRule) -> None:
    theirs: dict[str, Any] = {
        "Momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    }
    batch, network = tasks(1)[:1], model()
    learner = maml(network, rule=rule, inner_lr=0.05, steps=2, adapts=lambda _: True)
    # More steps than in training, of which each counts for Adam's bias correction.
    adapted = learner.adapt(*learner.init(), batch, steps=6)
    optimizer = theirs[type(rule).__name__](network.parameters())
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(network(batch.support_x[0]), batch.support_y[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert_close(name, adapted.params[name][0], parameter)


ANY_WAYS: dict[str, Callable[..., MetaLearner]] = {
    "UNICORN-MAML": unicorn_maml,
    "ProtoMAML": proto_maml,
    "ProtoNet": protonet,
}


def test_alfa_without_weight_decay_starts_as_maml() -> None:
    generated = MetaLearner(model(), Chain(alfa=ALFA(LR, weight_decay=0.0)), steps=STEPS)
    first, second = (
        learner.outer_step(*learner.init(), tasks(1), iteration=0).losses
        for learner in (generated, maml(model(), steps=STEPS, inner_lr=LR))
    )
    assert_close("losses", first, second)


@pytest.mark.parametrize("method", ANY_WAYS.values(), ids=ANY_WAYS)
def test_one_trained_model_serves_any_number_of_ways(method: Callable[..., MetaLearner]) -> None:
    learner = method(model())
    meta, carried = learner.init()
    for ways in (2, 3, 7):
        batch = tasks(1, ways)
        outputs = learner.predict(meta, learner.adapt(meta, carried, batch), batch)
        assert outputs.shape == (TASKS, 3 * ways, ways)


@pytest.mark.parametrize("method", ANY_WAYS.values(), ids=ANY_WAYS)
@pytest.mark.parametrize("sharing", [False, True], ids=["plain", "sharing"])
def test_tasks_of_unequal_size_are_computed_as_each_by_itself(
    method: Callable[..., MetaLearner], sharing: bool
) -> None:
    options: dict[str, Any] = {} if method is protonet else {"sharing": sharing}
    learner = method(model(), **options)
    meta, carried = learner.init()
    small, large = tasks(1, ways=2)[:1], tasks(2, ways=4)[:1]
    parts = zip(as_batch(small), as_batch(large), strict=True)
    x, y, query_x, query_y = (pad_sequence([a[0], b[0]], batch_first=True) for a, b in parts)
    both = TaskBatch(x, y, query_x, query_y, support_n=[4, 8], query_n=[6, 12])
    outputs = learner.predict(meta, learner.adapt(meta, carried, both), both)
    for t, alone in enumerate((small, large)):
        expected = learner.predict(meta, learner.adapt(meta, carried, alone), alone)[0]
        n, ways = expected.shape
        assert_close("probabilities", outputs[t, :n].softmax(1)[:, :ways], expected.softmax(1))
    step = learner.outer_step(meta, carried, both, iteration=0)
    assert all(g.isfinite().all() for g in gradients(step.objective.mean(), meta).values())
    if not sharing:
        alone_steps = [learner.outer_step(meta, {}, t, iteration=0) for t in (small, large)]
        assert_close("losses", step.losses, torch.cat([s.losses for s in alone_steps]))
        apart = learner.laid_out(tasks_at_a_time=1, recompute=False, separate=True)
        outputs = apart.outer_step(meta, carried, both, iteration=0).outputs
        for task, size in enumerate([6, 12]):  # the other rows are padding
            ours, theirs = (y[task, :size].softmax(1) for y in (outputs, step.outputs))
            assert_close("outputs", ours, theirs)


def test_reptile_adapts_to_the_queries_of_tasks_of_unequal_size() -> None:
    learner = reptile(model(), steps=STEPS, inner_lr=LR)
    meta = perturbed(learner.init()[0])
    cut = replace(tasks(1), support_n=[4, 6], query_n=[9, 7])
    step = learner.outer_step(meta, {}, cut, iteration=0)
    s = Setting(adapts=BODY + NORM + HEAD)
    x, y, query_x, query_y = (getattr(cut, part) for part in PARTS)
    expected = []
    for t, (n, q) in enumerate([(4, 9), (6, 7)]):
        one = slice(t, t + 1)
        real = (x[one, :n], y[one, :n], query_x[one, :q], query_y[one, :q])
        expected.append(oracle.reptile_gradient(dict(meta), real, s))
    for name, gradient in gradients(step.objective.mean(), meta).items():
        assert_close(name, gradient, (expected[0][name] + expected[1][name]) / 2)


def test_reptile_joins_named_inputs_by_their_names() -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, WAYS).double()

        def forward(self, plus: Tensor, minus: Tensor) -> Tensor:
            return self.linear(plus - minus)  # type: ignore[no-any-return]

    batch = tasks(1)
    x, query_x = batch.support_x, batch.query_x
    named = replace(
        batch,
        support_x={"plus": x, "minus": torch.zeros_like(x)},
        query_x={"minus": torch.zeros_like(query_x), "plus": query_x},
    )
    learner = reptile(Difference(), steps=STEPS, inner_lr=LR)
    meta, _ = learner.init()
    plain = replace(named, query_x={"plus": query_x, "minus": torch.zeros_like(query_x)})
    found, expected = (learner.outer_step(meta, {}, b, iteration=0) for b in (named, plain))
    assert_close("objective", found.objective, expected.objective)


def test_a_model_without_a_linear_head_is_refused() -> None:
    convolution = nn.Sequential(nn.Conv1d(6, 3, 1))
    for method in (anil, boil, proto_maml, protonet):
        with pytest.raises(ConfigError, match=r"the head None is not a linear layer; name one of"):
            method(convolution)
        with pytest.raises(ConfigError, match=r"the head '2' is not a linear layer; name one of"):
            method(model(), head="2")


@pytest.mark.parametrize("method", [anil, proto_maml, protonet, unicorn_maml])
def test_a_head_whose_weight_is_computed_is_refused(method: Callable[..., MetaLearner]) -> None:
    normed = nn.Sequential(nn.Linear(6, 5), weight_norm(nn.Linear(5, WAYS)))
    with pytest.raises(ConfigError, match=r"the head has the parameters .* as by weight norm; use"):
        method(normed)


@pytest.mark.parametrize("method", ANY_WAYS.values(), ids=ANY_WAYS)
def test_targets_that_are_no_classes_are_refused(method: Callable[..., MetaLearner]) -> None:
    learner = method(model())
    values = torch.zeros(TASKS, 2 * WAYS, 1)
    for targets, found in ((values, r"torch.float32 \(2, 6, 1\)"), ({"value": values}, "a tree")):
        batch = replace(tasks(1), support_y=targets)
        with pytest.raises(DataError, match=f"support_y is {found}, and a head with one row for"):
            learner.outer_step(*learner.init(), batch, iteration=0)


@pytest.mark.parametrize("method", ANY_WAYS.values(), ids=ANY_WAYS)
def test_tasks_whose_labels_are_all_ignored_are_refused(method: Callable[..., MetaLearner]) -> None:
    learner = method(model())
    batch = replace(tasks(1), support_y=torch.full((TASKS, 2 * WAYS), -100))
    with pytest.raises(DataError, match="all support labels of task 1 are -100, which cross entr"):
        learner.outer_step(*learner.init(), batch, iteration=0)


def test_a_head_without_a_bias_has_no_place_for_a_prototype() -> None:
    for method in (proto_maml, protonet):
        with pytest.raises(ConfigError, match=r"the head of 'weight' has no bias .* bias=True"):
            method(nn.Linear(6, 3, bias=False))


def test_a_head_that_the_model_does_not_use_is_refused() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, WAYS)
            self.unused = nn.Linear(6, WAYS)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(x)
            return y

    learner = proto_maml(TwoHeads().double())
    with pytest.raises(ConfigError, match="TwoHeads does not use its layer 'unused'; name its hea"):
        learner.outer_step(*learner.init(), tasks(1), iteration=0)
    named = proto_maml(TwoHeads().double(), head="head")
    assert named.outer_step(*named.init(), tasks(1), iteration=0).outputs.shape[-1] == WAYS


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (reptile, {"inner_lr": 0.0}, "inner_lr is 0, and Reptile's gradient is divided by it"),
        (imaml, {"strength": 0.0}, "strength is 0.0; give a finite number above 0"),
        (imaml, {"strength": -1.0}, "strength is -1.0; give a finite number above 0"),
        (imaml, {"damping": -1.0}, "damping is -1.0; give a finite number, at least 0"),
        (imaml, {"strength": 4.0, "inner_lr": 0.5}, "inner_lr 0.5 times strength 4.0 is 2 or more"),
    ],
)
def test_a_rate_or_strength_with_which_there_is_no_gradient_is_refused(
    method: Callable[..., MetaLearner], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        method(model(), **options)


def test_anils_body_sees_the_support_set_once_whatever_the_number_of_steps() -> None:
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x

    learner = anil(nn.Sequential(Counting(), model()), steps=7)
    meta, carried = learner.init()
    learner.outer_step(meta, carried, tasks(1), iteration=0)  # looks where the head is
    seen.clear()
    learner.outer_step(meta, carried, tasks(1), iteration=0)
    assert seen == [2 * WAYS] * TASKS + [3 * WAYS] * TASKS


def test_anil_refuses_what_its_head_does_not_decide() -> None:
    learner = anil(nn.Sequential(model(), nn.LogSoftmax(1)))
    with pytest.raises(
        ConfigError, match=r"Sequential changes the outputs of its head '0.3.weight'"
    ):
        learner.outer_step(*learner.init(), tasks(1), iteration=0)
    with pytest.raises(ConfigError, match="ANIL's body sees the support set once; leave it out"):
        anil(model(), per_step_batch_norm=True)


def test_boil_needs_a_body() -> None:
    with pytest.raises(ConfigError, match="has no parameters to adapt"):
        boil(nn.Linear(6, 3))
