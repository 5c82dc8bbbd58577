"""What cannot be trained with is said in one error, with cause, value and remedy, before a folder
is made.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradshare as gs
from gradshare.errors import ConfigError, DataError, GradshareError, RunError
from tests.training.small import ROWS, Wrapped, mlp, regression, rows


def refusal(path: Path, given: dict[str, Any], kind: type[GradshareError]) -> str:
    """What `fit` says, which a dry run says too; nothing is written."""
    with pytest.raises(kind) as error:
        gs.fit(**given, out=path / "run")
    assert not (path / "run").exists()
    given = {name: value for name, value in given.items() if name not in ("progress", "resume")}
    with pytest.raises(kind) as again:
        gs.estimate(**given)
    assert str(again.value) == str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs is 0; give a whole number, at least 1"),
        ({"iterations": 2.5}, "iterations is 2.5; give a whole number, at least 1"),
        ({"task_batch": "4"}, "task_batch is '4'; give a whole number, at least 1"),
        ({"val_tasks": None}, "val_tasks is None; give a whole number, at least 1"),
        ({"ensemble": -1}, "ensemble is -1; give a whole number, at least 1"),
        ({"seed": -1}, "seed is -1; give a whole number, at least 0"),
        (
            {"epochs": 10**9, "iterations": 10**9},
            "1000000000 epochs of 1000000000 iterations with ",
        ),
        ({"seed": 2**22}, "seed is 4194304; give a whole number below 4194304"),
        ({"on_divergence": "ignore"}, "on_divergence 'ignore' is unknown; use 'stop' or 'skip'"),
        ({"memory": "flat"}, "memory 'flat' is unknown; use 'auto' or 'keep' or 'recompute'"),
        ({"tasks": "all"}, "tasks 'all' is unknown; use 'auto' or 'loop' or 'vmap'"),
        ({"device": "gpu"}, "device 'gpu' is unknown; use auto, cpu, cuda or cuda:N"),
        ({"clip_norm": 0}, "clip_norm is 0; give a number above 0, or None"),
        ({"clamp_gradients": True}, "clamp_gradients is True; give a number above 0, or None"),
        (
            {"schedule": lambda iteration: 0.5 - iteration},
            "schedule gives -0.5 at iteration 1; give factors of at least 0",
        ),
        (
            {"schedule": lambda iteration: float("nan")},
            "schedule gives nan at iteration 0; give factors of at least 0",
        ),
        ({"clamp_gradients": -1.0}, "clamp_gradients is -1.0; give a number above 0, or None"),
        ({"schedule": 0.5}, "schedule is 0.5 and gives no number at iteration 0 ("),
        (
            {"groups": {"lr": 1}},
            "the optimiser cannot be made: 'dict' object is not callable; give optimizer a "
            "function that takes parameter groups, such as functools.partial(torch.optim.Adam, "
            "lr=1e-3), and groups a function that returns their options",
        ),
        ({"callbacks": ["print"]}, "the callback 'print' is not a function"),
        (
            {"schedule": torch.optim.lr_scheduler.StepLR},
            "schedule is <class 'torch.optim.lr_scheduler.StepLR'> and gives no number at "
            "iteration 0 (",
        ),
        (
            {"schedule": lambda i: None},
            "schedule is <function <lambda>",
        ),
    ],
)
def test_an_option_with_a_value_that_it_does_not_take(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, rows(**changes), ConfigError).startswith(words)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be written: .*; free space there, or choose"):
        gs.fit(**rows(), out=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_resume_with_a_value_that_it_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^resume True is unknown; use 'never' or 'auto'$"):
        gs.fit(**rows(resume=True), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Sources


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("source", [None, gs.ClassTasks, [1, 2], gs.Sinusoids().batch])
def test_a_source_that_is_none(name: str, source: Any, tmp_path: Path) -> None:
    if name == "test" and source is None:
        return
    words = refusal(tmp_path, rows(**{name: source}), ConfigError)
    assert words.startswith(f"{name} is ")
    assert words.endswith(
        "; give a source of tasks: an object with `batch(indices) -> TaskBatch`, such as "
        "gradshare.ClassTasks(x, y)"
    )


class Counting(Wrapped):
    """A source that gives other tasks each time."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.calls = itertools.count()

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        return super().batch([index + next(self.calls) for index in indices])


class Neighbourly(Wrapped):
    """A source whose tasks depend on those beside them."""

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        batch = super().batch(indices)
        mean = batch.support_x.mean(0, keepdim=True)
        x = batch.support_x - mean if len(indices) > 1 else batch.support_x
        return gs.TaskBatch(x, batch.support_y, batch.query_x, batch.query_y)


class Unseeded(Wrapped):
    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        batch = super().batch(indices)
        return batch.map(lambda t: t + torch.randn(t.shape) if t.is_floating_point() else t)


class TooFew(Wrapped):
    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        return super().batch(indices[:1])


