"""The layout of a run: what was asked for, what "auto" means, and that no result depends on it."""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.errors import ConfigError
from gradshare.training import layout as module
from gradshare.training.folder import RunFolder
from gradshare.training.layout import Layout, Memory, Tasks, choose_layout
from tests.training.killing import timeless
from tests.training.small import PROBLEMS, ROWS, WAYS, Prototypes, mlp, rows, seeded


def chosen(
    learner: Any, batch: gs.TaskBatch | None = None, *, task_batch: int = 4, **asked: Any
) -> Layout:
    asked = {"tasks": "auto", "memory": "auto", **asked}
    batch = batch or ROWS[0].batch(range(2))
    return choose_layout(learner, learner.init(), batch, task_batch=task_batch, **asked)


def maml(**options: Any) -> gs.MetaLearner:
    return gs.maml(mlp(), **{"steps": 3, "sharing": True, **options})


def test_auto_keeps_graphs_up_to_a_limit_and_computes_tasks_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = chosen(maml())
    assert (kept.tasks, kept.memory) == ("vmap", "keep")
    monkeypatch.setitem(module.KEPT_UP_TO, "cpu", kept.bytes)
    assert chosen(maml()) == kept
    monkeypatch.setitem(module.KEPT_UP_TO, "cpu", kept.bytes - 1)
    found = chosen(maml())
    assert (found.tasks, found.memory) == ("vmap", "recompute")


