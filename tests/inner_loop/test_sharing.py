"""Gradient sharing as a rule: its special cases and its invariances."""

from __future__ import annotations

import math

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
    Tensors,
    UnnormalizedSharing,
    UpdateRule,
)
from gradshare.inner_loop.rule import sum_over_local_tasks
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


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def with_values(learned: Tensors, **values: float) -> dict[str, Tensor]:
    return {
        name: torch.full_like(tensor, values.get(name, 0.0)).requires_grad_()
        for name, tensor in learned.items()
    }


def norm(tree: Tensors) -> Tensor:
    return torch.stack([t.square().sum() for t in tree.values()]).sum().sqrt()


def test_at_first_g_hat_is_the_normalised_sum_and_m_has_gradient_zero_not_none() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    learned = with_values(learned)
    own = gradients(1)
    deltas, new = rule.update(own, learned, state, 1, sum_over_local_tasks)
    total = {name: g.sum(0) for name, g in own.items()}
    for name in own:
        g_1 = total[name] / norm(total)
        assert torch.allclose(new[f"g_hat.1.{name}"][0], g_1, rtol=1e-12)
        assert torch.allclose(deltas[name], 0.5 * g_1 + 0.5 * own[name], rtol=1e-12)
    (grad,) = torch.autograd.grad(deltas["weight"].sum(), [learned["m"]])
    assert torch.equal(grad, torch.zeros(STEPS, dtype=torch.float64))
    assert new["seen"].tolist() == [False, True, False]


def test_the_state_given_is_not_changed() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    before = {name: tensor.clone() for name, tensor in state.items()}
    rule.update(gradients(1), learned, state, 0, sum_over_local_tasks)
    assert all(torch.equal(before[name], state[name]) for name in state)


def test_a_closed_gate_is_the_original() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    learned = with_values(learned, **{"lambda": -1e9})
    own = gradients(1)
    deltas, _ = rule.update(own, learned, state, 0, sum_over_local_tasks)
    assert all(torch.equal(deltas[name], own[name]) for name in own)


def test_an_open_gate_gives_every_task_the_same_update() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    learned = with_values(learned, **{"lambda": 1e9})
    deltas, _ = rule.update(gradients(1), learned, state, 0, sum_over_local_tasks)
    for delta in deltas.values():
        assert torch.allclose(delta, delta[:1].expand_as(delta), rtol=1e-12)
    assert norm({name: d[0] for name, d in deltas.items()}).item() == pytest.approx(1)


def test_before_any_training_testing_uses_the_tasks_own_gradient() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    own = gradients(1)
    deltas, same = rule.update(own, learned, state, 0, None)
    assert all(torch.equal(deltas[name], own[name]) for name in own)
    assert same is state


def test_testing_uses_the_stored_g_hat_and_no_other_task() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    _, state = rule.update(gradients(1), learned, state, 0, sum_over_local_tasks)
    own = gradients(2)
    together, _ = rule.update(own, learned, state, 0, None)
    alone, _ = rule.update({n: g[2:3] for n, g in own.items()}, learned, state, 0, None)
    for name in own:
        assert torch.equal(together[name][2], alone[name][0])
        expected = 0.5 * state[f"g_hat.0.{name}"] + 0.5 * own[name]
        assert torch.allclose(together[name], expected, rtol=1e-12)


def test_history_is_constant_and_the_present_is_not() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    first = {n: g.requires_grad_() for n, g in gradients(1).items()}
    _, state = rule.update(first, learned, state, 0, sum_over_local_tasks)
    assert not any(tensor.requires_grad for tensor in state.values())
    second = {n: g.requires_grad_() for n, g in gradients(2).items()}
    deltas, _ = rule.update(second, learned, state, 0, sum_over_local_tasks)
    # Task 0's update depends on task 3's gradient, through g_k and its norm.
    (grad,) = torch.autograd.grad(deltas["weight"][0].sum(), [second["bias"]])
    assert grad[3].abs().sum() > 0


def test_task_conditioned_parameters_need_no_change_to_the_rule() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    own = gradients(1)
    _, state = rule.update(own, learned, state, 0, sum_over_local_tasks)
    generator = torch.Generator().manual_seed(3)
    conditioned = {
        name: torch.randn(4, STEPS, generator=generator, dtype=torch.float64)
        for name in ("m", "lambda")
    }
    together, _ = rule.update(own, conditioned, state, 0, sum_over_local_tasks)
    for task in range(4):
        one = {name: tensor[task] for name, tensor in conditioned.items()}
        expected, _ = rule.update(own, one, state, 0, sum_over_local_tasks)
        for name in own:
            assert torch.allclose(together[name][task], expected[name][task], rtol=1e-12)


