"""Learners, models and losses that cannot be trained, and learners that do not fit their source:
one error with cause, value and remedy, before a folder is made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradshare as gs
from gradshare.errors import ConfigError
from gradshare.inner_loop import Tensors
from tests.training.small import (
    ROWS,
    WAYS,
    InFloat64,
    Prototypes,
    Wrapped,
    class_tasks,
    mlp,
    named_inputs,
    regression,
    rows,
)
from tests.training.test_bad_input import refusal


@pytest.mark.parametrize("learner", [gs.maml, gs.MetaLearner, mlp(), None, Prototypes])
def test_a_learner_that_is_none(learner: Any, tmp_path: Path) -> None:
    words = refusal(tmp_path, rows(learner=learner), ConfigError)
    assert words.startswith("the learner is ")
    assert words.endswith(
        "; give an object with the methods init, outer_step, adapt, predict, such as "
        "gradshare.maml(model)"
    )


class BadState(Prototypes):
    returned: Any = None

    def init(self) -> Any:
        return self.returned


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "BadState.init() returned None; it must return two dictionaries of named tensors"),
        (({}, {}), "BadState.init() returned ({}, {}); it must return two dictionaries"),
        (({"w": torch.ones(1)}, {}), "requires? gradients, and 'w' is not one; use tensor.detach"),
        (({"w": np.ones(1)}, {}), "require gradients, and 'w' is not one; use tensor.detach"),
        (
            ({"w": torch.ones(1, requires_grad=True) * 2}, {}),
            "require gradients, and 'w' is not one; use tensor.detach().clone().requires_grad_()",
        ),
    ],
)
def test_a_learner_whose_state_is_not_named_leaves(
    returned: Any, words: str, tmp_path: Path
) -> None:
    learner = BadState(mlp())
    learner.returned = returned
    assert words.replace("requires? ", "require ") in refusal(
        tmp_path, rows(learner=learner), ConfigError
    )


class BadStep(Prototypes):
    objective: Any = None

    def outer_step(self, *arguments: Any, **options: Any) -> gs.OuterStep:
        step = super().outer_step(*arguments, **options)
        return gs.OuterStep(self.objective(step.objective), step.losses, step.outputs, {})


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (
            Tensor.mean,
            "BadStep.outer_step returned an objective of shape () for one task; give one",
        ),
        (Tensor.detach, "the objective does not depend on any meta-parameter; compute it from `me"),
    ],
)
def test_a_learner_whose_objective_cannot_be_differentiated(
    objective: Any, words: str, tmp_path: Path
) -> None:
    learner = BadStep(mlp())
    learner.objective = objective
    assert refusal(tmp_path, rows(learner=learner), ConfigError).startswith(words)


@pytest.mark.parametrize(
    "loss", [F.cross_entropy, functools.partial(F.cross_entropy, label_smoothing=0.1)]
)
@pytest.mark.parametrize("sources", [("train", "validation"), ("validation",), ("test",)])
def test_a_model_with_fewer_outputs_than_a_task_has_classes(
    sources: Sequence[str], loss: Any, tmp_path: Path
) -> None:
    wide = {name: class_tasks(6)[0].replace(ways=5) for name in sources}
    given = rows(learner=gs.maml(mlp(), steps=2, loss=loss), **wide)
    assert refusal(tmp_path, given, ConfigError) == (
        "Sequential has 3 outputs and the tasks have 5 classes; make it with 5 outputs, or number "
        "the classes of each task from 0"
    )


def test_a_model_with_more_outputs_than_the_largest_task_needs(tmp_path: Path) -> None:
    given = rows(learner=gs.maml(mlp(outputs=7), steps=2))
    assert refusal(tmp_path, given, ConfigError) == (
        "Sequential has 7 outputs and the largest task has 3 classes; make it with 3 outputs: the "
        "others could only be wrong"
    )


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda y: (y, y), "Odd.forward returned a tuple; it must return one tensor"),
        (lambda y: {"y": y}, "Odd.forward returned a dict; it must return one tensor"),
        (lambda y: y.mean(), "of shape (1,); give one tensor (T, queries, …)"),
    ],
)
def test_outputs_that_are_not_one_tensor_for_the_queries(
    forward: Any, words: str, tmp_path: Path
) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, WAYS)

        def forward(self, x: Tensor) -> Any:
            return forward(self.linear(x))

    learner = gs.maml(Odd(), steps=2, loss=lambda y, t: y.square().mean())
    assert words in refusal(tmp_path, rows(learner=learner), ConfigError)


def test_another_learner_whose_outputs_are_not_a_tensor(tmp_path: Path) -> None:
    class Lists(Prototypes):
        def predict(self, *arguments: Any) -> Any:
            return super().predict(*arguments).tolist()

    assert refusal(tmp_path, rows(learner=Lists(mlp())), ConfigError) == (
        "the outputs for a batch of tasks are of another type; give one tensor (T, queries, …)"
    )


def test_a_loss_that_returns_no_scalar(tmp_path: Path) -> None:
    loss = functools.partial(F.cross_entropy, reduction="none")
    words = refusal(tmp_path, rows(learner=gs.maml(mlp(), steps=2, loss=loss)), ConfigError)
    assert "the loss of a task must be a tensor of shape ()" in words
    assert words.endswith("give one that takes the mean (reduction='mean')")


# Learner and source


def test_a_learner_and_a_source_that_do_not_fit_are_named_with_the_shapes(tmp_path: Path) -> None:
    words = refusal(tmp_path, rows(learner=gs.maml(mlp(inputs=7), steps=2)), ConfigError)
    assert words == (
        "Sequential failed on a task of the source 'train': RuntimeError: mat1 and mat2 shapes "
        "cannot be multiplied (12x6 and 7x8); the task is support_x float32 (3, 6), support_y "
        "int64 (3,), query_x float32 (12, 6), query_y int64 (12,)"
    )
    words = refusal(tmp_path, rows(validation=class_tasks(7)[1]), ConfigError)
    assert words.startswith(
        "Sequential failed on a task of the source 'validation': RuntimeError: mat1"
    )
    words = refusal(tmp_path, rows(test=class_tasks(7)[1]), ConfigError)
    assert words.startswith("Sequential failed on a task of the source 'test': RuntimeError: mat1")


class Forgetful(gs.UpdateRule):
    """Reads a state that it does not make."""

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: gs.Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        return {name: task[name] + g for name, g in gradients.items()}, carried, task


def test_an_error_in_a_rule_of_the_users_names_the_rule_and_its_line(tmp_path: Path) -> None:
    words = refusal(tmp_path, rows(learner=gs.maml(mlp(), rule=Forgetful())), ConfigError)
    assert re.match(
        r"Forgetful\.update \(test_bad_learners\.py, line \d+\) failed on a task of the source "
        "'train': KeyError: '0.weight'; the task is support_x",
        words,
    )


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return outputs


def test_a_model_that_computes_again_in_the_backward_pass_is_refused(tmp_path: Path) -> None:
    words = refusal(tmp_path, rows(learner=gs.maml(Checkpointed())), ConfigError)
    assert words.startswith("Checkpointed.forward (test_bad_learners.py, line ")
    assert "(torch.utils.checkpoint), where it no longer has the parameters of the task" in words


def test_a_source_of_another_dtype_than_the_model_is_refused_with_a_remedy(tmp_path: Path) -> None:
    given = rows(train=InFloat64(ROWS[0]))
    assert refusal(tmp_path, given, ConfigError).endswith(
        "; the model is float32: convert the source's tensors with x.to(torch.float32), or the "
        "model with model.to(torch.float64)"
    )


def test_whole_numbers_for_a_model_of_real_numbers_are_refused_with_their_type(
    tmp_path: Path,
) -> None:
    class Bytes(Wrapped):
        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            b = super().batch(indices)
            x, z = (part.to(torch.uint8) for part in (b.support_x, b.query_x))
            return gs.TaskBatch(x, b.support_y, z, b.query_y)

    words = refusal(tmp_path, rows(train=Bytes(ROWS[0])), ConfigError)
    assert words.startswith("Sequential failed on a task of the source 'train': RuntimeError: ")
    assert "the task is support_x uint8 (3, 6)" in words


def test_inputs_by_names_that_the_model_does_not_take(tmp_path: Path) -> None:
    class Renamed(Wrapped):
        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            b = super().batch(indices)
            x, z = ({"a": part["a"], "c": part["b"]} for part in (b.support_x, b.query_x))
            return gs.TaskBatch(x, b.support_y, z, b.query_y)

    given = named_inputs()
    words = refusal(tmp_path, {**given, "train": Renamed(given["train"])}, ConfigError)
    assert words.startswith("TwoInputs failed on a task of the source 'train': TypeError: ")
    assert "unexpected keyword argument 'c'" in words
    assert "support_x['c'] float32 (3, 3)" in words


@pytest.mark.parametrize("outputs", [1, 2])
def test_real_targets_with_the_loss_for_classes(outputs: int, tmp_path: Path) -> None:
    given = regression(learner=gs.maml(mlp(inputs=1, outputs=outputs), steps=2))
    for values in ({}, {"metrics": None, "score": None}):
        assert refusal(tmp_path, {**given, **values}, ConfigError) == (
            f"the targets are real values and the outputs (1, 10, {outputs}); cross entropy needs "
            "classes: give a loss of your own, such as loss=F.mse_loss"
        )


def test_targets_that_would_be_broadcast_over_the_outputs(tmp_path: Path) -> None:
    class Flat(Wrapped):
        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            b = super().batch(indices)
            return gs.TaskBatch(b.support_x, b.support_y[..., 0], b.query_x, b.query_y[..., 0])

    words = refusal(tmp_path, regression(train=Flat(gs.Sinusoids())), ConfigError)
    assert "Using a target size (torch.Size([10])) that is different to the input size" in words
    assert words.endswith("; give targets of the shape of the outputs, such as y[..., None]")


def test_probabilities_of_classes_are_targets_for_cross_entropy(tmp_path: Path) -> None:
    class Soft(Wrapped):
        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            b = super().batch(indices)
            y, z = (0.9 * F.one_hot(part, WAYS) + 0.1 / WAYS for part in (b.support_y, b.query_y))
            return gs.TaskBatch(b.support_x, y, b.query_x, z)

    soft = dict(zip(("train", "validation", "test"), map(Soft, ROWS), strict=True))
    run = gs.fit(**rows(**soft), out=tmp_path / "run")
    assert list(run.metrics) == ["loss"]
