"""A learner on tasks of any kind."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.config import RunConfig
from gradshare.errors import DataError
from gradshare.methods import maml
from gradshare.tasks import Normalization, TaskBatch
from gradshare.training.evaluation import InnerLoopFit, evaluate, measure_test, validate
from gradshare.training.setup import set_up
from gradshare.training.statistics import confidence95
from tests import oracle
from tests.problems import as_oracle_batch, perturbed


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


def test_an_ensemble_is_of_the_mean_logits_and_its_first_member_alone_is_told_apart(
    tiny: dict[str, Any],
) -> None:
    setup = set_up(RunConfig(**tiny))
    learner = setup.learner
    models = [set_up(RunConfig(**{**tiny, "seed": seed})).learner.init() for seed in range(3)]
    batch = setup.normalization.batch(setup.test.batch(range(8)))
    logits = []
    for learned, state in models:
        adapted = learner.adapt(learned, state, batch).params[-1]
        with torch.no_grad():
            logits.append(learner.predict(learned, adapted, batch, updates=learner.steps))

    def right(logits: Tensor) -> list[float]:
        found: list[float] = (logits.argmax(-1) == batch.query_y).double().mean(-1).tolist()
        return found

    found = measure_test(setup, models, 8, lambda tasks: None)
    assert found.members == 3
    assert found.single == right(logits[0])
    assert found.ensemble == right(torch.stack(logits).mean(0))
    assert len({tuple(found.ensemble), *(tuple(right(each)) for each in logits)}) == 4


class InFloat64(Normalization):
    def batch(self, tasks: TaskBatch, dtype: torch.dtype = torch.float64) -> TaskBatch:
        return super().batch(tasks, dtype)


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_the_fit_before_and_after_adaptation_is_the_oracles(
    batch_norm: str, tiny: dict[str, Any]
) -> None:
    steps, count = 3, 6
    # With MAML++ every step has a γ and β of its own.
    config = RunConfig(**{**tiny, "inner_steps": steps, "batch_norm": batch_norm}, method="maml++")
    setup = set_up(config)
    learner, pixels = setup.learner, setup.normalization
    learner.model.double()
    setup = dataclasses.replace(setup, normalization=InFloat64(pixels.mean, pixels.std))
    learned, state = learner.init()
    learned = perturbed(learned)
    batch = setup.normalization.batch(setup.val.batch(range(count)))
    state = learner.outer_step(learned, state, batch, iteration=0).state  # so that there is a ĝ
    adapted = learner.adapt(learned, state, batch).params

    expected: dict[str, list[float]] = {
        field.name: [] for field in dataclasses.fields(InnerLoopFit)
    }
    for task, (support_x, support_y, query_x, query_y) in enumerate(
        zip(*as_oracle_batch(batch), strict=True)
    ):
        for when, updates, norm in (("before", 0, 0), ("after", steps, steps - 1)):
            theta = {name: tensor[task] for name, tensor in adapted[updates].items()}
            theta |= {name: learned[f"model.{name}"][norm] for name in learner.per_step}
            from_support = support_x if batch_norm == "inductive" else None
            for images, logits, labels in (
                ("support", oracle.network(theta, support_x, 0.01, None), support_y),
                ("query", oracle.network(theta, query_x, 0.01, from_support), query_y),
            ):
                right = (logits.argmax(-1) == labels).double().mean()
                expected[f"{images}_accuracy_{when}"].append(right.item())
                loss = F.cross_entropy(logits, labels)
                expected[f"{images}_loss_{when}"].append(loss.item())

    accuracies, fit = validate(setup, (learned, state), count, lambda tasks: None)
    assert accuracies.tolist() == expected["query_accuracy_after"]
    for name, values in expected.items():
        assert getattr(fit, name) == pytest.approx(sum(values) / count, rel=1e-9), name
    assert len(set(dataclasses.asdict(fit).values())) == len(expected)


def test_what_has_no_accuracy_is_named(tiny: dict[str, Any]) -> None:
    """Tensors that do not fit would be compared all with all."""
    setup = set_up(RunConfig(**tiny))
    model = setup.learner.init()
    batch = setup.normalization.batch(setup.test.batch([0, 1]))
    queries, ways = batch.query_y.shape[1], tiny["ways"]
    column = dataclasses.replace(batch, query_y=batch.query_y[..., None])
    with pytest.raises(DataError) as error:
        evaluate(setup.learner, *model, [column])
    assert str(error.value) == (
        "an accuracy needs outputs (T, n, classes) and whole numbers (T, n) as labels, and these "
        f"are (2, {queries}, {ways}) and torch.int64 (2, {queries}, 1); measure something else "
        "with learner.adapt and learner.predict"
    )
    beyond = dataclasses.replace(batch, query_y=batch.query_y + 1)
    with pytest.raises(DataError, match=f"the labels go from 1 to {ways}, and the model has "):
        evaluate(setup.learner, *model, [beyond])
    regressor = maml(nn.Linear(1, 1), steps=1, loss=F.mse_loss)
    points = torch.randn(1, 10, 1)
    with pytest.raises(DataError) as error:
        evaluate(regressor, *regressor.init(), [TaskBatch(points, points, points, points)])
    assert str(error.value) == (
        "an accuracy needs outputs (T, n, classes) and whole numbers (T, n) as labels, and these "
        "are (1, 10, 1) and torch.float32 (1, 10, 1); measure something else with learner.adapt "
        "and learner.predict"
    )


@pytest.mark.parametrize("name", ["support_x", "query_x"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_without_values_are_named(tiny: dict[str, Any], name: str, value: float) -> None:
    setup = set_up(RunConfig(**tiny))
    batch = setup.normalization.batch(setup.test.batch([0, 1]))
    spoilt = getattr(batch, name).clone()
    spoilt[1, 0, 0, 0, 0] = value
    batches = [batch, dataclasses.replace(batch, **{name: spoilt})]
    with pytest.raises(DataError) as error:
        evaluate(setup.learner, *setup.learner.init(), batches)
    assert str(error.value) == (
        f"{name} of batch 1 has values that are NaN or infinite; look at how its images were read "
        "or scaled"
    )


def test_no_batch_is_named(tiny: dict[str, Any]) -> None:
    setup = set_up(RunConfig(**tiny))
    with pytest.raises(DataError) as error:
        evaluate(setup.learner, *setup.learner.init(), [])
    assert str(error.value) == ("an accuracy needs at least one batch of tasks, and there was none")
    one = setup.normalization.batch(setup.test.batch([0, 1]))
    with pytest.raises(DataError) as error:
        evaluate(setup.learner, *setup.learner.init(), one)  # type: ignore[arg-type]
    assert str(error.value) == "batches is one TaskBatch; give several, or a list of it: [batch]"