def test_once_m_is_task_conditioned_a_batch_has_as_many_tasks() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    _, state = rule.update(gradients(1), learned, state, 0, sum_over_local_tasks)
    conditioned = {**learned, "m": torch.zeros(4, STEPS, dtype=torch.float64)}
    _, state = rule.update(gradients(2), conditioned, state, 0, sum_over_local_tasks)
    assert state["g_hat.0.weight"].shape == (4, 3, 2)
    rule.update(gradients(3), conditioned, state, 0, None)
    with pytest.raises(RuntimeError):
        rule.update(gradients(3, tasks=3), conditioned, state, 0, None)


def test_rate_control_is_sharing_with_g_hat_zero() -> None:
    learned, state = RateControl(STEPS).init(like())
    assert list(learned) == ["lambda"]
    learned = with_values(learned, **{"lambda": logit(0.25)})
    own = gradients(1)
    deltas, same = RateControl(STEPS).update(own, learned, state, 2, sum_over_local_tasks)
    assert same == {}
    for name in own:
        assert torch.allclose(deltas[name], 0.75 * own[name], rtol=1e-12)


def test_an_iteration_sees_tasks_in_any_order() -> None:
    rule = GradientSharing(STEPS)
    learned, state = rule.init(like())
    own = gradients(1)
    order = torch.tensor([2, 0, 3, 1])
    deltas, new = rule.update(own, learned, state, 0, sum_over_local_tasks)
    shuffled, new_shuffled = rule.update(
        {n: g[order] for n, g in own.items()}, learned, state, 0, sum_over_local_tasks
    )
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
def test_in_float32_too_the_norm_and_its_derivative_are_right_at_every_length(
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
    sharing = GradientSharing(5)
    learner = maml(torch.nn.Linear(512, 5), steps=5, inner_lr=1.0, sharing=sharing)
    images, labels = torch.randn(2, 5, 512), torch.arange(5).expand(2, 5)
    learned, state = learner.init()
    tasks = TaskBatch(images, labels, torch.randn(2, 5, 512), labels)
    losses = learner.outer_step(learned, state, tasks, iteration=0).losses
    for tensor in torch.autograd.grad(losses.mean(), list(learned.values()), allow_unused=True):
        assert tensor is None or tensor.isfinite().all()


def test_a_gradient_that_is_not_finite_stays_so() -> None:
    for bad in (float("inf"), float("nan")):
        tree = {"weight": torch.tensor([1.0, bad]), "bias": torch.tensor([1.0])}
        for kind in ("global", "per-tensor"):
            assert not normalized(tree, kind)["weight"].isfinite().all()


def test_a_zero_gradient_stays_zero_and_passes_zero_back() -> None:
    zero = {"weight": torch.zeros(3, requires_grad=True)}
    result = normalized(zero, "global")["weight"]
    assert torch.equal(result, torch.zeros(3))
    (grad,) = torch.autograd.grad(result.sum(), [zero["weight"]])
    assert torch.equal(grad, torch.zeros(3))


def test_a_chain_names_what_each_rule_learns_and_feeds_each_the_one_before() -> None:
    rule = Chain(control=RateControl(STEPS), left_out=None, meta_sgd=MetaSGD(0.2), sgd=SGD(10.0))
    learned, state = rule.init(like())
    assert list(learned) == ["control.lambda", "meta_sgd.alpha.weight", "meta_sgd.alpha.bias"]
    assert state == {}
    own = gradients(1)
    updates, _ = rule.update(own, learned, state, 0, None)
    for name in own:
        assert torch.allclose(updates[name], 0.5 * 0.2 * 10 * own[name], rtol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        GradientSharing(STEPS),
        UnnormalizedSharing(STEPS),
        DetachedSharing(STEPS),
        Held(GradientSharing(STEPS), {"m": 1.0}),
        OwnGradient(STEPS),
        RateControl(STEPS),
        LearnedRates(STEPS),
        LSLR(STEPS, 0.1),
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
        learned, state = rule.init({name: t.to(kinds[name]) for name, t in like().items()})
        for seed in (1, 2):
            own = {name: g.to(kinds[name]) for name, g in gradients(seed).items()}
            deltas[weight], state = rule.update(own, learned, state, 0, sum_over_local_tasks)
        for name, kind in kinds.items():
            stored = [t for key, t in state.items() if key.endswith(f".{name}")]
            assert {t.dtype for t in (deltas[weight][name], *stored)} == {kind}
    for name, delta in deltas[torch.float64].items():
        assert torch.allclose(deltas[torch.float32][name].double(), delta, atol=1e-6)
