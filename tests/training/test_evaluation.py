"""A learner on new tasks: what is measured, against the oracle and against plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradshare as gs
from gradshare.errors import ConfigError, DataError
from gradshare.training.distributed import OneProcess
from gradshare.training.evaluation import (
    CHUNK,
    Evaluation,
    ensemble_values,
    mean_of_finite,
    on_all_tasks,
    values_before_and_after,
)
from gradshare.training.metrics import Metric, accuracy
from gradshare.training.run import Run
from gradshare.training.statistics import confidence95
from tests import oracle
from tests.problems import as_oracle_batch, learner, perturbed, tasks
from tests.training.small import ROWS, class_tasks, mlp, regression, rows

CPU = torch.device("cpu")
METRICS = {"accuracy": Metric(accuracy, unit="%"), "loss": Metric(F.cross_entropy, best="low")}


class Listed:
    """A source of a few tasks that are given."""

    def __init__(self, batch: gs.TaskBatch) -> None:
        self._batch = batch

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        return self._batch.map(lambda tensor: tensor[list(indices)])


@pytest.mark.parametrize("inductive", [False, True])
def test_the_fit_before_and_after_adaptation_is_the_oracles(inductive: bool) -> None:
    steps, count = 3, 4
    s = oracle.Setting(
        "maml++", "sharing", steps, 0.4, per_step_batch_norm=True, inductive=inductive
    )
    ours = learner(s)
    meta, carried = ours.init()
    meta = perturbed(meta)
    batch = tasks(count, seed=3)
    carried = ours.outer_step(meta, carried, batch, iteration=0).carried  # so that there is a ĝ
    after = ours.adapt(meta, carried, batch).params

    expected: dict[str, list[tuple[float, float]]] = {}
    for task, (support_x, support_y, query_x, query_y) in enumerate(
        zip(*as_oracle_batch(batch), strict=True)
    ):
        for when, norm in (("before", 0), ("after", steps - 1)):
            theta = {name: meta[f"model.{name}"] for name in ours.adapted}
            if when == "after":
                theta = {name: tensor[task] for name, tensor in after.items()}
            theta |= {name: meta[f"model.{name}"][norm] for name in ours.per_step}
            statistics = support_x if inductive else None
            for what, outputs, labels in (
                ("support", oracle.network(theta, support_x, 0.01, None), support_y),
                ("query", oracle.network(theta, query_x, 0.01, statistics), query_y),
            ):
                right = (outputs.argmax(-1) == labels).double().mean()
                task_values = (right.item(), F.cross_entropy(outputs, labels).item())
                expected.setdefault(f"{what} {when}", []).append(task_values)
    expected["validation"] = expected.pop("query after")

    measure = values_before_and_after(ours, (meta, carried), METRICS)
    found = on_all_tasks(OneProcess(), Listed(batch), count, CPU, measure)
    for split, by_task in expected.items():
        values = found[split]
        assert values["accuracy"] == [right for right, _ in by_task]
        assert values["loss"] == pytest.approx([loss for _, loss in by_task], rel=1e-9)
    assert len({tuple(found[split]["loss"]) for split in expected}) == 4


def test_an_ensemble_is_of_the_mean_outputs_and_its_first_member_alone_is_told_apart() -> None:
    ours = gs.maml(mlp(), steps=2, sharing=True)
    models = [gs.maml(mlp(seed=seed), steps=2, sharing=True).init() for seed in range(3)]
    batch = ROWS[2].batch(range(8))
    outputs = [
        ours.predict(meta, ours.adapt(meta, carried, batch), batch).detach()
        for meta, carried in models
    ]

    def right(outputs: Tensor) -> list[float]:
        found: list[float] = (outputs.argmax(-1) == batch.query_y).double().mean(-1).tolist()
        return found

    measure = ensemble_values(ours, models, METRICS)
    found = on_all_tasks(OneProcess(), ROWS[2], 8, CPU, measure)
    assert found["single"]["accuracy"] == right(outputs[0])
    assert found["ensemble"]["accuracy"] == right(torch.stack(outputs).mean(0))
    different = {tuple(right(each)) for each in (*outputs, torch.stack(outputs).mean(0))}
    assert len(different) == 4


def test_a_member_that_overflows_on_a_task_does_not_spoil_the_ensemble() -> None:
    ours = gs.maml(mlp(), steps=2, sharing=True)
    meta, carried = ours.init()
    broken = {name: torch.full_like(tensor, math.nan) for name, tensor in meta.items()}

    def accuracies(*models: Any) -> list[float]:
        measure = ensemble_values(ours, models, METRICS)
        return on_all_tasks(OneProcess(), ROWS[2], 5, CPU, measure)["ensemble"]["accuracy"]

    assert accuracies((meta, carried), (broken, carried)) == accuracies((meta, carried))
    assert accuracies((broken, carried)) == [0.0] * 5


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 4, 3, 5)])
def test_the_mean_of_members_leaves_out_examples_that_are_not_finite(
    shape: tuple[int, ...],
) -> None:
    outputs = torch.randn(3, *shape)
    spoilt = outputs.clone()
    spoilt[1, 0, 2] = math.inf
    found, expected = mean_of_finite(spoilt), outputs.mean(0)
    expected[0, 2] = outputs[[0, 2], 0, 2].mean(0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("problem", [rows, regression])
def test_any_meta_parameters_are_evaluated_as_by_a_plain_loop(problem: Any) -> None:
    given = problem()
    ours, metrics = given["learner"], given.get("metrics", METRICS)
    meta, carried = ours.init()
    found = gs.evaluate(ours, meta, carried, given["test"], tasks=13, steps=3, metrics=metrics)
    for index in range(13):
        task = given["test"].batch([index])
        outputs = ours.predict(meta, ours.adapt(meta, carried, task, steps=3), task)[0]
        for name, metric in metrics.items():
            value = float(metric.function(outputs, task.query_y[0]))
            assert found.values[name][index] == pytest.approx(value, rel=1e-5)
    assert len(found) == 13
    assert found[next(iter(metrics))] == confidence95(found.values[next(iter(metrics))])


def test_an_evaluation_changes_neither_the_tensors_nor_the_generators() -> None:
    ours = gs.maml(mlp(), steps=2, sharing=True)
    meta, carried = ours.init()
    before = {name: tensor.clone() for name, tensor in {**meta, **carried}.items()}
    generator = torch.get_rng_state()
    default = gs.evaluate(ours, meta, carried, ROWS[2], tasks=3)
    assert torch.equal(torch.get_rng_state(), generator)
    assert default.score == "accuracy"
    assert default.metrics["accuracy"].chance == pytest.approx(1 / 3)
    assert (
        default.values == gs.evaluate(ours, meta, carried, ROWS[2], tasks=3, metrics=METRICS).values
    )
    for name, tensor in {**meta, **carried}.items():
        assert torch.equal(tensor, before[name])


def test_numbers_that_are_no_counts_are_refused(tmp_path: Path) -> None:
    run = gs.fit(**rows(), out=tmp_path / "run")
    for name, value, least in (
        *(("tasks", value, 1) for value in (0, "2", 1e3, math.nan)),
        *(("steps", value, 0) for value in (-1, "1", 2.5)),
    ):
        with pytest.raises(ConfigError) as error:
            run.evaluate(ROWS[2], **{name: value})  # type: ignore[arg-type]
        expected = f"{name} is {value!r}; give a whole number, at least {least}"
        assert str(error.value) == expected
    with pytest.raises(ConfigError, match="steps is -1; give a whole number"):
        run.adapt(torch.zeros(3, 6), [0, 1, 2], steps=-1)


def test_an_evaluation_says_what_was_measured_and_how(tmp_path: Path) -> None:
    run = gs.fit(**rows(), out=tmp_path / "run")
    found = run.evaluate(ROWS[2].replace(shots=3), tasks=12, steps=4, ensemble=2)
    mean, ci95, n = found["accuracy"]
    assert ci95 is not None
    assert n == 12
    assert str(found) == (
        f"accuracy {100 * mean:.1f} ± {100 * ci95:.1f} %, loss "
        f"{run.metrics['loss'].show(found['loss'])} (12 tasks, ensemble of 2, 4 inner steps)"
    )
    other = run.evaluate(ROWS[2], tasks=12, metrics={"share": Metric(accuracy)})
    assert other.score == "share"
    assert other.values["share"] == run.evaluate(ROWS[2], tasks=12).values["accuracy"]


def test_the_worst_tasks_are_those_with_the_worst_scores_by_index() -> None:
    values = {"score": [0.5, 0.1, math.nan, 0.9, 0.1]}
    high = Evaluation(values, {"score": Metric(max)}, "score")
    (first, value), *rest = high.worst(4)
    assert first == 2
    assert math.isnan(value)
    assert rest == [(1, 0.1), (4, 0.1), (0, 0.5)]
    low = Evaluation(values, {"score": Metric(max, best="low")}, "score")
    assert low.worst(3)[1:] == [(3, 0.9), (0, 0.5)]
    assert len(low.worst(99)) == 5


def test_a_run_is_evaluated_with_at_most_the_checkpoints_that_it_kept(tmp_path: Path) -> None:
    run: Run = gs.fit(**rows(), out=tmp_path / "run")
    for count in (0, 3, "1", 1.5):
        with pytest.raises(ConfigError) as error:
            run.evaluate(ROWS[2], ensemble=count)  # type: ignore[arg-type]
        assert str(error.value) == (
            f"ensemble is {count!r}, and {run.path} has kept 2 checkpoints; give a number from 1 "
            "to 2"
        )


def test_an_impure_source_is_not_evaluated(tmp_path: Path) -> None:
    class Impure:
        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            x = torch.randn(len(indices), 3, 6)
            y = torch.arange(3).expand(len(indices), 3)
            return gs.TaskBatch(x, y, x, y)

    run = gs.fit(**rows(), out=tmp_path / "run")
    with pytest.raises(DataError, match=r"Impure\.batch gave another .*_x for task 599"):
        run.evaluate(Impure())


def test_values_by_task_go_to_pandas_where_it_is_installed() -> None:
    pandas = pytest.importorskip("pandas")
    frame = Evaluation({"loss": [0.5, 0.25]}, METRICS, "loss").to_pandas()
    expected = pandas.DataFrame({"loss": [0.5, 0.25]}).rename_axis("task")
    pandas.testing.assert_frame_equal(frame, expected)


def test_what_some_chunks_of_tasks_lack_is_left_out() -> None:
    """Such as labels, if some tasks have too many classes for them."""

    def measure(batch: gs.TaskBatch) -> dict[str, dict[str, list[Any]]]:
        values = [0.0] * len(batch)
        full = {"right": values} if len(batch) == CHUNK else {}
        return {"ensemble": {"loss": values}, "labels": full}

    found = on_all_tasks(OneProcess(), gs.Sinusoids(), CHUNK + 1, CPU, measure)
    assert found == {"ensemble": {"loss": [0.0] * (CHUNK + 1)}, "labels": {}}


def test_a_loss_of_ones_own_may_take_more_ways_than_in_training(tmp_path: Path) -> None:
    learner = gs.maml(mlp(outputs=8), loss=lambda outputs, y: 2 * F.cross_entropy(outputs, y))
    run = gs.fit(**rows(learner=learner, epochs=1, iterations=1), out=tmp_path / "run")
    five = class_tasks(6, classes=24)[0].replace(ways=5)
    assert len(run.evaluate(five, tasks=2)) == 2
    fixed = gs.fit(**rows(epochs=1, iterations=1), out=tmp_path / "fixed")
    with pytest.raises(
        ConfigError, match=r"has tasks of 5 classes, and this run was trained for 3"
    ):
        fixed.evaluate(five, tasks=2)
