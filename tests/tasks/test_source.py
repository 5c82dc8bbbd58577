"""What `fit` relies on in every source of tasks, and the numbers of the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradshare.errors import ConfigError, DataError
from gradshare.tasks import TaskBatch
from gradshare.tasks.source import (
    SEEDS,
    fingerprint_of,
    prepared,
    require_pure,
    training_indices,
)

seeds = st.integers(0, SEEDS - 1)
iterations = st.integers(0, 10**8)


class Noise:
    """A user's source: inputs of noise and their sum, derived from the index."""

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        x = torch.stack([self.task(index) for index in indices])
        y = x.sum(-1, keepdim=True)
        return TaskBatch(x[:, :2], y[:, :2], x[:, 2:], y[:, 2:])

    def task(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng([index, 0]).normal(size=(5, 3)))


def changed(batch: TaskBatch, **parts: Any) -> TaskBatch:
    return TaskBatch(**(vars(batch) | parts))


@given(seeds, iterations, seeds, iterations, st.integers(1, 64))
def test_two_iterations_share_a_task_only_if_they_are_the_same_iteration_of_the_same_seed(
    seed: int, iteration: int, other_seed: int, other_iteration: int, task_batch: int
) -> None:
    one = training_indices(seed, iteration, task_batch)
    other = training_indices(other_seed, other_iteration, task_batch)
    assert len(one) == task_batch
    overlap = max(one.start, other.start) < min(one.stop, other.stop)
    assert overlap == ((seed, iteration) == (other_seed, other_iteration))


@given(seeds, iterations, st.integers(1, 64))
def test_training_tasks_are_no_evaluation_tasks_and_their_indices_fit_in_64_bits(
    seed: int, iteration: int, task_batch: int
) -> None:
    indices = training_indices(seed, iteration, task_batch)
    assert indices.start >= 2**40
    assert indices.stop < 2**63


@pytest.mark.parametrize("seed", [-1, 2**22])
def test_a_seed_whose_indices_would_not_fit_is_named(seed: int) -> None:
    with pytest.raises(ConfigError) as caught:
        training_indices(seed, 0, 4)
    assert str(caught.value) == f"seed is {seed}; give a whole number from 0 to 4194303"


def test_prepare_is_applied_where_there_is_one() -> None:
    class Doubled(Noise):
        def prepare(self, batch: TaskBatch) -> TaskBatch:
            return changed(batch, support_x=2 * batch.support_x)

    batch = Noise().batch([3])
    assert prepared(Noise(), batch) is batch
    assert torch.equal(prepared(Doubled(), batch).support_x, 2 * batch.support_x)


def test_a_fingerprint_is_a_string_or_there_is_none() -> None:
    class Marked(Noise):
        fingerprint = "v1"

    class WithMethod(Noise):
        def fingerprint(self) -> str:
            return "v1"

    assert fingerprint_of(Noise()) is None
    assert fingerprint_of(Marked()) == "v1"
    with pytest.raises(DataError) as caught:
        fingerprint_of(WithMethod())
    assert str(caught.value) == (
        "fingerprint of WithMethod is a method; make it a string, or a property that returns one"
    )


def test_a_source_that_derives_everything_from_the_index_is_pure() -> None:
    require_pure(Noise(), 7)


def test_missing_values_in_the_data_do_not_make_a_source_impure() -> None:
    class Gaps(Noise):
        def task(self, index: int) -> torch.Tensor:
            task = super().task(index)
            task[3, 1] = torch.nan
            return task

    require_pure(Gaps(), 7)


def test_padding_that_grows_beside_larger_tasks_does_not_make_a_source_impure() -> None:
    class Padded(Noise):
        def batch(self, indices: Sequence[int]) -> TaskBatch:
            batch = super().batch(indices)
            sizes = [1 + index % 3 for index in indices]
            query_x = batch.query_x[:, : max(sizes)].clone()
            for task, size in zip(query_x, sizes, strict=True):
                task[size:] = torch.rand(())
            return changed(batch, query_x=query_x, query_y=query_x[..., :1], query_n=sizes)

    require_pure(Padded(), 0)
    require_pure(Padded(), 1)


def test_a_source_with_a_generator_of_its_own_is_named() -> None:
    class Drawing(Noise):
        def batch(self, indices: Sequence[int]) -> TaskBatch:
            batch = super().batch(indices)
            return changed(batch, query_y={"target": torch.rand(len(batch), 3)})

    with pytest.raises(DataError) as caught:
        require_pure(Drawing(), 7)
    assert str(caught.value) == (
        "Drawing.batch gave another query_y['target'] for task 7 when it was asked for again; a "
        "task must depend on its index only: draw every random number of a task from "
        "np.random.default_rng([index, 0])"
    )


def test_a_source_whose_tasks_depend_on_those_beside_them_is_named() -> None:
    class Centred(Noise):
        def batch(self, indices: Sequence[int]) -> TaskBatch:
            batch = super().batch(indices)
            return changed(batch, support_x=batch.support_x - batch.support_x.mean())

    with pytest.raises(
        DataError, match="another support_x for task 7 when it was asked for beside"
    ):
        require_pure(Centred(), 7)


def test_something_else_than_a_task_batch_is_named() -> None:
    class Pairs(Noise):
        def batch(self, indices: Sequence[int]) -> Any:
            return tuple(vars(super().batch(indices)).values())

    with pytest.raises(DataError) as caught:
        require_pure(Pairs(), 0)
    assert str(caught.value) == "Pairs.batch returned a tuple; return a gradshare.TaskBatch"


def test_another_number_of_tasks_than_indices_is_named() -> None:
    class Four(Noise):
        def batch(self, indices: Sequence[int]) -> TaskBatch:
            return super().batch(range(4))

    with pytest.raises(DataError) as caught:
        require_pure(Four(), 0)
    assert str(caught.value) == (
        "Four.batch returned 4 tasks for 1 indices; return one for each index, in their order"
    )
