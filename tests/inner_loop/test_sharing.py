"""Gradient sharing as a rule: its special cases and its invariances."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from gradshare.inner_loop import (
    LSLR,
    SGD,
    Chain,
    DetachedSharing,
    GradientSharing,
    Held,
    LearnedRates,
    MetaSGD,
    OwnGradient,
    RateControl,
    Step,
    Tensors,
    UnnormalizedSharing,
    UpdateRule,
    sum_over_local_tasks,
)
from gradshare.inner_loop.sharing import normalized
from gradshare.methods import maml
from gradshare.tasks import TaskBatch

STEPS = 3


def gradients(seed: int, tasks: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(tasks, 3, 2, generator=generator, dtype=torch.float64),
        "bias": torch.randn(tasks, 3, generator=generator, dtype=torch.float64),
    }


def like() -> dict[str, Tensor]:
    return {name: g[0] for name, g in gradients(0).items()}


def update(
    rule: UpdateRule,
    own: Tensors,
    meta: Tensors,
    carried: Tensors,
    k: int,
    *,
    training: bool = True,
) -> tuple[Tensors, Tensors]:
    """The updates and what is carried after step k."""
    losses = torch.zeros(len(own["bias"]))
    step = Step(k, own, own, losses, sum_over_local_tasks if training else None)
    updates, carried, _ = rule.update(own, meta, carried, rule.start(own), step)
    return updates, carried


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def with_values(meta: Tensors, **values: float) -> dict[str, Tensor]:
    return {
        name: torch.full_like(tensor, values.get(name, 0.0)).requires_grad_()
        for name, tensor in meta.items()
    }


def norm(tree: Tensors) -> Tensor:
    return torch.stack([t.square().sum() for t in tree.values()]).sum().sqrt()


def test_at_first_g_hat_is_the_normalised_sum_and_m_has_gradient_zero_not_none() -> None:
    rule = GradientSharing()
    meta, carried = rule.init(like(), STEPS)
    meta = with_values(meta)
    own = gradients(1)
    deltas, new = update(rule, own, meta, carried, 1)
    total = {name: g.sum(0) for name, g in own.items()}
    for name in own:
        g_1 = total[name] / norm(total)
        assert torch.allclose(new[f"g_hat.1.{name}"], g_1, rtol=1e-12)
        assert torch.allclose(deltas[name], 0.5 * g_1 + 0.5 * own[name], rtol=1e-12)
    (grad,) = torch.autograd.grad(deltas["weight"].sum(), [meta["m"]])
    assert torch.equal(grad, torch.zeros(STEPS, dtype=torch.float64))
    assert new["seen"].tolist() == [False, True, False]


def test_the_carried_tensors_given_are_not_changed() -> None:
    rule = GradientSharing()
    meta, carried = rule.init(like(), STEPS)
    before = {name: tensor.clone() for name, tensor in carried.items()}
    update(rule, gradients(1), meta, carried, 0)
    assert all(torch.equal(before[name], carried[name]) for name in carried)


def test_a_closed_gate_is_the_original() -> None:
    rule = GradientSharing()
    meta, carried = rule.init(like(), STEPS)
    meta = with_values(meta, **{"lambda": -1e9})
    own = gradients(1)
    deltas, _ = update(rule, own, meta, carried, 0)
    assert all(torch.equal(deltas[name], own[name]) for name in own)


def test_an_open_gate_gives_every_task_the_same_update() -> None:
    rule = GradientSharing()
    meta, carried = rule.init(like(), STEPS)
    meta = with_values(meta, **{"lambda": 1e9})
    deltas, _ = update(rule, gradients(1), meta, carried, 0)
    for delta in deltas.values():
        assert torch.allclose(delta, delta[:1].expand_as(delta), rtol=1e-12)
    assert norm({name: d[0] for name, d in deltas.items()}).item() == pytest.approx(1)


def test_before_any_training_testing_uses_the_tasks_own_gradient() -> None:
    rule = GradientSharing()
    meta, carried = rule.init(like(), STEPS)
    own = gradients(1)
    deltas, same = update(rule, own, meta, carried, 0, training=False)
    assert all(torch.equal(deltas[name], own[name]) for name in own)
    assert same is carried


def test_testing_uses_the_stored_g_hat_and_no_other_task() -> None:
    rule = GradientSharing()
    meta, carried = rule.init(like(), STEPS)
    _, carried = update(rule, gradients(1), meta, carried, 0)
    own = gradients(2)
    together, _ = update(rule, own, meta, carried, 0, training=False)
    alone, _ = update(rule, {n: g[2:3] for n, g in own.items()}, meta, carried, 0, training=False)
    for name in own:
        assert torch.equal(together[name][2], alone[name][0])
        expected = 0.5 * carried[f"g_hat.0.{name}"] + 0.5 * own[name]
        assert torch.allclose(together[name], expected, rtol=1e-12)


def test_history_is_constant_and_the_present_is_not() -> None:
    rule = GradientSharing()
    meta, carried = rule.init(like(), STEPS)
    first = {n: g.requires_grad_() for n, g in gradients(1).items()}
    _, carried = update(rule, first, meta, carried, 0)
    assert not any(tensor.requires_grad for tensor in carried.values())
    second = {n: g.requires_grad_() for n, g in gradients(2).items()}
    deltas, _ = update(rule, second, meta, carried, 0)
    # Task 0's update depends on task 3's gradient, through g_k and its norm.
    (grad,) = torch.autograd.grad(deltas["weight"][0].sum(), [second["bias"]])
    assert grad[3].abs().sum() > 0


def test_rate_control_is_sharing_with_g_hat_zero() -> None:
    meta, carried = RateControl().init(like(), STEPS)
    assert list(meta) == ["lambda"]
    meta = with_values(meta, **{"lambda": logit(0.25)})
    own = gradients(1)
    deltas, same = update(RateControl(), own, meta, carried, 2)
    assert same == {}
    for name in own:
        assert torch.allclose(deltas[name], 0.75 * own[name], rtol=1e-12)


def test_the_order_of_the_tasks_does_not_matter() -> None:
    rule = GradientSharing()
    meta, carried = rule.init(like(), STEPS)
    own = gradients(1)
    order = torch.tensor([2, 0, 3, 1])
    deltas, new = update(rule, own, meta, carried, 0)
    in_order = {n: g[order] for n, g in own.items()}
    shuffled, new_shuffled = update(rule, in_order, meta, carried, 0)
    for name in own:
        assert torch.allclose(deltas[name][order], shuffled[name], rtol=1e-12)
        key = f"g_hat.0.{name}"
        assert torch.allclose(new[key], new_shuffled[key], rtol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-12, 1e12), st.sampled_from(["global", "per-tensor"]))
def test_the_norm_forgets_the_length_and_keeps_the_direction(
    seed: int, scale: float, kind: str
) -> None:
    tree = {name: g[0] for name, g in gradients(seed).items()}
    one = normalized(tree, kind)  # type: ignore[arg-type]
    other = normalized({n: scale * t for n, t in tree.items()}, kind)  # type: ignore[arg-type]
    for name in tree:
        assert torch.allclose(one[name], other[name], rtol=1e-9)
        if kind == "per-tensor":
            assert one[name].norm().item() == pytest.approx(1)
    if kind == "global":
        assert norm(one).item() == pytest.approx(1)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(-30, 30), st.sampled_from(["global", "per-tensor"]))
def test_in_float32_the_norm_and_its_derivative_are_right_at_every_length(
    seed: int, exponent: float, kind: str
) -> None:
    """Those of a support set that is fitted well are so short that squares would vanish."""
    tree = {name: 10**exponent * g[0] for name, g in gradients(seed).items()}
    towards = gradients(seed + 1)

    def of(dtype: torch.dtype) -> list[Tensor]:
        leaves = {name: t.to(dtype).requires_grad_() for name, t in tree.items()}
        units = normalized(leaves, kind)  # type: ignore[arg-type]
        sums = [(units[name] * towards[name][0].to(dtype)).sum() for name in leaves]
        back = torch.autograd.grad(torch.stack(sums).sum(), list(leaves.values()))
        return [*units.values(), *back]

    for single, double in zip(of(torch.float32), of(torch.float64), strict=True):
        assert torch.allclose(
            single.double(), double, rtol=1e-4, atol=1e-5 * double.abs().max().item()
        )


def test_a_support_set_that_is_fitted_well_has_finite_outer_gradients() -> None:
    torch.manual_seed(0)
    learner = maml(torch.nn.Linear(512, 5), steps=5, inner_lr=1.0, sharing=True)
    images, labels = torch.randn(2, 5, 512), torch.arange(5).expand(2, 5)
    meta, carried = learner.init()
    tasks = TaskBatch(images, labels, torch.randn(2, 5, 512), labels)
    objective = learner.outer_step(meta, carried, tasks, iteration=0).objective
    for tensor in torch.autograd.grad(objective.mean(), list(meta.values()), allow_unused=True):
        assert tensor is None or tensor.isfinite().all()


def test_a_gradient_that_is_not_finite_stays_so() -> None:
    for bad in (float("inf"), float("nan")):
        tree = {"weight": torch.tensor([1.0, bad]), "bias": torch.tensor([1.0])}
        for kind in ("global", "per-tensor"):
            assert not normalized(tree, kind)["weight"].isfinite().all()


@pytest.mark.parametrize("kind", ["global", "per-tensor"])
def test_an_empty_parameter_stays_empty_and_changes_no_other(kind: str) -> None:
    tree = {name: g[0] for name, g in gradients(1).items()}
    with_empty = normalized({"empty": torch.empty(0, dtype=torch.float64), **tree}, kind)  # type: ignore[arg-type]
    assert with_empty["empty"].shape == (0,)
    for name, tensor in normalized(tree, kind).items():  # type: ignore[arg-type]
        assert torch.equal(with_empty[name], tensor)


@pytest.mark.parametrize("sharing", [GradientSharing(), UnnormalizedSharing(), OwnGradient()])
@pytest.mark.parametrize("layout", [{}, {"tasks_at_a_time": None}, {"recompute": True}], ids=str)
def test_a_model_with_an_empty_parameter_learns(
    layout: dict[str, Any], sharing: UpdateRule
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).double()
    model.empty = torch.nn.Parameter(torch.empty(0, dtype=torch.float64))
    learner = maml(model, steps=2, sharing=sharing, **layout)
    meta, carried = learner.init()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    y = torch.arange(3).repeat(2).expand(2, 6)
    step = learner.outer_step(meta, carried, TaskBatch(x, y, x, y), iteration=0)
    for name, tensor in zip(
        meta,
        torch.autograd.grad(
            step.objective.mean(), list(meta.values()), allow_unused=True, materialize_grads=True
        ),
        strict=True,
    ):
        assert tensor.isfinite().all(), name
    assert step.carried.keys() == carried.keys()


@pytest.mark.parametrize("rule", [GradientSharing(), RateControl(), LearnedRates(), OwnGradient()])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float64, torch.float64),
    ],
)
def test_gates_have_the_widest_type_of_the_parameters_and_at_least_float32(
    first: torch.dtype, second: torch.dtype, expected: torch.dtype, rule: UpdateRule
) -> None:
    meta, _ = rule.init({"a": torch.zeros(2, dtype=first), "b": torch.zeros(2, dtype=second)}, 3)
    assert {tensor.dtype for tensor in meta.values()} == {expected}


@pytest.mark.parametrize("rule", [LSLR(0.1), MetaSGD(0.1)])
def test_a_learned_rate_of_a_narrow_parameter_is_float32_and_leaves_its_type(
    rule: UpdateRule,
) -> None:
    params = {"a": torch.ones(2, dtype=torch.float16), "b": torch.ones(2, dtype=torch.float64)}
    meta, _ = rule.init(params, 3)
    assert [tensor.dtype for tensor in meta.values()] == [torch.float32, torch.float64]
    gradients = {name: p[None] for name, p in params.items()}
    step = Step(0, gradients, gradients, torch.ones(1), None)
    updates, _, _ = rule.update(gradients, meta, {}, {}, step)
    assert {name: t.dtype for name, t in updates.items()} == {n: p.dtype for n, p in params.items()}


def test_a_zero_gradient_stays_zero_and_passes_zero_back() -> None:
    zero = {"weight": torch.zeros(3, requires_grad=True)}
    result = normalized(zero, "global")["weight"]
    assert torch.equal(result, torch.zeros(3))
    (grad,) = torch.autograd.grad(result.sum(), [zero["weight"]])
    assert torch.equal(grad, torch.zeros(3))


def test_a_chain_names_what_each_rule_learns_and_feeds_each_the_one_before() -> None:
    rule = Chain(control=RateControl(), left_out=None, meta_sgd=MetaSGD(0.2), sgd=SGD(10.0))
    meta, carried = rule.init(like(), STEPS)
    assert list(meta) == ["control.lambda", "meta_sgd.alpha.weight", "meta_sgd.alpha.bias"]
    assert carried == {}
    own = gradients(1)
    updates, _ = update(rule, own, meta, carried, 0, training=False)
    for name in own:
        assert torch.allclose(updates[name], 0.5 * 0.2 * 10 * own[name], rtol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        GradientSharing(),
        UnnormalizedSharing(),
        DetachedSharing(),
        Held(GradientSharing(), {"m": 1.0}),
        OwnGradient(),
        RateControl(),
        LearnedRates(),
        LSLR(0.1),
        MetaSGD(0.1),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_parameters_of_several_types_keep_theirs_and_share_as_those_of_one(
    rule: UpdateRule,
) -> None:
    deltas: dict[torch.dtype, Tensors] = {}
    for weight in (torch.float64, torch.float32):
        kinds = {"weight": weight, "bias": torch.float64}
        meta, carried = rule.init({name: t.to(kinds[name]) for name, t in like().items()}, STEPS)
        for seed in (1, 2):
            own = {name: g.to(kinds[name]) for name, g in gradients(seed).items()}
            deltas[weight], carried = update(rule, own, meta, carried, 0)
        for name, kind in kinds.items():
            stored = [t for key, t in carried.items() if key.endswith(f".{name}")]
            assert {t.dtype for t in (deltas[weight][name], *stored)} == {kind}
    for name, delta in deltas[torch.float64].items():
        assert torch.allclose(deltas[torch.float32][name].double(), delta, atol=1e-6)


def test_a_chain_keeps_each_rules_state_apart() -> None:
    class Momentum(UpdateRule):
        def __init__(self, decay: float) -> None:
            self.decay = decay

        def start(self, params: Tensors) -> Tensors:
            return {name: torch.zeros_like(p) for name, p in params.items()}

        def update(
            self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
        ) -> tuple[Tensors, Tensors, Tensors]:
            task = {name: self.decay * task[name] + g for name, g in gradients.items()}
            return task, carried, task

    rule = Chain(slow=Momentum(0.9), fast=Momentum(0.1))
    own = gradients(1)
    task = rule.start(own)
    assert set(task) == {"slow.weight", "slow.bias", "fast.weight", "fast.bias"}
    expected = torch.zeros_like(own["bias"]), torch.zeros_like(own["bias"])
    for k in range(2):
        step = Step(k, own, own, torch.zeros(4), sum_over_local_tasks)
        updates, _, task = rule.update(own, {}, {}, task, step)
        slow = 0.9 * expected[0] + own["bias"]
        expected = slow, 0.1 * expected[1] + slow
        assert torch.allclose(updates["bias"], expected[1], rtol=1e-12)


def test_a_chain_reports_under_its_rules_names() -> None:
    rule = Chain(sharing=GradientSharing(), rate=LearnedRates(), sgd=SGD(0.1))
    meta, _ = rule.init(like(), 2)
    assert rule.report(meta) == {
        "sharing.m": [0.5, 0.5],
        "sharing.lambda": [0.5, 0.5],
        "rate.rate": [1.0, 1.0],
    }