class NoBatch(Wrapped):
    def batch(self, indices: Sequence[int]) -> Any:
        return [super().batch(indices)]


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            Counting,
            "for task {last} when it was asked for again; a task must depend on its index only",
        ),
        (
            Unseeded,
            "for task {last} when it was asked for again; a task must depend on its index only",
        ),
        (
            Neighbourly,
            "gave another support_x for task {last} when it was asked for beside other tasks",
        ),
        (TooFew, "TooFew.batch returned 1 tasks for 2 indices; return one for each index"),
        (NoBatch, "NoBatch.batch returned a list; return a gradshare.TaskBatch"),
    ],
)
def test_a_source_whose_tasks_are_not_functions_of_their_index(
    name: str, kind: Any, words: str, tmp_path: Path
) -> None:
    source = kind(dict(zip(("train", "validation", "test"), ROWS, strict=True))[name])
    message = refusal(tmp_path, rows(**{name: source}), DataError)
    assert message.startswith(f"{name}: ")
    settings = {"val_tasks": 200, "test_tasks": 600} | rows()
    last = {"train": 2**40 + 1, "validation": settings["val_tasks"] - 1}
    assert words.format(last=last.get(name, settings["test_tasks"] - 1)) in message


class Spoilt(Wrapped):
    """A source with NaN in one part of its first task."""

    part = "support_x"

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        batch = super().batch(indices)
        for place, index in enumerate(indices):
            if index == 0:
                getattr(batch, self.part)[place, 0] = torch.nan
        return batch


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("part", ["support_x", "support_y", "query_x", "query_y"])
def test_a_task_with_nan_that_the_model_cannot_take(name: str, part: str, tmp_path: Path) -> None:
    given = regression()
    source = Spoilt(given[name])
    source.part = part
    assert refusal(tmp_path, {**given, name: source}, DataError) == (
        f"{name}: {part} of task 1 holds a value that is not finite (NaN or infinite), and the "
        "model can't take it; leave such examples out, or replace these values"
    )


def test_a_model_that_replaces_nan_is_trained(tmp_path: Path) -> None:
    class Replacing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x.nan_to_num())
            return y

    given = rows(learner=gs.maml(Replacing(), steps=2), train=Spoilt(ROWS[0]))
    assert gs.fit(**given, out=tmp_path / "run").diverged is None


def test_a_schedule_for_an_optimiser_without_a_rate(tmp_path: Path) -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, groups: Any) -> None:
            super().__init__(groups, {})

    given = rows(optimizer=Plain, schedule=lambda i: 0.5)
    assert refusal(tmp_path, given, ConfigError) == (
        "Plain has no learning rate 'lr' to be scheduled; leave `schedule` out, or give another "
        "optimiser"
    )


class ListOfTasks(Wrapped):
    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        return super().batch([range(1000)[index] for index in indices])


class SeedOf32Bits(Wrapped):
    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        for index in indices:
            np.random.seed(index)  # noqa: NPY002
        return super().batch(indices)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ListOfTasks, "IndexError: range object index out of range"),
        (SeedOf32Bits, "ValueError: Seed must be between 0 and 2**32 - 1"),
    ],
)
def test_a_source_without_a_task_for_each_training_index(
    kind: Any, words: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, rows(train=kind(ROWS[0])), DataError) == (
        f"train: {kind.__name__}.batch failed at index {2**40 + 1} with {words}; it must have a "
        "task for each index below 2**63, such as tasks[index % len(tasks)]"
    )


def test_a_fingerprint_that_is_no_text(tmp_path: Path) -> None:
    class Odd(Wrapped):
        fingerprint = 3

    words = refusal(tmp_path, rows(train=Odd(ROWS[0])), DataError)
    assert words == (
        "fingerprint of Odd is a int; make it a string, or a property that returns one"
    )


# Metrics and optimiser


def test_a_metric_that_does_not_return_one_number_for_a_task(tmp_path: Path) -> None:
    def each(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float()

    words = refusal(tmp_path, rows(metrics={"right": gs.Metric(each)}), ConfigError)
    assert words == (
        "the metric each returned a value of shape (12,) for a task; it must return one number, "
        "such as the mean over the queries"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": {"a": F.mse_loss}}, "the metric 'a' is <function mse_loss"),
        ({"metrics": {}}, "metrics is {}; give a dictionary of metrics by name"),
        ({"metrics": [F.mse_loss]}, "metrics is [<function mse_loss"),
        ({"score": "acc"}, "the score 'acc' is not a metric; give one of ['accuracy', 'loss']"),
    ],
)
def test_metrics_that_are_none(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, rows(**changes), ConfigError).startswith(words)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("adam", "the optimiser cannot be made: 'str' object is not callable; give optimizer a"),
        (
            torch.optim.Adam([torch.ones(1, requires_grad=True)]),
            "the optimiser cannot be made: 'Adam' object is not callable; give optimizer a func",
        ),
        (lambda groups: groups, "optimizer returned a list; return a torch optimiser"),
        (lambda: None, "the optimiser cannot be made: "),
        (
            functools.partial(torch.optim.Adam, lr=-1.0),
            "the optimiser cannot be made: Invalid learning rate: -1.0; give optimizer a func",
        ),
        (
            functools.partial(torch.optim.Adam, momentum=0.9),  # type: ignore[call-arg]
            "the optimiser cannot be made: ",
        ),
        (
            lambda groups: torch.optim.Adam([torch.ones(1, requires_grad=True)]),
            "the optimiser does not hold the meta-parameter 'model.0.weight'; build it from the",
        ),
    ],
)
def test_an_optimiser_that_is_none(optimizer: Any, words: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, rows(optimizer=optimizer), ConfigError).startswith(words)


def test_a_test_on_the_validation_tasks_is_refused(tmp_path: Path) -> None:
    given = rows()
    for test in (given["validation"], given["validation"].replace()):
        words = refusal(tmp_path, {**given, "test": test}, ConfigError)
        assert words.startswith("the test source has the tasks of the validation source")
