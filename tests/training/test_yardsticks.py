from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gradshare as gs
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.training import yardsticks as module
from gradshare.training.yardsticks import yardsticks

MEAN, REGRESSION = "nearest class mean", "logistic regression"


def clusters(noise: float = 1.0, shape: tuple[int, ...] = (3, 4), **options: Any) -> gs.ClassTasks:
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 30)
    centres = random.normal(size=(12, *shape))
    x = centres[y] + noise * random.normal(size=(len(y), *shape))
    return gs.ClassTasks(x, y, **{"ways": 4, "shots": 3, "queries": 6, **options})


@dataclass(frozen=True)
class Fixed:
    """A source of one batch of tasks, cut as it is asked for."""

    tasks: TaskBatch
    prepare: Any = lambda tasks: tasks

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        return self.tasks[indices[0] : indices[-1] + 1]


def literally(support: Tensor, labels: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """Both classifiers on one task of rows (n, D) in double precision, as a textbook has them."""
    support, queries = support.double(), queries.double()
    mean, variance = support.mean(0), support.var(0, correction=0)
    scale = (variance + 0.01 * variance.mean()).sqrt() * support.shape[1] ** 0.5
    support, queries = (support - mean) / scale, (queries - mean) / scale
    classes = labels.unique()  # type: ignore[no-untyped-call]
    means = torch.stack([support[labels == label].mean(0) for label in classes])
    nearest = [classes[(means - query).norm(dim=1).argmin()] for query in queries]

    support, queries = (torch.cat([x, torch.ones(len(x), 1)], 1) for x in (support, queries))
    weights = torch.zeros(support.shape[1], len(classes), dtype=torch.float64, requires_grad=True)
    targets = torch.searchsorted(classes, labels)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Any:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(support @ weights, targets, reduction="sum")
        value = value + module.L2 / 2 * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return {
        MEAN: torch.stack(nearest),
        REGRESSION: classes[(queries @ weights).argmax(1)],
        "logits": (queries @ weights).detach(),
    }


@pytest.mark.parametrize("shots", [1, 4])
def test_both_equal_a_literal_fit_of_each_task(shots: int) -> None:
    source = clusters(shots=shots)
    found = yardsticks(source, 20)
    batch = source.batch(range(20))
    for name in (MEAN, REGRESSION):
        expected = [
            (literally(x.flatten(1), y, q.flatten(1))[name] == z).double().mean().item()
            for x, y, q, z in zip(
                batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True
            )
        ]
        assert 0.3 < np.mean(expected) < 0.95  # a task that is neither trivial nor hopeless
        assert found[name]["accuracy"] == pytest.approx(expected)


def test_the_regression_has_converged() -> None:
    batch = clusters().batch([0])
    rows, labels = batch.support_x[0].flatten(1), batch.support_y[0]
    support, queries = module._standardised(rows, batch.query_x[0].flatten(1))
    targets = torch.nn.functional.one_hot(labels).float()
    found = module._regression_scores(support, targets, queries)
    expected = literally(rows, labels, batch.query_x[0].flatten(1))["logits"]
    assert found.double() == pytest.approx(expected, abs=0.02 * float(expected.abs().max()))


def test_classes_that_lie_far_apart_are_told_apart() -> None:
    for values in yardsticks(clusters(noise=0.05), 10).values():
        assert values["accuracy"] == [1.0] * 10


def test_the_scale_of_the_inputs_changes_nothing() -> None:
    tasks = clusters().batch(range(10))
    scaled = dataclasses.replace(
        tasks, support_x=100 * tasks.support_x + 7, query_x=100 * tasks.query_x + 7
    )
    expected, found = yardsticks(Fixed(tasks), 10), yardsticks(Fixed(scaled), 10)
    for name, values in expected.items():
        assert found[name]["accuracy"] == pytest.approx(values["accuracy"], abs=0.05)


def test_padding_and_its_labels_are_not_seen() -> None:
    tasks = clusters().batch(range(5))
    expected = yardsticks(Fixed(tasks), 5)

    def with_four(tensor: Tensor, more: Tensor) -> Tensor:
        return torch.cat([tensor, more.to(tensor.dtype).expand(5, 4, *tensor.shape[2:])], 1)

    every_class = torch.arange(4)  # one of them is guessed right
    longer = TaskBatch(
        with_four(tasks.support_x, torch.tensor(1e6)),
        with_four(tasks.support_y, every_class),
        with_four(tasks.query_x, torch.tensor(0.0)),
        with_four(tasks.query_y, every_class),
        support_n=[12] * 5,
        query_n=[24] * 5,
    )
    found = yardsticks(Fixed(longer), 5)
    for name, values in expected.items():
        assert found[name]["accuracy"] == pytest.approx(values["accuracy"])


def test_a_class_without_support_examples_is_never_guessed() -> None:
    x = torch.tensor([[0.0], [1.0]])
    tasks = TaskBatch(
        torch.stack([x, x]),
        torch.tensor([[0, 1], [5, 6]]),
        torch.stack([x, x]),
        torch.tensor([[0, 7], [5, 6]]),
    )
    for values in yardsticks(Fixed(tasks), 2).values():
        assert values["accuracy"] == [0.5, 1.0]
    alike = dataclasses.replace(tasks, support_x=0 * tasks.support_x, query_x=0 * tasks.query_x)
    for values in yardsticks(Fixed(alike), 2).values():
        assert values["accuracy"] == [0.5, 0.5]


def test_inputs_are_seen_as_the_source_prepares_them() -> None:
    tasks = clusters(noise=0.05).batch(range(5))

    def without_inputs(batch: TaskBatch) -> TaskBatch:
        return dataclasses.replace(batch, support_x=0 * batch.support_x, query_x=0 * batch.query_x)

    for values in yardsticks(Fixed(tasks, without_inputs), 5).values():
        assert values["accuracy"] == [0.25] * 5


def test_bytes_are_classified_too() -> None:
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 10)
    x = (20 * y[:, None] + random.integers(0, 3, (60, 8))).astype(np.uint8)
    tasks = gs.ClassTasks(x, y, shots=2, queries=3).batch(range(4))
    tasks = dataclasses.replace(
        tasks, support_x=tasks.support_x.to(torch.uint8), query_x=tasks.query_x.to(torch.uint8)
    )
    assert yardsticks(Fixed(tasks), 4)[MEAN]["accuracy"] == [1.0] * 4


def sources_without_yardsticks() -> dict[str, TaskSource]:
    tasks = clusters().batch(range(3))

    def changed(**changes: Any) -> Fixed:
        return Fixed(dataclasses.replace(tasks, **changes))

    wide = torch.zeros(3, 12, module.LARGEST_INPUT + 1)
    return {
        "real targets": gs.Sinusoids(),
        "a dictionary": changed(support_x={"x": tasks.support_x}),
        "a tuple": changed(support_x=(tasks.support_x, tasks.support_x)),
        "token ids": changed(support_x=tasks.support_x.long()),
        "a class for each pixel": changed(support_y=torch.zeros(3, 12, 4, dtype=torch.long)),
        "targets by name": changed(support_y={"y": tasks.support_y}),
        "large inputs": changed(support_x=wide),
    }


@pytest.mark.parametrize("name", sources_without_yardsticks())
def test_other_sources_have_no_yardsticks(name: str) -> None:
    assert yardsticks(sources_without_yardsticks()[name], 3) == {}
