"""Losses and gradients that are not finite: where they are found, and what a run does then."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradshare.config import RunConfig
from gradshare.errors import RunError
from gradshare.inner_loop import GradientSharing, Tensors
from gradshare.methods import MetaLearner, maml, maml_plus_plus, meta_sgd
from gradshare.methods.meta_learner import Loss
from gradshare.tasks import TaskBatch
from gradshare.training import run
from gradshare.training.checkpoint import load_checkpoint
from gradshare.training.divergence import diagnose
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.outer_loop import make_optimizer, outer_iteration
from gradshare.training.run import Progress, RunResult, train

CPU = torch.device("cpu")


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
    learner: MetaLearner, tasks: TaskBatch, learned: Tensors | None = None
) -> tuple[str | None, str | None]:
    """Why the step was refused, and the diagnosis."""
    start, state = learner.init()
    learned = start if learned is None else learned
    before = {name: tensor.detach().clone() for name, tensor in learned.items()}
    optimizer = make_optimizer(learned, 0.1)
    result = outer_iteration(
        learner, learned, state, optimizer, tasks, iteration=0, clamp_gradients=None
    )
    found = diagnose(learner, learned, state, tasks, iteration=0)
    assert (found is None) == (result.refused is None)
    if result.refused is not None:
        assert result.state is state
        assert not optimizer.state
        for name, tensor in learned.items():
            torch.testing.assert_close(tensor.detach(), before[name], equal_nan=True)
            assert tensor.grad is None
    return result.refused, found


@pytest.mark.parametrize("sharing", [False, True])
def test_what_is_finite_is_not_blamed(sharing: bool) -> None:
    rule = GradientSharing(3) if sharing else None
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


def test_an_outer_gradient_alone_is_named_with_the_step_that_it_does_not_get_through() -> None:
    # w = 0 stays 0, so every loss and task gradient is finite. But the way back through an inner
    # step multiplies by 1 - x² = -1e26 for the second task: after one it is finite, after two not.
    loss = for_queries(lambda outputs, _: outputs.mean())
    learner = maml(Line(0.0), steps=3, inner_lr=1.0, loss=loss)
    assert fault(learner, with_query_targets(tasks_of([1.0, 1e13], [1.0, 1.0]))) == (
        "the outer gradient of model.w is not finite",
        "the outer gradient of model.w from task 2 is not finite behind inner step 2",
    )


@pytest.mark.parametrize("second_order", [True, False])
def test_an_outer_gradient_can_overflow_at_the_queries(second_order: bool) -> None:
    loss = for_queries(lambda outputs, _: outputs.sqrt().mean())  # at 0, see above
    learner = maml(Line(0.0), steps=1, inner_lr=0.1, loss=loss, second_order=second_order)
    assert fault(learner, with_query_targets(tasks_of([1.0], [1.0])))[1] == (
        "the outer gradient of model.w from task 1 is not finite, from the query loss on"
    )


def test_the_gradient_of_what_a_rule_learns_is_named_without_a_step() -> None:
    # The update is α ∘ G with α = 1e-35 and G = w x² = 1e30: w hardly moves, but the query loss's
    # gradient in α is its gradient in w, 1e15, times G.
    learner = meta_sgd(Line(1.0), steps=1, inner_lr=1e-35, loss=half_square)
    assert fault(learner, tasks_of([1e15], [3e7]))[1] == (
        "the outer gradient of meta_sgd.alpha.w from task 1 is not finite"
    )


def test_parameters_that_are_not_finite_are_named_first() -> None:
    learner = maml(Line(1.0), steps=1, inner_lr=0.1, loss=half_square)
    learned = {"model.w": torch.tensor(float("inf"), requires_grad=True)}
    assert fault(learner, tasks_of([1.0], [1.0]), learned)[1] == "model.w is not finite"


# What a run does


def poison(monkeypatch: pytest.MonkeyPatch, *iterations: int) -> None:
    """Give the first task of some iterations, counted from 1, a query image that is infinite."""

    def poisoned(*arguments: Any, **options: Any) -> Any:
        if options["iteration"] + 1 in iterations:
            arguments[4].query_x[0, 0] = float("inf")
        return outer_iteration(*arguments, **options)

    monkeypatch.setattr(run, "outer_iteration", poisoned)


FAULT = "the query loss of task 1 is not finite after inner step 2"


def timeless(result: RunResult) -> list[dict[str, Any]]:
    return [{**record.to_json(), "seconds": 0} for record in result.history]


def latest(folder: Path) -> Any:
    return load_checkpoint(sorted((folder / "checkpoints").glob("latest-*"))[-1], CPU)


def test_a_huge_inner_rate_is_found_where_it_strikes(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig(**{**tiny, "inner_lr": 1e30, "sharing": False})
    result = train(config, tmp_path / "run")
    assert result.diverged is not None
    assert result.diverged.startswith("epoch 1, iteration 1: the ")
    assert "task 1" in result.diverged
    assert "inner step" in result.diverged
    assert result.test is None


def test_record_ends_the_run_with_its_divergence(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 5)
    result = train(RunConfig(**tiny), tmp_path / "run")
    assert result.diverged == f"epoch 2, iteration 5: {FAULT}"
    assert [record.epoch for record in result.history] == [1]
    assert result.test is not None


def test_stop_ends_with_an_error_and_can_be_continued(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    poison(monkeypatch, 5)
    stop, skip = (RunConfig(**{**tiny, "on_divergence": what}) for what in ("stop", "skip"))
    with pytest.raises(RunError) as error:
        train(stop, folder)
    assert str(error.value) == (
        f"epoch 2, iteration 5: {FAULT}; {folder} holds the run as it was after iteration 4: "
        "continue it with --resume auto and --on-divergence skip or record, or start another with "
        "a lower --inner-lr than 0.1 or --outer-lr than 0.001"
    )
    assert latest(folder).progress["iteration"] == 4
    with pytest.raises(RunError, match="iteration 5"):
        train(stop, folder, resume=True)
    continued = train(skip, folder, resume=True)
    assert RunFolder(folder).config() == skip
    assert timeless(continued) == timeless(train(skip, tmp_path / "skipped"))


def test_skip_leaves_everything_as_it_was_and_goes_on(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(**{**tiny, "on_divergence": "skip"})
    monkeypatch.setattr(run, "SAVE_EVERY_SECONDS", -1)  # a moment after every iteration
    moments: dict[int, Any] = {}

    def look(progress: Progress) -> None:
        if progress.phase == "train" and progress.done in (5, 6):
            moments[progress.done - 1] = latest(tmp_path / "run")

    poison(monkeypatch, 5)
    result = train(config, tmp_path / "run", look)
    before, after = moments[4], moments[5]
    for part in ("learned", "state", "optimizer"):
        one, other = getattr(before, part), getattr(after, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (before.progress["iteration"], after.progress["iteration"]) == (4, 5)
    assert result.diverged is None
    assert [record.skipped for record in result.history] == [0, 1, 0]
    assert result.history[1].first_skipped == f"epoch 2, iteration 5: {FAULT}"
    assert all(0 < record.train_loss < 10 for record in result.history)
    line = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1]
    assert json.loads(line)["skipped"] == 1


def test_the_training_loss_is_the_mean_over_the_iterations_that_were_taken(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With one iteration to an epoch its record shows that iteration's loss.
    settings = {**tiny, "epochs": 1, "iterations_per_epoch": 3, "on_divergence": "skip"}
    poison(monkeypatch, 2)
    (together,) = train(RunConfig(**settings), tmp_path / "together").history
    apart = train(
        RunConfig(**{**settings, "epochs": 3, "iterations_per_epoch": 1}), tmp_path / "apart"
    ).history
    assert apart[1].train_loss != apart[1].train_loss  # nothing was learned from in that epoch
    assert together.train_loss == pytest.approx((apart[0].train_loss + apart[2].train_loss) / 2)


@pytest.mark.parametrize("stop_after", [4, 5, 6])
def test_a_run_that_skips_is_continued_to_where_it_would_have_been(
    stop_after: int, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(**{**tiny, "on_divergence": "skip", "method": "maml++"})
    poison(monkeypatch, 4, 5, 9)
    whole = train(config, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStoppedError):
        train(config, tmp_path / "stopped", stop)
    resumed = train(config, tmp_path / "stopped", resume=True)
    assert timeless(resumed) == timeless(whole)
    assert resumed.test == whole.test
    one, other = latest(tmp_path / "whole"), latest(tmp_path / "stopped")
    for part in ("learned", "state", "optimizer"):
        for name, tensor in getattr(one, part).items():
            assert torch.equal(tensor, getattr(other, part)[name]), name


def test_a_run_that_does_nothing_but_skip_ends(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MOST_SKIPPED_IN_A_ROW", 4)
    config = RunConfig(**{**tiny, "on_divergence": "skip"})
    poison(monkeypatch, 2, 3, *range(5, 10))
    result = train(config, tmp_path / "run")
    assert result.diverged == (
        f"epoch 3, iteration 8: {FAULT} (the last of 4 in a row to be refused)"
    )
    assert [record.skipped for record in result.history] == [2, 2]


@pytest.mark.parametrize("what", ["stop", "skip", "record"])
def test_parameters_that_the_optimiser_itself_overflows_are_never_the_good_moment(
    what: str, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(*arguments: Any, **options: Any) -> Any:
        result = outer_iteration(*arguments, **options)
        if options["iteration"] == 5:  # the last of the second epoch
            arguments[1]["sharing.m"].data.fill_(float("inf"))
        return result

    monkeypatch.setattr(run, "outer_iteration", overflowing)
    config = RunConfig(**{**tiny, "on_divergence": what})
    if what == "stop":
        with pytest.raises(RunError) as error:
            train(config, tmp_path / "run")
        assert str(error.value).startswith(
            f"epoch 2, iteration 6: sharing.m is not finite; {tmp_path / 'run'} holds the run as "
            "it was after iteration 3: "
        )
        assert latest(tmp_path / "run").learned["sharing.m"].isfinite().all()
    else:
        result = train(config, tmp_path / "run")
        assert result.diverged == "epoch 2, iteration 6: sharing.m is not finite"
        assert [record.epoch for record in result.history] == [1]