@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_tasks_that_share_nothing_are_computed_in_equal_groups_of_a_limited_size(
    monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    one = chosen(maml(sharing=False), task_batch=1, memory="keep", tasks="vmap").bytes

    def together(limit: int, task_batch: int) -> tuple[str, int | None]:
        monkeypatch.setitem(module.AT_ONCE[memory], "cpu", limit)
        found = chosen(maml(sharing=False), task_batch=task_batch, memory=memory, tasks="vmap")
        return found.tasks, found.together

    assert together(100 * one, 5) == ("vmap", None)
    assert together(1, 5) == ("loop", None)
    if memory == "keep":  # with recompute a task needs less
        assert together(4 * one, 5) == ("vmap", 3)


def test_the_memory_of_many_recomputed_steps_grows_with_their_square_root() -> None:
    plain = (maml(steps=k, sharing=False) for k in (100, 400))
    few, many = (chosen(learner, memory="recompute").bytes for learner in plain)
    assert many < 2.1 * few


@pytest.mark.parametrize("tasks", [name for name in get_args(Tasks) if name != "auto"])
@pytest.mark.parametrize("memory", [name for name in get_args(Memory) if name != "auto"])
def test_what_is_asked_for_is_what_is_done(tasks: str, memory: str) -> None:
    found = chosen(maml(), tasks=tasks, memory=memory)
    assert (found.tasks, found.memory) == (tasks, memory)
    assert chosen(maml(), memory=memory).memory == memory
    assert chosen(maml(), tasks=tasks).tasks == tasks


@pytest.mark.parametrize(
    "more",
    [
        {"learner": maml(steps=6)},
        {"task_batch": 8},
        {"learner": gs.maml_plus_plus(mlp(), multi_step_iterations=5, steps=3, sharing=True)},
    ],
)
def test_more_work_takes_more(more: dict[str, Any]) -> None:
    assert chosen(**{"learner": maml(), **more}).bytes > chosen(maml()).bytes


@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_a_learner_with_one_inner_step_is_measured_too(memory: str) -> None:
    for method in (gs.maml, gs.meta_sgd, gs.unicorn_maml):
        learner = method(mlp(), steps=1, sharing=True)
        assert 0 < chosen(learner, memory=memory).bytes < chosen(maml(), memory=memory).bytes


def test_recomputing_takes_hardly_more_for_more_steps() -> None:
    # With 300 examples, activations take more memory than parameters, as in most networks.
    x, y = torch.randn(2, 300, 6), torch.arange(WAYS).repeat(100).expand(2, 300)
    batch = gs.TaskBatch(x, y, x, y)

    def growth(memory: str) -> int:
        few, many = (
            chosen(maml(steps=k), batch, tasks="loop", memory=memory).bytes for k in (2, 20)
        )
        return many - few

    assert 0 < growth("recompute") < growth("keep") / 4


def test_tasks_are_taken_apart_unless_the_rule_or_the_outer_objective_compares_them() -> None:
    class WorstTask(gs.MetaLearner):
        def outer_step(self, *arguments: Any, **options: Any) -> Any:
            step = super().outer_step(*arguments, **options)
            return replace(step, objective=step.objective * step.losses.softmax(0))

    rule = gs.SGD(0.1)
    assert chosen(gs.MetaLearner(mlp(), rule)).separate
    assert not chosen(maml()).separate
    assert not chosen(WorstTask(mlp(), rule)).separate


class Activation(torch.autograd.Function):
    """tanh, which saves its output; `calls` has the contexts of those whose graph is alive."""

    calls: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        Activation.calls.add(ctx)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        grad: Tensor = v * (1 - y * y)
        return grad


class Active(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Activation.apply(self.linear(x))  # type: ignore[no-untyped-call]
        return y


@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_a_trial_leaves_no_graph_in_memory(memory: str) -> None:
    chosen(gs.maml(Active(), steps=2), tasks="loop", memory=memory)
    assert not list(Activation.calls)


class Untraceable(nn.Module):
    """A network that vmap can't take, since it looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        with seeded():
            self.linear = nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y if bool(y.sum() > -1e9) else -y


def test_a_model_that_vmap_cannot_take_is_computed_task_by_task_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = gs.fit(**rows(learner=gs.maml(Untraceable(), steps=2)), out=tmp_path / "run")
    assert "tasks one at a time (loop)" in run.environment["layout"]
    (message,) = caplog.messages
    assert message.startswith("Untraceable can't be computed for all tasks at once; ")


def test_memory_that_runs_out_under_vmap_is_not_taken_for_a_model_that_vmap_cannot_take() -> None:
    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()
            self.calls = [0]

        def forward(self, x: Tensor) -> Tensor:
            self.calls[0] += 1
            if self.calls[0] == 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            y: Tensor = self.inner(x)
            return y

    learner = gs.maml(Hungry(), steps=1).laid_out(tasks_at_a_time=None, recompute=False)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        learner.adapt(*learner.init(), ROWS[0].batch(range(2)))
    assert learner.network.vmaps


def test_a_learner_that_has_no_layouts_is_left_as_it_is(tmp_path: Path) -> None:
    learner = Prototypes(mlp())
    found = chosen(learner)
    assert found == Layout("loop", "keep", 0)
    assert found.applied(learner) is learner
    laid_out = Layout("vmap", "recompute", 0).applied(maml())
    assert isinstance(laid_out, gs.MetaLearner)
    assert (laid_out.tasks_at_a_time, laid_out.recompute) == (None, True)


def test_a_layout_in_words() -> None:
    assert Layout("vmap", "keep", 0).describe() == "tasks all at once (vmap), graphs kept (keep)"
    assert Layout("loop", "recompute", 0).describe() == (
        "tasks one at a time (loop), graphs built again in the backward pass (recompute)"
    )


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_run_is_the_same_in_each_layout(problem: str, tmp_path: Path) -> None:
    options = {"dropout": 0.0} if problem == "signals" else {}
    losses = {}
    for memory in ("keep", "recompute"):
        for tasks in ("loop", "vmap"):
            given = PROBLEMS[problem](**options, memory=memory, tasks=tasks)
            run = gs.fit(**given, out=tmp_path / f"{memory}-{tasks}")
            laid_out = run.environment["layout"]
            assert f"({memory})" in laid_out
            assert f"({tasks})" in laid_out
            losses[memory, tasks] = [record.mean("loss", "train") for record in run.history]
    for found in losses.values():
        assert found == pytest.approx(losses["keep", "loop"], rel=1e-4)


def test_a_run_goes_on_in_the_layout_that_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gs.fit(**rows(epochs=4), out=tmp_path / "whole")
    gs.fit(**rows(epochs=2), out=tmp_path / "run")
    monkeypatch.setitem(module.KEPT_UP_TO, "cpu", 0)  # another version's limit
    extended = gs.fit(**rows(epochs=4), out=tmp_path / "run", resume="auto")
    assert timeless(extended) == timeless(whole)
    assert RunFolder(tmp_path / "run").contents()["layout"]["memory"] == "keep"
    assert "(keep)" in extended.environment["layout"]


class Mean(gs.UpdateRule):
    """Adds the mean gradient of the tasks, without `sum_over_tasks`."""

    def update(self, gradients: Any, meta: Any, carried: Any, task: Any, step: Any) -> Any:
        return {n: 0.1 * (g + g.mean(0)) for n, g in gradients.items()}, carried, task


class Best(gs.UpdateRule):
    """Carries the lowest loss so far, which the first iterations may leave as it is."""

    def init(self, params: Any, steps: int) -> Any:
        return {}, {"best": torch.tensor(-1.0)}

    def update(self, gradients: Any, meta: Any, carried: Any, task: Any, step: Any) -> Any:
        best = step.losses.detach().min()
        carried = {"best": best} if best < carried["best"] else carried
        return {n: 0.1 * g for n, g in gradients.items()}, carried, task


@pytest.mark.parametrize("tasks", ["loop", "vmap"])
@pytest.mark.parametrize("rule", [Mean(), Best()], ids=lambda rule: type(rule).__name__)
def test_tasks_of_a_rule_that_mixes_them_by_itself_or_carries_something_stay_together(
    rule: gs.UpdateRule, tasks: str
) -> None:
    assert not chosen(gs.MetaLearner(mlp(), rule, steps=2), tasks=tasks).separate
    assert chosen(maml(sharing=False), tasks=tasks).separate


class Noisy(nn.Module):
    """A network with noise of numpy, which is not replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()
        self.generator = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x + self.generator.normal())
        return y


def test_a_model_with_hidden_state_trains_with_graphs_kept_only(tmp_path: Path) -> None:
    few = rows(learner=gs.maml(Noisy(), steps=2), epochs=1, iterations=1)
    with pytest.raises(ConfigError, match="use memory='keep'"):
        gs.fit(**few, out=tmp_path / "refused", memory="recompute")
    assert gs.fit(**few, out=tmp_path / "run", memory="keep").history
