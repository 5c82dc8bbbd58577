"""What the options of `fit` do to the outer step: optimiser, groups, schedule, clipping, frozen
parts.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gradshare as gs
from gradshare.training.identity import schedule_digest
from gradshare.training.options import Options
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.run import Run
from tests.training.killing import latest, timeless
from tests.training.small import ROWS, Arguments, mlp, rows


class Watched(torch.optim.SGD):
    """Notes what each step is taken with."""

    def __init__(self, groups: Any, seen: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        self.seen = seen

    def step(self, closure: Any = None) -> Any:
        gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        rates = [group["lr"] for group in self.param_groups]
        self.seen.append({"gradients": gradients, "rates": rates})
        return super().step(closure)


def watched(path: Path, **changes: Any) -> list[dict[str, Any]]:
    """What the steps of a run of six iterations are taken with."""
    seen: list[dict[str, Any]] = []
    optimizer = functools.partial(Watched, seen=seen, lr=changes.pop("lr", 0.1))
    gs.fit(**rows(epochs=2, optimizer=optimizer, **changes), out=path)
    assert len(seen) == 6
    return seen


def test_the_schedule_multiplies_the_rate_of_each_group_at_each_iteration(tmp_path: Path) -> None:
    def cosine(iteration: int) -> float:
        return (1 + math.cos(math.pi * iteration / 6)) / 2

    def groups(name: str) -> dict[str, float]:
        return {"lr": 1e-3} if name.startswith("sharing.") else {}

    seen = watched(tmp_path / "run", schedule=cosine, groups=groups)
    for iteration, step in enumerate(seen):
        factor = (1 + math.cos(math.pi * iteration / 6)) / 2
        assert step["rates"] == pytest.approx([0.1 * factor, 1e-3 * factor], rel=1e-12)
    records = gs.open_run(tmp_path / "run").history
    rates = [record.outer_lr for record in records]
    assert rates == pytest.approx([0.1 * cosine(2), 0.1 * cosine(5)], rel=1e-12)


def test_groups_have_their_own_options_and_all_parameters_are_in_one(tmp_path: Path) -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(groups, lr=1e-2))
        return made[0]

    def groups(name: str) -> dict[str, Any]:
        if name.endswith("bias"):
            return {"weight_decay": 0.0}
        return {"lr": 0.5, "weight_decay": 0.0} if name == "sharing.m" else {}

    run = gs.fit(**rows(optimizer=optimizer, groups=groups), out=tmp_path / "run")
    found = made[0].param_groups
    assert [len(group["params"]) for group in found] == [3, 2, 1]
    assert [group["lr"] for group in found] == [1e-2, 1e-2, 0.5]
    assert [group["weight_decay"] for group in found] == [1e-2, 0.0, 0.0]
    assert sum(len(group["params"]) for group in found) == len(run.tensors()[0])


def moved(run: Run, learner: gs.MetaLearner) -> set[str]:
    """The meta-parameters that training has changed."""
    after = latest(run.path).meta
    return {n for n, tensor in learner.init()[0].items() if not torch.equal(tensor, after[n])}


def test_a_group_with_a_rate_of_zero_is_frozen(tmp_path: Path) -> None:
    given = rows(groups=lambda name: {"lr": 0.0} if name.startswith("model.0") else {})
    run = gs.fit(**given, out=tmp_path / "run")
    names = set(given["learner"].init()[0])
    assert moved(run, given["learner"]) == names - {"model.0.weight", "model.0.bias"}


def test_parameters_that_require_no_gradient_stay_as_they_are_in_training_and_use(
    tmp_path: Path,
) -> None:
    model = mlp()
    model.get_submodule("0").requires_grad_(False)
    run = gs.fit(**rows(learner=gs.maml(model, steps=2, sharing=True)), out=tmp_path / "run")
    assert {n for n in run.tensors()[0] if n.startswith("model.")} == {
        "model.2.weight",
        "model.2.bias",
    }
    task = ROWS[2].batch([0])
    net = run.adapt(task.support_x[0], task.support_y[0])
    assert net.network is not None
    assert torch.equal(net.network.get_parameter("0.weight"), model.get_parameter("0.weight"))


def test_what_the_inner_loop_leaves_alone_is_learned_by_the_outer_loop(tmp_path: Path) -> None:
    learner = gs.maml(mlp(), steps=2, adapts=lambda name: name.startswith("2."))
    run = gs.fit(**rows(learner=learner), out=tmp_path / "run")
    assert moved(run, learner) == set(learner.init()[0])
    task = ROWS[2].batch([0])
    net = run.adapt(task.support_x[0], task.support_y[0])
    assert net.network is not None
    assert torch.equal(net.network.get_parameter("0.weight"), run.tensors()[0]["model.0.weight"])


def norm(gradients: list[Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in gradients]).norm())


def test_a_gradient_that_is_too_long_is_scaled_down_and_no_other(tmp_path: Path) -> None:
    free = watched(tmp_path / "free", lr=1e-9)
    lengths = [norm(step["gradients"]) for step in free]
    limit = sorted(lengths)[2]
    clipped = watched(tmp_path / "clipped", lr=1e-9, clip_norm=limit)
    for one, other in zip(free, clipped, strict=True):
        factor = min(1.0, limit / norm(one["gradients"]))
        for ours, theirs in zip(other["gradients"], one["gradients"], strict=True):
            torch.testing.assert_close(ours, factor * theirs, rtol=1e-4, atol=1e-7)


def test_the_clamp_of_the_reference_spares_what_is_not_the_model(tmp_path: Path) -> None:
    learner = gs.meta_sgd(mlp(), steps=2, sharing=True)
    names = list(learner.init()[0])
    seen = watched(tmp_path / "run", learner=learner, clamp_gradients=1e-6)
    largest = dict.fromkeys(names, 0.0)
    for step in seen:
        for name, gradient in zip(names, step["gradients"], strict=True):
            largest[name] = max(largest[name], float(gradient.abs().max()))
    assert max(largest[n] for n in names if n.startswith("model.")) == pytest.approx(1e-6)
    assert min(largest[n] for n in names if not n.startswith("model.")) > 1e-6


def test_a_refused_step_leaves_everything_as_it_was() -> None:
    learner = gs.maml(mlp(), steps=2, sharing=True)
    meta, carried = learner.init()
    optimizer = torch.optim.Adam(meta.values(), lr=0.1)
    tasks = ROWS[0].batch([0, 1])

    def iterate(carried: Any, number: int) -> Any:
        return outer_iteration(
            learner,
            meta,
            carried,
            optimizer,
            tasks,
            iteration=number,
            metrics={},
        )

    good = iterate(carried, 0)
    before = {name: tensor.detach().clone() for name, tensor in meta.items()}
    steps = [state["step"].item() for state in optimizer.state.values()]
    tasks.query_x[0, 0] = math.inf
    bad = iterate(good.carried, 1)
    assert bad.refused == "the outer loss is nan"
    assert bad.carried is good.carried
    assert all(torch.equal(before[name], meta[name]) for name in meta)
    assert [state["step"].item() for state in optimizer.state.values()] == steps


def test_an_optimiser_with_state_of_its_own_sees_each_gradient_once(tmp_path: Path) -> None:
    """The same as plain torch: the literal loop over the learner's outer steps."""
    given: Arguments = rows(
        epochs=1,
        iterations=4,
        optimizer=functools.partial(torch.optim.RMSprop, lr=1e-2, momentum=0.5),
        tasks="loop",
        memory="keep",
    )
    run = gs.fit(**given, out=tmp_path / "run")
    learner = given["learner"]
    meta, carried = learner.init()
    optimizer = torch.optim.RMSprop(meta.values(), lr=1e-2, momentum=0.5)
    start = 2**40
    for iteration in range(4):
        batch = ROWS[0].batch(range(start + 2 * iteration, start + 2 * iteration + 2))
        step = learner.outer_step(meta, carried, batch, iteration=iteration)
        optimizer.zero_grad()
        step.objective.mean().backward()
        optimizer.step()
        carried = step.carried
    for name, tensor in latest(run.path).meta.items():
        torch.testing.assert_close(tensor, meta[name].detach(), rtol=1e-5, atol=1e-7)
    for name, tensor in latest(run.path).carried.items():
        torch.testing.assert_close(tensor, carried[name], rtol=1e-5, atol=1e-7)


def test_the_outer_rate_of_an_optimiser_without_one_is_nan(tmp_path: Path) -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, groups: Any) -> None:
            super().__init__(groups, {})

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.sub_(0.1 * parameter.grad)

    run = gs.fit(**rows(optimizer=Plain), out=tmp_path / "run")
    assert math.isnan(run.history[0].outer_lr)
    again = gs.fit(**rows(optimizer=Plain, epochs=4), out=tmp_path / "run", resume="auto")
    assert timeless(again)[:3] == timeless(run)


def test_schedules_with_other_factors_have_other_digests() -> None:
    def digest(schedule: Any) -> str:
        return schedule_digest(Options(epochs=1, iterations=4, schedule=schedule), 4)

    assert digest(None) == digest(lambda i: 1)
    assert digest(None) != digest(lambda i: 1 - i / 4)
