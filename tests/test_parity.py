"""The package against the oracle, in float64: every outer parameter by name, and ĝ."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gradshare.inner_loop import Tensors
from tests import oracle
from tests.problems import as_oracle_batch, learner, oracle_g_hat, perturbed, tasks

RELATIVE = 1e-9
# A gradient that is zero but for rounding (a convolution's bias before batch norm, m at i = 1).
FLOOR = 1e-13
OUTER_LR = 0.05


def assert_equal(name: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape, name
    assert (ours - theirs).norm() <= RELATIVE * theirs.norm() + FLOOR, name


def gradients(loss: Tensor, outer: Tensors) -> dict[str, Tensor]:
    grads = torch.autograd.grad(
        loss, list(outer.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(outer, grads, strict=True))


def stepped(outer: Tensors, grads: Tensors) -> dict[str, Tensor]:
    """One step of plain SGD on every outer parameter (Eq. 5)."""
    return {
        n: (tensor - OUTER_LR * grads[n]).detach().requires_grad_() for n, tensor in outer.items()
    }


class Iteration(NamedTuple):
    """What one outer iteration comes to: its loss, all its gradients, and ĝ after it."""

    loss: Tensor
    gradients: dict[str, Tensor]
    g_hat: list[dict[str, Tensor]] | None


@cache  # all layouts of a learner are compared with the same numbers
def by_the_oracle(
    s: oracle.Setting, count: int, conv_bias: bool
) -> tuple[list[Iteration], list[Tensor]]:
    """Two consecutive outer iterations, and the logits of Algorithm 2 on other tasks."""
    outer: Tensors = perturbed(learner(s, conv_bias=conv_bias).init()[0])
    g_hat = None
    iterations = []
    for number in (1, 2):
        batch = as_oracle_batch(tasks(count, seed=number))
        loss, g_hat = oracle.outer_loss(dict(outer), g_hat, batch, s, number)
        iterations.append(Iteration(loss.detach(), gradients(loss, outer), g_hat))
        outer = stepped(outer, iterations[-1].gradients)
    batch = as_oracle_batch(tasks(3, seed=9))
    return iterations, oracle.meta_test_logits(dict(outer), g_hat, batch, s)


def assert_parity(
    s: oracle.Setting,
    count: int,
    *,
    conv_bias: bool = False,
    laid_out: dict[str, Any] | None = None,
    **layout: Any,
) -> None:
    """Two consecutive outer iterations, then Algorithm 2 on other tasks."""
    ours = learner(s, conv_bias=conv_bias, **layout)
    if laid_out is not None:
        ours = ours.laid_out(**laid_out)
    iterations, expected_logits = by_the_oracle(s, count, conv_bias)
    meta, carried = ours.init()
    meta = perturbed(meta)
    for index, expected in enumerate(iterations):
        step = ours.outer_step(meta, carried, tasks(count, seed=index + 1), iteration=index)
        assert_equal("loss", step.losses.mean(), expected.loss)
        got = gradients(step.objective.mean(), meta)
        assert got.keys() == expected.gradients.keys()
        for name, gradient in expected.gradients.items():
            assert_equal(name, got[name], gradient)
        carried = step.carried
        stored = oracle_g_hat(carried, s.steps)
        assert (stored is None) == (expected.g_hat is None)
        for g_hat_k, expected_k in zip(stored or [], expected.g_hat or [], strict=True):
            assert g_hat_k.keys() == expected_k.keys()
            for name in expected_k:
                assert not g_hat_k[name].requires_grad
                assert_equal(f"ĝ of {name}", g_hat_k[name], expected_k[name])
        meta = stepped(meta, got)

    batch = tasks(3, seed=9)
    with torch.no_grad():
        logits = ours.predict(meta, ours.adapt(meta, carried, batch), batch)
    for mine, other in zip(logits, expected_logits, strict=True):
        assert_equal("meta-test logits", mine, other)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("second_order", [True, False], ids=["second-order", "first-order"])
@pytest.mark.parametrize("sharing", ["none", "sharing", "rate-control"])
@pytest.mark.parametrize("method", ["maml", "meta-sgd", "maml++"])
def test_every_method(method: str, sharing: str, second_order: bool, count: int) -> None:
    plus_plus = method == "maml++"
    s = oracle.Setting(
        method,
        sharing,
        steps=3,
        inner_lr=0.4,
        second_order=second_order,
        multi_step_iterations=10 if plus_plus else None,
        per_step_batch_norm=plus_plus,
    )
    assert_parity(s, count)


VARIANTS = {
    "per-tensor norm": oracle.Setting("maml", "sharing", 3, 0.4, per_tensor_norm=True),
    "inductive": oracle.Setting("maml", "sharing", 3, 0.4, inductive=True),
    "relu": oracle.Setting("maml", "sharing", 3, 0.4, negative_slope=0.0),
    "maml++ last step only": oracle.Setting("maml++", "sharing", 3, 0.4, per_step_batch_norm=True),
    "maml++ shared batch norm": oracle.Setting(
        "maml++", "sharing", 3, 0.4, multi_step_iterations=10
    ),
    "maml++ at the end of its multi-step loss": oracle.Setting(
        "maml++", "sharing", 3, 0.4, multi_step_iterations=1, per_step_batch_norm=True
    ),
    "maml++ with fixed rates": oracle.Setting(
        "maml++", "sharing", 3, 0.4, per_step_rates=False, per_step_batch_norm=True
    ),
    "first order for the first iteration": oracle.Setting(
        "maml++", "sharing", 3, 0.4, first_order_iterations=1, per_step_batch_norm=True
    ),
    "maml++ inductive": oracle.Setting(
        "maml++", "none", 3, 0.4, inductive=True, per_step_batch_norm=True
    ),
}


CONTROLS = {
    "learned rates": oracle.Setting("maml", "learned-rates", 3, 0.4),
    "own gradient": oracle.Setting("maml", "own-gradient", 3, 0.4),
    "own gradient, per-tensor norm": oracle.Setting(
        "maml", "own-gradient", 3, 0.4, per_tensor_norm=True
    ),
    "detached, per-tensor norm": oracle.Setting("maml", "detached", 3, 0.4, per_tensor_norm=True),
    "forgotten, per-tensor norm": oracle.Setting("maml", "forgotten", 3, 0.4, per_tensor_norm=True),
    "unnormalized": oracle.Setting("maml", "unnormalized", 3, 0.4),
    "detached": oracle.Setting("maml", "detached", 3, 0.4),
    "forgotten at test": oracle.Setting("maml", "forgotten", 3, 0.4),
    "λ held": oracle.Setting("maml", "sharing", 3, 0.4, fixed_lambda=0.25),
    "m held at 1": oracle.Setting("maml", "sharing", 3, 0.4, fixed_m=1.0),
    "m held low": oracle.Setting("maml", "sharing", 3, 0.4, fixed_m=0.02),
    "both held, of MAML++": oracle.Setting(
        "maml++",
        "sharing",
        3,
        0.4,
        multi_step_iterations=10,
        per_step_batch_norm=True,
        fixed_lambda=0.5,
        fixed_m=0.02,
    ),
}


@pytest.mark.parametrize("layout", [{}, {"recompute": True, "tasks_at_a_time": None}], ids=str)
@pytest.mark.parametrize("control", CONTROLS)
def test_every_control(control: str, layout: dict[str, Any]) -> None:
    s = CONTROLS[control]
    assert_parity(s, 3, **layout)


def test_sharing_with_the_gate_held_shut_is_the_original() -> None:
    original = oracle.Setting("maml", "none", 3, 0.4)
    shut = oracle.Setting("maml", "sharing", 3, 0.4, fixed_lambda=0.0)
    ours, theirs = learner(shut), learner(original)
    meta, carried = ours.init()
    params = perturbed(theirs.init()[0])
    shared = {**params, "sharing.m": meta["sharing.m"]}
    for iteration in range(2):
        batch = tasks(3, seed=iteration)
        step = ours.outer_step(shared, carried, batch, iteration=iteration)
        expected = theirs.outer_step(params, {}, batch, iteration=iteration).objective
        assert_equal("losses", step.objective, expected)
        got = gradients(step.objective.mean(), shared)
        for name, gradient in gradients(expected.mean(), params).items():
            assert_equal(name, got[name], gradient)
        assert got["sharing.m"].count_nonzero() == 0
        carried = step.carried


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(variant: str) -> None:
    s = VARIANTS[variant]
    assert_parity(s, 2)


def test_convolutions_with_the_reference_codes_bias() -> None:
    s = oracle.Setting("maml", "sharing", 3, 0.4)
    assert_parity(s, 2, conv_bias=True)


LAYOUTS: dict[str, dict[str, Any]] = {
    "vmap": {"tasks_at_a_time": None},
    "two at a time": {"tasks_at_a_time": 2},
    "recompute": {"recompute": True},
    "recompute, vmap": {"recompute": True, "tasks_at_a_time": None},
}


@pytest.mark.parametrize(
    ("second_order", "inductive"),
    [(True, False), (False, True)],
    ids=["second-order, transductive", "first-order, inductive"],
)
@pytest.mark.parametrize("method", ["maml", "meta-sgd", "maml++"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, method: str, second_order: bool, inductive: bool) -> None:
    plus_plus = method == "maml++"
    s = oracle.Setting(
        method,
        "sharing",
        3,
        0.4,
        second_order=second_order,
        inductive=inductive,
        multi_step_iterations=10 if plus_plus else None,
        per_step_batch_norm=plus_plus,
    )
    assert_parity(s, 3, **LAYOUTS[layout])


@pytest.mark.parametrize(("tasks_at_a_time", "recompute"), [(1, True), (2, False)])
@pytest.mark.parametrize("sharing", ["none", "rate-control", "own-gradient"])
@pytest.mark.parametrize("method", ["maml", "meta-sgd", "maml++"])
def test_tasks_that_share_nothing_taken_apart(
    method: str, sharing: str, tasks_at_a_time: int, recompute: bool
) -> None:
    plus_plus = method == "maml++"
    s = oracle.Setting(
        method,
        sharing,
        3,
        0.4,
        multi_step_iterations=10 if plus_plus else None,
        per_step_batch_norm=plus_plus,
    )
    apart = {"tasks_at_a_time": tasks_at_a_time, "recompute": recompute, "separate": True}
    assert_parity(s, 3, laid_out=apart)


@pytest.mark.parametrize("layout", [{}, {"tasks_at_a_time": None}], ids=["loop", "vmap"])
@pytest.mark.parametrize("sharing", ["none", "sharing"])
def test_many_inner_steps_recomputed_from_every_few(
    sharing: str, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["gradshare.inner_loop.adapt"], "MANY_STEPS", 2)
    s = oracle.Setting("meta-sgd", sharing, 5, 0.2)
    assert_parity(s, 2, recompute=True, **layout)


@pytest.mark.parametrize("layout", [{}, *LAYOUTS.values()], ids=["keep", *LAYOUTS])
@pytest.mark.parametrize("method", ["maml", "meta-sgd", "maml++"])
def test_float32_is_close_to_the_float64_oracle(method: str, layout: dict[str, Any]) -> None:
    plus_plus = method == "maml++"
    s = oracle.Setting(
        method,
        "sharing",
        3,
        0.4,
        multi_step_iterations=10 if plus_plus else None,
        per_step_batch_norm=plus_plus,
    )
    ours = learner(s, **layout)
    theirs = by_the_oracle(s, 3, conv_bias=False)[0][0].gradients
    meta = {n: t.detach().float().requires_grad_() for n, t in perturbed(ours.init()[0]).items()}
    carried = {n: t.float() if t.is_floating_point() else t for n, t in ours.init()[1].items()}
    step = ours.outer_step(meta, carried, tasks(3, 1, torch.float32), iteration=0)
    for name, gradient in gradients(step.objective.mean(), meta).items():
        difference = (gradient.double() - theirs[name]).norm()
        assert difference <= 1e-3 * theirs[name].norm() + 1e-7, name
