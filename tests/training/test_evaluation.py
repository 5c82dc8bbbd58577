"""A learner on tasks of any kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradshare.errors import DataError
from gradshare.training.config import RunConfig
from gradshare.training.evaluation import evaluate, measure_test
from gradshare.training.setup import set_up
from gradshare.training.statistics import confidence95


def test_it_is_the_mean_over_all_tasks_of_all_batches(tiny: dict[str, Any]) -> None:
    setup = set_up(RunConfig(**tiny))
    learned, state = setup.learner.init()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    batches = [
        setup.normalization.batch(setup.test.batch(tasks))
        for tasks in (range(3), range(3, 4), range(4, 8))
    ]
    found = evaluate(setup.learner, learned, state, iter(batches))
    each = measure_test(setup, [(learned, state)], 8, lambda tasks: None).single
    assert found == confidence95(each)
    assert found.n == 8
    assert len(set(each)) > 1
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())


def test_no_batch_is_named(tiny: dict[str, Any]) -> None:
    setup = set_up(RunConfig(**tiny))
    with pytest.raises(DataError) as error:
        evaluate(setup.learner, *setup.learner.init(), [])
    assert str(error.value) == ("an accuracy needs at least one batch of tasks, and there was none")
