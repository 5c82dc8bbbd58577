"""All that a run can do, with data and networks of each kind: 1-D signals with dropout, batch norm
and sharing; regression, whose score is best low; and inputs by name.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradshare as gs
from gradshare.inner_loop import Tensors
from gradshare.tasks.batch import tree_map
from gradshare.training import dry_run, loop
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Event
from gradshare.training.statistics import confidence95
from tests.training.killing import (
    in_a_process,
    kill_self,
    latest,
    require_same_tensors,
    tensors_of,
    timeless,
)
from tests.training.small import PROBLEMS, Arguments, poisoned
from tests.training.test_records import scalars
from tests.training.test_resume import at
from tests.training.torchrun import variants

ROOT = Path(__file__).parents[1]
every_problem = pytest.mark.parametrize("problem", PROBLEMS)


# Resume


def fit_until_killed(problem: str, folder: Path, iteration: int, save_often: bool) -> None:
    torch.set_num_threads(1)
    if save_often:
        loop.SAVE_EVERY_SECONDS = -1

    def kill(event: Event) -> None:
        if (event.kind, event.iteration) == ("iteration", iteration):
            kill_self()

    gs.fit(**PROBLEMS[problem](epochs=4, callbacks=[kill]), out=folder, resume="auto")


@every_problem
def test_killed_three_times_and_resumed_a_run_ends_where_it_would_have_bit_for_bit(
    problem: str, tmp_path: Path
) -> None:
    whole = gs.fit(**PROBLEMS[problem](epochs=4), out=tmp_path / "whole")
    folder = tmp_path / "killed"
    # Before the first checkpoint, and within epochs.
    for iteration, save_often in ((2, False), (5, True), (11, True)):
        status = in_a_process(fit_until_killed, problem, folder, iteration, save_often)
        assert status == -signal.SIGKILL
        if save_often:
            assert latest(folder).progress["iteration"] == iteration - 1
    run = gs.fit(**PROBLEMS[problem](epochs=4), out=folder, resume="auto")
    assert timeless(run) == timeless(whole)
    assert run.test == whole.test
    require_same_tensors(latest(whole.path), latest(folder))
    named = tensors_of(latest(folder))
    assert any(name.startswith("optimizer/state/") for name in named)
    assert any(name.startswith("carried/sharing.g_hat") for name in named) == (
        problem != "regression"
    )


# Divergence


class Overflow(gs.UpdateRule):
    """A rule whose update of task 2 is infinite at inner step 2 of iteration 5."""

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        return {}, {"iterations": torch.zeros(())}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: gs.Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        if step.training and step.k == 0:
            carried = {"iterations": carried["iterations"] + 1}
        if step.training and step.k == 1 and carried["iterations"] == 5:
            second = torch.arange(len(step.losses)) == 1
            gradients = {
                n: torch.where(_like(g, second), math.inf, g) for n, g in gradients.items()
            }
        return gradients, carried, task


def _like(gradient: Tensor, tasks: Tensor) -> Tensor:
    return tasks.reshape(-1, *(1 for _ in gradient.shape[1:]))


@every_problem
def test_a_divergence_is_named_by_epoch_iteration_inner_step_and_task(
    problem: str, tmp_path: Path
) -> None:
    run = gs.fit(**PROBLEMS[problem](rule=Overflow()), out=tmp_path / "run")
    assert run.diverged == (
        "epoch 2, iteration 5: the parameters of task 2 are not finite after inner step 2"
    )
    assert [record.epoch for record in run.history] == [1]
    assert run.test is not None
    bad = gs.fit(**poisoned(PROBLEMS[problem](), 5, task=2), out=tmp_path / "bad")
    inputs = "query_x['b']" if problem == "named inputs" else "query_x"
    assert bad.diverged == (
        f"epoch 2, iteration 5: {inputs} of task 2 holds a value that is not finite"
    )


# Several processes


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saved of the runs of every problem, in a folder for each problem."""
    folder = tmp_path_factory.mktemp("torchrun")
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "tests.training.torchrun", str(folder)]
    process = subprocess.run(
        [sys.executable, "-m", *command, *program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.long
@every_problem
def test_two_processes_of_torchrun_are_one_in_float64_and_equal_each_other_bit_for_bit(
    problem: str, by_torchrun: Path, tmp_path: Path
) -> None:
    folder = by_torchrun / problem
    for name in variants(problem):
        one, other = (torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1))
        for ours, theirs in zip(one["parameters"], other["parameters"], strict=True):
            assert torch.equal(ours, theirs)
        for index, state in one["state"].items():
            for key, tensor in state.items():
                assert torch.equal(tensor, other["state"][index][key])
    alone = gs.fit(**variants(problem)["run"], out=tmp_path / "alone")
    ours, theirs = tensors_of(latest(alone.path)), tensors_of(latest(folder / "run"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
    values = [[row["value"] for row in run.table()] for run in (alone, gs.open_run(folder / "run"))]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


# TensorBoard


@every_problem
def test_tensorboard_has_each_epoch_once_also_after_a_stop(problem: str, tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError):
        gs.fit(**PROBLEMS[problem](progress=at("validate", 6)), out=tmp_path / "run")
    run = gs.fit(**PROBLEMS[problem](), out=tmp_path / "run", resume="auto")
    found = scalars(run.path / "tensorboard")
    assert len({(tag, epoch) for tag, epoch, _ in found}) == len(found)
    score = {epoch: value for tag, epoch, value in found if tag == f"validation/{run.score}"}
    expected = {record.epoch: record.mean(run.score) for record in run.history}
    assert score == pytest.approx(expected, rel=1e-6)
    assert sorted(expected) == [1, 2, 3]


# Dry run


@every_problem
def test_a_dry_run_says_what_the_run_would_take_and_writes_nothing(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "REPETITIONS", 1)
    given = PROBLEMS[problem]()
    del given["progress"]
    found = gs.estimate(**given, out=tmp_path / "run")
    for quantity in (found.run, found.epoch, found.validation, found.test, found.disk):
        assert quantity > 0
    assert str(found).startswith("layout ")
    assert list(tmp_path.iterdir()) == []


# Evaluation


@every_problem
def test_a_run_is_evaluated_with_other_shots_more_steps_and_other_tasks(
    problem: str, tmp_path: Path
) -> None:
    given = PROBLEMS[problem]()
    run = gs.fit(**given, out=tmp_path / "run")
    source = given["validation"].replace(shots=3)
    found = run.evaluate(source, tasks=12, steps=4)
    learner, (meta, carried) = given["learner"], run.tensors()
    for index in range(12):
        task = source.batch([index])
        outputs = learner.predict(meta, learner.adapt(meta, carried, task, steps=4), task)[0]
        for name, metric in run.metrics.items():
            value = float(metric.function(outputs, task.query_y[0]))
            assert found.values[name][index] == pytest.approx(value, rel=1e-4)
    score = found.values[run.score]
    assert found[run.score] == confidence95(score)
    assert str(found).startswith(f"{run.score} ")
    assert "(12 tasks, 4 inner steps" in str(found)
    high = run.metrics[run.score].best == "high"
    assert found.worst(3) == sorted(enumerate(score), key=lambda t: t[1], reverse=not high)[:3]


# Classifier


@every_problem
def test_new_classes_are_learned_by_the_classifier_and_other_targets_by_adapting(
    problem: str, tmp_path: Path
) -> None:
    given: Arguments = PROBLEMS[problem](ensemble=1)
    run = gs.fit(**given, out=tmp_path / "run")
    task = given["test"].batch([7])
    (x, y), (queries, targets) = (
        (tree_map(lambda t: t[0], part) for part in pair)
        for pair in ((task.support_x, task.support_y), (task.query_x, task.query_y))
    )
    value = run.evaluate(given["test"], tasks=8).values[run.score][7]
    if problem == "regression":
        outputs = run.adapt(x.numpy(), y.numpy())(queries).detach()
        assert float(F.mse_loss(outputs, targets)) == pytest.approx(value, rel=1e-5)
    else:
        names = ["first", "second", "third"]
        labels, expected = ([names[code] for code in part] for part in (y, targets))
        classifier = gs.FewShotClassifier(run).fit(x, labels)
        assert classifier.classes_.tolist() == names
        assert classifier.score(queries, expected) == pytest.approx(value)
        assert run.adapt(x, labels).classes == tuple(names)


def test_a_classifier_of_other_targets_is_refused(tmp_path: Path) -> None:
    run: Any = gs.fit(**PROBLEMS["regression"](), out=tmp_path / "run")
    with pytest.raises(gs.ConfigError, match=r"are not classes; use run\.adapt"):
        gs.FewShotClassifier(run).fit([[0.0]], [0])
