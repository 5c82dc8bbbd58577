"""Losses and gradients that are not finite: how they are named, and how a run goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.errors import RunError
from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner, maml, maml_plus_plus, meta_sgd
from gradshare.methods.learner import Loss
from gradshare.tasks import TaskBatch
from gradshare.training import loop
from gradshare.training.divergence import diagnose
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.run import Run
from tests.training.killing import latest, require_same_end, require_same_tensors, timeless
from tests.training.small import Prototypes, mlp, poisoned, rows


class Line(nn.Module):
    """w · x, of one number a task, so that every value can be worked out by hand."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x.flatten(1).mean(1)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """With its gradient in w: (w x - y) x."""
    return (outputs - targets).square().mean() / 2


def tasks_of(support: list[float], query: list[float], target: float = 0.0) -> TaskBatch:
    def images(values: list[float]) -> Tensor:
        return torch.tensor(values).reshape(-1, 1, 1, 1, 1)

    targets = torch.full((len(support), 1), target)
    return TaskBatch(images(support), targets, images(query), targets)


def fault(
    learner: MetaLearner, tasks: TaskBatch, meta: Tensors | None = None
) -> tuple[str | None, str | None]:
    """Why the step was refused, and the diagnosis."""
    start, carried = learner.init()
    meta = start if meta is None else meta
    before = {name: tensor.detach().clone() for name, tensor in meta.items()}
    optimizer = torch.optim.Adam(meta.values(), lr=0.1)
    result = outer_iteration(learner, meta, carried, optimizer, tasks, iteration=0, metrics={})
    found = diagnose(learner, meta, carried, tasks, iteration=0)
    assert (found is None) == (result.refused is None)
    if result.refused is not None:
        assert result.carried is carried
        assert not optimizer.state
        for name, tensor in meta.items():
            torch.testing.assert_close(tensor.detach(), before[name], equal_nan=True)
            assert tensor.grad is None
    return result.refused, found


@pytest.mark.parametrize("sharing", [False, True])
def test_what_is_finite_is_not_blamed(sharing: bool) -> None:
    rule = gs.GradientSharing() if sharing else None
    learner = maml(Line(1.0), steps=3, inner_lr=0.1, loss=half_square, sharing=rule)
    assert fault(learner, tasks_of([1.0, 2.0], [1.0, 2.0])) == (None, None)


def test_a_support_loss_is_named_with_its_task_and_inner_step() -> None:
    # w is multiplied by 1 - 1e8 in each step of the second task, and its square overflows at the
    # third; the first task's w halves.
    learner = maml(Line(1.0), steps=4, inner_lr=0.5, loss=half_square)
    tasks = tasks_of([1.0, 2e4**0.5 * 1e2], [1.0, 1.0])
    assert fault(learner, tasks)[1] == "the support loss of task 2 is not finite at inner step 3"


def test_a_gradient_with_a_finite_loss_is_named() -> None:
    # √(w x) at w = 0 is 0, with an infinite slope.
    learner = maml(Line(0.0), steps=1, inner_lr=0.1, loss=lambda outputs, _: outputs.sqrt().mean())
    assert fault(learner, tasks_of([1.0, 1.0], [1.0, 1.0]))[1] == (
        "the gradient of task 1's support loss is not finite at inner step 1"
    )


def test_parameters_that_overflow_in_an_update_are_named() -> None:
    learner = meta_sgd(Line(1.0), steps=2, inner_lr=1e30, loss=half_square)
    tasks = tasks_of([1.0, 1e5], [1.0, 1.0])
    assert fault(learner, tasks)[1] == (
        "the parameters of task 2 are not finite after inner step 1"
    )


def test_a_query_loss_is_named() -> None:
    learner = maml(Line(1.0), steps=2, inner_lr=0.1, loss=half_square)
    assert fault(learner, tasks_of([1.0, 1.0, 1.0], [1.0, 1.0, 1e30])) == (
        "the outer loss is inf",
        "the query loss of task 3 is not finite after inner step 2",
    )


def test_the_multi_step_loss_is_looked_at_after_every_step() -> None:
    learner = maml_plus_plus(
        Line(1.0), steps=2, inner_lr=0.1, loss=half_square, multi_step_iterations=10
    )
    assert fault(learner, tasks_of([1.0], [1e30]))[1] == (
        "the query loss of task 1 is not finite after inner step 1"
    )


def for_queries(loss: Loss) -> Loss:
    """`half_square` for the support set, whose targets are 0, and another loss for the queries."""
    return lambda outputs, targets: (loss if bool(targets.any()) else half_square)(outputs, targets)


def with_query_targets(tasks: TaskBatch) -> TaskBatch:
    return dataclasses.replace(tasks, query_y=torch.ones_like(tasks.query_y))


def test_an_outer_gradient_alone_is_named_with_its_tensor_and_task() -> None:
    # w = 0 stays 0, so every loss and task gradient is finite. But the way back through an inner
    # step multiplies by 1 - x² = -1e26 for the second task: after one it is finite, after two not.
    loss = for_queries(lambda outputs, _: outputs.mean())
    learner = maml(Line(0.0), steps=3, inner_lr=1.0, loss=loss)
    assert fault(learner, with_query_targets(tasks_of([1.0, 1e13], [1.0, 1.0]))) == (
        "the outer gradient of model.w is not finite",
        "the outer gradient of model.w from task 2 is not finite",
    )


@pytest.mark.parametrize("second_order", [True, False])
def test_an_outer_gradient_can_overflow_at_the_queries(second_order: bool) -> None:
    loss = for_queries(lambda outputs, _: outputs.sqrt().mean())  # at 0, see above
    learner = maml(Line(0.0), steps=1, inner_lr=0.1, loss=loss, second_order=second_order)
    assert fault(learner, with_query_targets(tasks_of([1.0], [1.0])))[1] == (
        "the outer gradient of model.w from task 1 is not finite"
    )


def test_the_outer_gradient_of_a_tensor_that_a_rule_learns_is_named() -> None:
    # The update is α ∘ G with α = 1e-35 and G = w x² = 1e30: w hardly moves, but the query loss's
    # gradient in α is its gradient in w, 1e15, times G.
    learner = meta_sgd(Line(1.0), steps=1, inner_lr=1e-35, loss=half_square)
    assert fault(learner, tasks_of([1e15], [3e7]))[1] == (
        "the outer gradient of meta_sgd.alpha.w from task 1 is not finite"
    )


def test_parameters_that_are_not_finite_are_named_first() -> None:
    learner = maml(Line(1.0), steps=1, inner_lr=0.1, loss=half_square)
    meta = {"model.w": torch.tensor(float("inf"), requires_grad=True)}
    assert fault(learner, tasks_of([1.0], [1.0]), meta)[1] == "model.w is not finite"


def test_of_another_learner_the_task_is_named() -> None:
    learner = Prototypes(nn.Linear(6, 4))
    tasks = rows()["train"].batch(range(2))
    tasks.query_x[1, 0] = 1e38  # its distances overflow
    assert diagnose(learner, *learner.init(), tasks, iteration=0) == (
        "the outer loss of task 2 is not finite"
    )


def test_the_outer_loss_of_a_prototypical_network_is_named_with_its_task() -> None:
    tasks = rows()["train"].batch(range(2))
    tasks.query_x[1, 0] = 1e38
    body = nn.Linear(6, 4, bias=False)
    nn.init.constant_(body.weight, 1e3)  # its outputs overflow
    learner = gs.protonet(nn.Sequential(body, nn.Linear(4, 3)))
    assert fault(learner, tasks)[1] == "the outer loss of task 2 is not finite"


@pytest.mark.parametrize("part", ["support_x", "query_x", "query_y"])
def test_inputs_and_targets_that_are_not_finite_are_named_first(part: str) -> None:
    learner = gs.maml(Line(1.0), steps=2, inner_lr=0.1, loss=half_square)
    for value in (math.nan, math.inf):
        tasks = tasks_of([1.0, 1.0], [1.0, 1.0]).map(torch.clone)
        getattr(tasks, part)[1, 0] = value
        assert fault(learner, tasks)[1] == f"{part} of task 2 holds a value that is not finite"


def test_values_that_are_not_finite_in_the_padding_are_not_blamed() -> None:
    learner = gs.maml(Line(1.0), steps=2, inner_lr=0.1, loss=half_square)
    x, y = torch.ones(2, 3, 1), torch.zeros(2, 3)
    tasks = TaskBatch(x, y, x.clone(), y, query_n=(2, 3))
    tasks.query_x[0, 2] = math.nan
    assert fault(learner, tasks) == (None, None)


# Runs

FAULT = "query_x of task 1 holds a value that is not finite"


def fit(path: Path, bad: Sequence[int] = (5,), **changes: Any) -> Run:
    """A run of which some iterations have a query that is infinite."""
    return gs.fit(**poisoned(rows(**changes), *bad), out=path, resume="auto")


def test_a_huge_inner_rate_is_found_where_it_strikes(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", bad=(), learner=maml(mlp(), inner_lr=1e38))
    assert run.diverged is not None
    assert run.diverged.startswith("epoch 1, iteration 1: the ")
    assert "task 1" in run.diverged
    assert "inner step" in run.diverged
    assert run.test is None


def test_a_diagnosis_that_does_not_fit_in_memory_leaves_the_reason_of_the_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(loop, "diagnose", exhausted)
    assert fit(tmp_path / "run").diverged == "epoch 2, iteration 5: the outer loss is nan"


def test_a_huge_outer_rate_is_a_result_and_is_not_tested(tmp_path: Path) -> None:
    # Adam at this rate makes the parameters overflow within a few iterations.
    adam = lambda groups: torch.optim.Adam(groups, lr=1e37)  # noqa: E731
    run = fit(tmp_path / "run", bad=(), optimizer=adam)
    assert run.diverged is not None
    assert run.diverged.startswith("epoch 1, iteration ")
    assert run.test is None
    with pytest.raises(RunError, match="has completed no epoch: it goes on, was stopped, or dive"):
        run.models()


def test_record_ends_the_run_with_its_divergence_and_tests_its_good_epochs(
    tmp_path: Path,
) -> None:
    run = fit(tmp_path / "run", bad=(8,))
    assert run.diverged == f"epoch 3, iteration 8: {FAULT}"
    assert [record.epoch for record in run.history] == [1, 2]
    assert run.test is not None
    assert run.test.members == 2
    require_same_end(run, fit(tmp_path / "run", bad=(8,)))
    assert gs.open_run(tmp_path / "run").diverged == run.diverged


def test_stop_ends_with_an_error_and_can_be_continued(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunError) as error:
        fit(folder, on_divergence="stop")
    assert str(error.value) == (
        f"epoch 2, iteration 5: {FAULT}; {folder} holds the run as it was after iteration 4: "
        "continue it (resume='auto', --resume auto) with on_divergence='skip' or 'record', or "
        "start another with a lower inner or outer learning rate"
    )
    assert latest(folder).progress["iteration"] == 4
    with pytest.raises(RunError, match="iteration 5"):
        fit(folder, on_divergence="stop")
    continued = fit(folder, on_divergence="skip")
    assert timeless(continued) == timeless(fit(tmp_path / "skipped", on_divergence="skip"))


def test_skip_leaves_everything_as_it_was_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", -1)  # a moment after each iteration
    moments: dict[int, Any] = {}

    def look(progress: Progress) -> None:
        if progress.phase == "train" and progress.done in (5, 6):
            moments[progress.done - 1] = latest(tmp_path / "run")

    run = fit(tmp_path / "run", on_divergence="skip", progress=look)
    require_same_tensors(moments[4], moments[5])
    assert [moments[done].progress["iteration"] for done in (4, 5)] == [4, 5]
    assert run.diverged is None
    assert [record.skipped for record in run.history] == [0, 1, 0]
    assert run.history[1].first_skipped == f"epoch 2, iteration 5: {FAULT}"
    assert all(0 < record.mean("loss", "train") < 10 for record in run.history)
    line = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1]
    assert json.loads(line)["skipped"] == 1


def test_the_training_metrics_are_means_over_the_iterations_that_were_taken(
    tmp_path: Path,
) -> None:
    # With one iteration to an epoch its record shows that iteration's metrics.
    changes: dict[str, Any] = {"bad": (2,), "on_divergence": "skip"}
    (together,) = fit(tmp_path / "together", epochs=1, iterations=3, **changes).history
    apart = fit(tmp_path / "apart", epochs=3, iterations=1, **changes).history
    for name in ("loss", "accuracy"):
        one, none, other = (record.mean(name, "train") for record in apart)
        assert math.isnan(none)  # nothing was learned from in that epoch
        assert together.mean(name, "train") == pytest.approx((one + other) / 2)


@pytest.mark.parametrize("stop_after", [4, 5, 6])
def test_a_run_that_skips_goes_on_to_where_it_would_have_been(
    stop_after: int, tmp_path: Path
) -> None:
    learner = maml_plus_plus(mlp(), multi_step_iterations=6, steps=2, sharing=True)
    changes: dict[str, Any] = {"bad": (4, 5, 9), "on_divergence": "skip", "learner": learner}
    whole = fit(tmp_path / "whole", **changes)

    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStoppedError):
        fit(tmp_path / "stopped", progress=stop, **changes)
    require_same_end(whole, fit(tmp_path / "stopped", **changes))


def test_a_run_that_does_nothing_but_skip_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MOST_SKIPPED_IN_A_ROW", 4)
    run = fit(tmp_path / "run", bad=(2, 3, 5, 6, 7, 8, 9), on_divergence="skip")
    assert run.diverged == f"epoch 3, iteration 8: {FAULT} (the last of 4 in a row to be refused)"
    assert [record.skipped for record in run.history] == [2, 2]


class Overflowing(torch.optim.Adam):
    """An optimiser whose sixth step, the last of the second epoch, makes a parameter infinite."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        parameter = self.param_groups[0]["params"][-1]
        if self.state[parameter]["step"] == 6:
            parameter.data.fill_(math.inf)
        return result


@pytest.mark.parametrize("what", ["stop", "skip", "record"])
def test_parameters_that_the_optimiser_itself_overflows_are_never_the_good_moment(
    what: str, tmp_path: Path
) -> None:
    def overflowing() -> Run:
        return fit(tmp_path / "run", bad=(), on_divergence=what, optimizer=Overflowing)

    if what == "stop":
        with pytest.raises(RunError) as error:
            overflowing()
        assert str(error.value).startswith(
            f"epoch 2, iteration 6: sharing.lambda is not finite; {tmp_path / 'run'} holds the run "
            "as it was after iteration 3: "
        )
        assert latest(tmp_path / "run").meta["sharing.lambda"].isfinite().all()
    else:
        run = overflowing()
        assert run.diverged == "epoch 2, iteration 6: sharing.lambda is not finite"
        assert [record.epoch for record in run.history] == [1]
