"""Tasks that differ in ways and shots: their batches against literal loops in float64, and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.config.names import REGISTERED
from gradshare.errors import ConfigError
from gradshare.methods import MetaLearner, maml, proto_maml, protonet, unicorn_maml
from gradshare.tasks import TaskBatch
from gradshare.tasks.batch import task_of
from gradshare.training.metrics import accuracy
from tests import oracle_methods as oracle
from tests.methods.modules import assert_close, gradients
from tests.methods.test_field import LR, STEPS, WAYS, model
from tests.methods.test_networks import EVERY_LAYOUT
from tests.oracle_methods import Setting
from tests.problems import oracle_g_hat, perturbed


def source(**sizes: Any) -> gs.ClassTasks:
    """Rows whose class shows in their mean."""
    random = np.random.default_rng(0)
    y = np.arange(30).repeat(12)
    x = 2 * random.normal(size=(30, 6))[y] + random.normal(size=(360, 6))
    return gs.ClassTasks(x, y, **{"ways": (2, 5), "shots": (1, 3), "queries": 3, **sizes})


def in_float64(batch: TaskBatch) -> TaskBatch:
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def without_padding(batch: TaskBatch) -> oracle.Batch:
    """The parts of a batch, as lists of tasks."""

    def apart(part: Tensor, sizes: Any) -> list[Tensor]:
        return [task_of(part, task, sizes) for task in range(len(batch))]

    support, query = batch.support_n, batch.query_n
    return (
        apart(batch.support_x, support),
        apart(batch.support_y, support),
        apart(batch.query_x, query),
        apart(batch.query_y, query),
    )


METHODS: dict[str, tuple[Callable[..., MetaLearner], Setting]] = {
    "MAML": (maml, Setting()),  # any shots, and as many ways as its head has outputs
    "UNICORN-MAML": (unicorn_maml, Setting(head="repeated")),
    "ProtoMAML": (proto_maml, Setting(head="prototypes")),
}


@EVERY_LAYOUT
@pytest.mark.parametrize("sharing", [False, True], ids=["plain", "sharing"])
@pytest.mark.parametrize("name", METHODS)
def test_tasks_of_any_ways_and_shots_equal_the_literal_loop(
    name: str, sharing: bool, layout: dict[str, Any]
) -> None:
    method, s = METHODS[name]
    s = replace(s, sharing=sharing)
    learner = method(model(), steps=STEPS, inner_lr=LR, sharing=sharing, **layout)
    meta, carried = learner.init()
    meta, g_hat = perturbed(meta), None
    tasks = source(ways=WAYS) if name == "MAML" else source()
    for first in (0, 4):
        batch = in_float64(tasks.batch(range(first, first + 4)))
        assert len(set(batch.support_n or ())) > 1
        assert len(set(batch.query_n or ())) > 1 or name == "MAML"
        step = learner.outer_step(meta, carried, batch, iteration=0)
        losses, g_hat = oracle.outer_losses(dict(meta), g_hat, without_padding(batch), s)
        assert_close("losses", step.losses, losses)
        theirs = gradients(losses.mean(), meta)
        for tensor, gradient in gradients(step.objective.mean(), meta).items():
            assert_close(tensor, gradient, theirs[tensor])
        carried = step.carried
        for k, of_step in enumerate(oracle_g_hat(carried, STEPS) or [] if sharing else []):
            for tensor, value in of_step.items():
                assert_close(tensor, value, g_hat[k][tensor])


@EVERY_LAYOUT
def test_prototypes_of_any_ways_and_shots_equal_the_literal_loop(layout: dict[str, Any]) -> None:
    learner = protonet(model()).laid_out(**{"tasks_at_a_time": 1, "recompute": False, **layout})
    meta = perturbed(learner.init()[0])
    batch = in_float64(source().batch(range(4)))
    losses = oracle.prototypical_losses(dict(meta), without_padding(batch))
    found = learner.outer_step(meta, {}, batch, iteration=0)
    assert_close("losses", found.losses, losses)
    theirs = gradients(losses.mean(), meta)
    for tensor, gradient in gradients(found.objective.mean(), meta).items():
        assert_close(tensor, gradient, theirs[tensor])


def test_a_head_without_a_bias_cannot_leave_classes_out() -> None:
    learner = unicorn_maml(nn.Linear(6, 3, bias=False))
    with pytest.raises(ConfigError, match=r"the head of 'weight' has no bias, .* with bias=True"):
        learner.outer_step(*learner.init(), source().batch(range(4)), iteration=0)


def small(ways: int = 9) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, ways))


@pytest.mark.parametrize("name", sorted(REGISTERED["method"]))
def test_a_method_takes_a_range_of_ways_or_refuses_it_before_work_starts(
    name: str, tmp_path: Path
) -> None:
    method = getattr(gs, name.replace("++", "_plus_plus").replace("-", "_"))
    learner = method(small(3), **({"multi_step_iterations": 1} if name == "maml++" else {}))
    tasks = source()
    options: dict[str, Any] = {"epochs": 1, "iterations": 1, "val_tasks": 5, "test_tasks": 5}
    for first, second in ((tasks, tasks), (tasks.replace(ways=3), tasks)):
        arguments = learner, first, second, source(queries=2)
        if name in ("unicorn-maml", "proto-maml", "protonet"):
            run = gs.fit(*arguments, out=tmp_path / f"{first.ways}", progress=False, **options)
            assert run.tested is not None
            continue
        with pytest.raises(ConfigError) as error:
            gs.fit(*arguments, out=tmp_path / "run", **options)
        assert str(error.value) == (
            f"{'train' if first is tasks else 'validation'} has tasks of 2 to 5 classes, and the "
            "head of this method is for one number of classes; give one number of ways, or a "
            "method for any: unicorn-maml, proto-maml or protonet"
        )
        assert not (tmp_path / "run").exists()


def test_a_resumed_run_on_ranges_ends_where_one_that_was_not_stopped_does(tmp_path: Path) -> None:
    options: dict[str, Any] = {"iterations": 3, "task_batch": 3, "val_tasks": 30, "test_tasks": 20}

    def trained(folder: str, epochs: int, **more: Any) -> gs.Run:
        learner = gs.unicorn_maml(small(), sharing=True)
        tasks, how = source(), {**options, **more, "progress": False}
        out = tmp_path / folder
        return gs.fit(learner, tasks, tasks, source(queries=2), out=out, epochs=epochs, **how)

    whole = trained("whole", 2)
    trained("parts", 1)
    continued = trained("parts", 2, resume="auto")
    assert continued.test == whole.test
    for ours, theirs in zip(continued.tensors(), whole.tensors(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # Guessing is right in the mean of 1/2, 1/3, 1/4 and 1/5 of the cases.
    assert whole.metrics["accuracy"].chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4)


def test_a_run_of_another_method_is_not_tested_on_a_range(tmp_path: Path) -> None:
    tasks, out = source(ways=3), tmp_path / "run"
    run = gs.fit(gs.maml(small(3)), tasks, tasks, out=out, epochs=1, iterations=1, val_tasks=2)
    with pytest.raises(ConfigError, match="the source has tasks of 2 to 5 classes, and the head"):
        run.evaluate(source())


def test_a_supervised_start_learns_from_tasks_of_any_size() -> None:
    random = np.random.default_rng(1)
    y = np.arange(10).repeat(15)
    x = 2 * random.normal(size=(10, 12))[y] + 0.3 * random.normal(size=(150, 12))
    x[:, 4:] = 2 * random.normal(size=(150, 8))  # these numbers say nothing
    tasks = gs.ClassTasks(x, y, ways=(3, 8), shots=(1, 4), queries=5)
    torch.manual_seed(0)
    start = gs.MLP(ways=2, features=12, hidden=32)
    metrics = {"accuracy": gs.Metric(accuracy)}
    before, after = (
        gs.evaluate(learner, *learner.init(), tasks, tasks=40, metrics=metrics)["accuracy"].mean
        for learner in map(protonet, (start, gs.supervised_start(start, tasks, iterations=200)))
    )
    assert after > before + 0.1


def test_memory_is_estimated_for_the_largest_tasks() -> None:
    options: dict[str, Any] = {"epochs": 1, "iterations": 1, "val_tasks": 5, "test_tasks": 5}

    def memory(**sizes: Any) -> int:
        tasks = source(**sizes)
        found = gs.estimate(gs.unicorn_maml(small()), tasks, tasks, tasks="loop", **options)
        return found.memory

    largest = memory(ways=(20, 20), shots=(5, 5))
    assert memory(ways=(2, 20), shots=(1, 5)) == largest > memory(ways=(2, 3), shots=(1, 5))
