"""T tasks on R processes against the oracle on one, in float64: every outer parameter, and ĝ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradshare.training.distributed import ProcessGroup
from gradshare.training.outer_loop import outer_iteration
from tests import oracle
from tests.problems import as_oracle_batch, learner, oracle_g_hat, perturbed, tasks
from tests.test_parity import OUTER_LR, assert_equal, gradients, stepped
from tests.training.ranks import ranks

METHODS = ["maml", "meta-sgd", "maml++"]
ITERATIONS = (1, 2)
TEST_TASKS = 2


def setting(method: str, sharing: str, *, second_order: bool, **more: Any) -> oracle.Setting:
    plus_plus = method == "maml++"
    return oracle.Setting(
        method,
        sharing,
        steps=3,
        inner_lr=0.4,
        second_order=second_order,
        multi_step_iterations=10 if plus_plus else None,
        per_step_batch_norm=plus_plus,
        **more,
    )


SETTINGS = {
    **{
        f"{method}, {'second' if second else 'first'} order": setting(
            method, "sharing", second_order=second
        )
        for method in METHODS
        for second in (True, False)
    },
    "per-tensor norm": setting("maml", "sharing", second_order=True, per_tensor_norm=True),
    "rate-control": setting("maml", "rate-control", second_order=True),
    "unnormalized": setting("maml", "unnormalized", second_order=True),
    "no sharing": setting("maml++", "none", second_order=True),
}

# R to T: some that R does not divide, and some that are less.
BATCHES = {1: (3,), 2: (1, 3), 3: (2, 4)}


def meta_train(group: ProcessGroup, s: oracle.Setting, count: int) -> dict[str, Any]:
    """The body of a rank: two outer iterations of plain SGD, then Algorithm 2 on other tasks."""
    ours = learner(s)
    meta, carried = ours.init()
    meta = perturbed(meta)
    optimizer = torch.optim.SGD(meta.values(), lr=OUTER_LR)
    seen: list[dict[str, Tensor]] = []

    def look(*arguments: object) -> None:
        grads = {name: tensor.grad for name, tensor in meta.items()}
        seen.append({name: grad.clone() for name, grad in grads.items() if grad is not None})

    optimizer.register_step_pre_hook(look)
    losses, carried_after = [], []
    for iteration in ITERATIONS:
        share = group.share(range(count))
        result = outer_iteration(
            ours,
            meta,
            carried,
            optimizer,
            tasks(count, seed=iteration)[share.tasks.start : share.tasks.stop],
            iteration=iteration - 1,
            metrics={},
            share=share,
        )
        assert result.refused is None
        carried = result.carried
        losses.append(result.metrics["loss"])
        carried_after.append(dict(carried))
    shared = group.share(range(TEST_TASKS))
    own = shared.tasks[: shared.counted]
    logits: list[Tensor] = []
    if own:
        batch = tasks(TEST_TASKS, seed=9)[own.start : own.stop]
        with torch.no_grad():
            logits = list(ours.predict(meta, ours.adapt(meta, carried, batch), batch))
    return {
        "losses": losses,
        "gradients": seen,
        "carried": carried_after,
        "meta": {name: tensor.detach() for name, tensor in meta.items()},
        "logits": group.gather(logits),
    }


def assert_identical(one: Any, other: Any) -> None:
    """Bit for bit, through lists and dictionaries."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_identical(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_identical(left, right)
    else:
        assert one == other


def assert_parity(results: list[dict[str, Any]], s: oracle.Setting, count: int) -> None:
    first = results[0]
    for other in results[1:]:
        assert_identical(first, other)
    outer = perturbed(learner(s).init()[0])
    g_hat = None
    for index, iteration in enumerate(ITERATIONS):
        batch = as_oracle_batch(tasks(count, seed=iteration))
        loss, g_hat = oracle.outer_loss(outer, g_hat, batch, s, iteration)
        assert_equal("loss", torch.tensor(first["losses"][index], dtype=torch.float64), loss)
        theirs = gradients(loss, outer)
        assert first["gradients"][index].keys() == theirs.keys()
        for name, expected in theirs.items():
            assert_equal(name, first["gradients"][index][name], expected)
        stored = oracle_g_hat(first["carried"][index], s.steps)
        assert (stored is None) == (g_hat is None)
        for g_hat_k, expected_k in zip(stored or [], g_hat or [], strict=True):
            for name in expected_k:
                assert_equal(f"ĝ of {name}", g_hat_k[name], expected_k[name])
        outer = stepped(outer, theirs)
    for name, tensor in outer.items():
        assert_equal(name, first["meta"][name], tensor.detach())
    batch = as_oracle_batch(tasks(TEST_TASKS, seed=9))
    expected_logits = oracle.meta_test_logits(outer, g_hat, batch, s)
    for mine, theirs_too in zip(first["logits"], expected_logits, strict=True):
        assert_equal("meta-test logits", mine, theirs_too)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_has_what_one_process_has(size: int, tmp_path: Path) -> None:
    with ranks(size, tmp_path) as run:
        for name, s in SETTINGS.items():
            for count in BATCHES[size]:
                results = run(meta_train, s, count)
                for result in results:
                    assert isinstance(result, dict), (name, count, result)
                assert_parity(results, s, count)
