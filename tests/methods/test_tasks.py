"""Tasks of every form: inputs in several parts, targets of any kind, unequal sizes, and more inner
steps at test than in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner, maml, maml_plus_plus
from gradshare.tasks import TaskBatch
from gradshare.tasks.batch import PARTS, Tree
from tests.methods.modules import (
    LR,
    STEPS,
    WAYS,
    assert_close,
    batch,
    batch_norm_2d,
    gradients,
    literal_adapt,
    literal_forward,
    made,
)
from tests.methods.test_networks import EVERY_LAYOUT


class TwoInputs(nn.Module):
    """A network of ten numbers and six more."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(10, 8)
        self.right = nn.Linear(6, 8)
        self.head = nn.Linear(8, WAYS)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        y: Tensor = self.head((self.left(left) * self.right(right)).tanh())
        return y


class OneInput(TwoInputs):
    """The same network, with its inputs in one tensor."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x[:, :10], x[:, 10:])


def outcome(
    learner: MetaLearner, tasks: TaskBatch, meta: Tensors | None = None
) -> dict[str, Tensor]:
    """Everything that comes out of training on and evaluating some tasks."""
    first, carried = learner.init()
    meta = meta or first
    step = learner.outer_step(meta, carried, tasks, iteration=0)
    return {
        "losses": step.losses,
        "outputs": step.outputs,
        "predictions": learner.predict(meta, learner.adapt(meta, step.carried, tasks), tasks),
        **gradients(step.objective.mean(), meta),
    }


@EVERY_LAYOUT
@pytest.mark.parametrize("name", ["uint8", "uint16", "uint32", "int8", "int16", "int32"])
def test_labels_may_be_whole_numbers_of_any_type(name: str, layout: dict[str, Any]) -> None:
    tasks, dtype = batch(), getattr(torch, name)
    labels = {part: getattr(tasks, part).to(dtype) for part in ("support_y", "query_y")}
    learner = maml(nn.Linear(16, WAYS).double(), steps=2, **layout)
    found = outcome(learner, dataclasses.replace(tasks, **labels))
    expected = outcome(learner, tasks)
    assert all(torch.equal(found[part], expected[part]) for part in expected)


@EVERY_LAYOUT
@pytest.mark.parametrize(
    "split",
    [
        lambda x: (x[..., :10], x[..., 10:]),
        lambda x: {"right": x[..., 10:], "left": x[..., :10]},
    ],
    ids=["tuple", "dictionary"],
)
def test_inputs_in_parts_are_positional_or_keyword_arguments(
    split: Callable[[Tensor], Tree], layout: dict[str, Any]
) -> None:
    tasks = batch()
    parts = dataclasses.replace(
        tasks, support_x=split(tasks.support_x), query_x=split(tasks.query_x)
    )
    expected = outcome(maml(made(OneInput), steps=STEPS, sharing=True), tasks)
    found = outcome(maml(made(TwoInputs), steps=STEPS, sharing=True, **layout), parts)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(name, found[name], tensor)


@EVERY_LAYOUT
def test_targets_may_be_real_values_and_in_parts(layout: dict[str, Any]) -> None:
    tasks = batch()
    values = dataclasses.replace(
        tasks,
        support_y=tasks.support_x[..., :WAYS].sin(),
        query_y=tasks.query_x[..., :WAYS].sin(),
    )

    def loss(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        first = F.mse_loss(outputs[:, 0], targets["first"])
        return (first + 2 * F.mse_loss(outputs[:, 1:], targets["rest"])) / WAYS

    parts = dataclasses.replace(
        values,
        support_y={"first": values.support_y[..., 0], "rest": values.support_y[..., 1:]},
        query_y={"first": values.query_y[..., 0], "rest": values.query_y[..., 1:]},
    )
    model = nn.Linear(16, WAYS).double()
    meta = maml(model, loss=F.mse_loss).init()[0]
    expected = outcome(maml(model, loss=F.mse_loss), values, meta)
    found = outcome(maml(model, loss=loss, **layout), parts, meta)
    for name, tensor in expected.items():
        assert_close(name, found[name], tensor)


def padded(sizes: tuple[list[int], list[int]], tasks: TaskBatch) -> TaskBatch:
    """The same tasks, of which only the first examples are real; the others are NaN."""
    support_x, query_x = tasks.support_x.clone(), tasks.query_x.clone()
    for x, of_tasks in zip((support_x, query_x), sizes, strict=True):
        for task, size in enumerate(of_tasks):
            x[task, size:] = float("nan")
    return dataclasses.replace(
        tasks, support_x=support_x, query_x=query_x, support_n=sizes[0], query_n=sizes[1]
    )


@EVERY_LAYOUT
@pytest.mark.parametrize("sizes", [([4, 6, 3], [2, 5, 1]), ([4, 4, 4], [5, 5, 5])], ids=str)
def test_padded_tasks_give_what_each_gives_alone(
    sizes: tuple[list[int], list[int]], layout: dict[str, Any]
) -> None:
    tasks = batch()
    learner = maml_plus_plus(made(batch_norm_2d), steps=STEPS, multi_step_iterations=10, **layout)
    meta, _ = learner.init()
    found = outcome(learner, padded(sizes, tasks), meta)
    assert found["outputs"].shape == found["predictions"].shape == (3, 6, WAYS)
    alone = []
    for task, (support, query) in enumerate(zip(*sizes, strict=True)):
        cut = (support, support, query, query)
        one = [
            getattr(tasks, part)[task : task + 1, :n] for part, n in zip(PARTS, cut, strict=True)
        ]
        alone.append(outcome(learner, TaskBatch(*one), meta))
        for name in ("outputs", "predictions"):
            assert_close(name, found[name][task, :query], alone[-1][name][0])
            assert not found[name][task, query:].any()
    for name in ("losses", *meta):
        expected = torch.stack([of_task[name] for of_task in alone])
        assert_close(
            name, found[name], expected.flatten() if name == "losses" else expected.mean(0)
        )


@EVERY_LAYOUT
def test_padding_changes_nothing_of_sharing(layout: dict[str, Any]) -> None:
    tasks, sizes = batch(), ([4] * 3, [5] * 3)
    cut = TaskBatch(
        *(getattr(tasks, part)[:, :n] for part, n in zip(PARTS, (4, 4, 5, 5), strict=True))
    )
    learner = maml(made(batch_norm_2d), steps=STEPS, sharing=True, **layout)
    expected = outcome(learner, cut)
    found = outcome(learner, padded(sizes, tasks))
    for name, tensor in expected.items():
        assert_close(
            name, found[name][:, :5] if name in ("outputs", "predictions") else found[name], tensor
        )


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("tasks_at_a_time", [1, None])
def test_steps_beyond_the_trained_ones_use_the_last_ones_rates_gates_and_batch_norm(
    tasks_at_a_time: int | None, steps: int
) -> None:
    learner = maml_plus_plus(
        made(batch_norm_2d),
        steps=STEPS,
        multi_step_iterations=0,
        sharing=True,
        tasks_at_a_time=tasks_at_a_time,
    )
    meta, carried = learner.init()
    generator = torch.Generator().manual_seed(0)
    meta = {
        name: t.detach() + 0.2 * torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for name, t in meta.items()
    }
    carried = learner.outer_step(meta, carried, batch(seed=5), iteration=0).carried
    tasks = batch()
    found = learner.predict(meta, learner.adapt(meta, carried, tasks, steps=steps), tasks)

    def norm(k: int) -> Tensors:
        return {name: meta[f"model.{name}"][k] for name in ("2.weight", "2.bias")}

    for t, outputs in enumerate(found):
        theta = {n: meta[f"model.{n}"] for n in learner.adapted}
        for step in range(steps):
            k = min(step, STEPS - 1)
            theta = {name: tensor.requires_grad_() for name, tensor in theta.items()}
            loss = F.cross_entropy(
                literal_forward(batch_norm_2d, {**theta, **norm(k)}, tasks.support_x[t]),
                tasks.support_y[t],
            )
            own = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
            gate = meta["sharing.lambda"][k].sigmoid()
            theta = {
                name: tensor.detach()
                - meta[f"lslr.rate.{name}"][k]
                * (gate * carried[f"sharing.g_hat.{k}.{name}"] + (1 - gate) * own[name])
                for name, tensor in theta.items()
            }
        last = norm(min(steps, STEPS) - 1)
        expected = literal_forward(batch_norm_2d, {**theta, **last}, tasks.query_x[t])
        assert_close("outputs", outputs, expected)


def test_no_steps_at_all_predict_from_the_initialisation() -> None:
    learner = maml(made(OneInput), steps=STEPS, inner_lr=LR)
    meta, carried = learner.init()
    tasks = batch()
    outputs = learner.predict(meta, learner.adapt(meta, carried, tasks, steps=0), tasks)
    theta = {n.removeprefix("model."): t for n, t in meta.items()}
    for t, found in enumerate(outputs):
        adapted = literal_adapt(OneInput, theta, {}, tasks.support_x[t], tasks.support_y[t], 0)
        assert_close("outputs", found, literal_forward(OneInput, adapted, tasks.query_x[t]))
