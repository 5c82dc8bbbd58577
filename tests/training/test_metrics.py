"""Metrics, the score that selects checkpoints, and values that are not finite."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import gradshare as gs
from gradshare.errors import ConfigError
from gradshare.training.metrics import Metric, accuracy, default_metrics, require_metrics
from gradshare.training.records import ranked
from gradshare.training.run import Run, open_run
from gradshare.training.statistics import Interval
from tests.training.small import ROWS, WAYS, mlp, rows


def largest(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.abs().max()


def undefined_for_some(outputs: Tensor, targets: Tensor) -> float:
    """Like a rank correlation of equal ranks: NaN for some tasks."""
    right = float((outputs.argmax(1) == targets).float().mean())
    return right if right > 0.4 else math.nan


def test_accuracy_is_the_share_of_right_examples_and_what_is_not_finite_is_wrong() -> None:
    outputs = torch.tensor([[2.0, 1], [0, 1], [math.nan, 1], [math.inf, 0]])
    assert float(accuracy(outputs, torch.tensor([0, 0, 1, 0]))) == 0.25


@given(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4))
def test_a_metric_is_of_each_task_without_its_padding(sizes: list[int]) -> None:
    outputs = torch.randn(len(sizes), 3, WAYS)
    targets = torch.randint(WAYS, (len(sizes), 3))
    found = Metric(F.cross_entropy).values(outputs, targets, sizes)
    assert found.dtype == torch.float64
    for task, size in enumerate(sizes):
        expected = F.cross_entropy(outputs[task, :size], targets[task, :size])
        assert float(found[task]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "interval", "shown"),
    [
        (Metric(max, unit="%"), Interval(0.7131, 0.0123, 600), "71.3 ± 1.2 %"),
        (Metric(max, unit="%"), Interval(0.7131, None, 1), "71.3 %"),
        (Metric(max, unit="mm"), Interval(12.345, 0.4567, 60), "12.35 ± 0.46 mm"),
        (Metric(max), Interval(12345.6, 456.7, 60), "12346 ± 457"),
        (Metric(max), Interval(0.00012345, 0.0000123, 60), "0.000123 ± 0.000012"),
        (Metric(max), Interval(0.5, 0.0, 60), "0.5000 ± 0.0000"),
        (Metric(max), Interval(math.nan, math.nan, 60), "nan ± nan"),
    ],
)
def test_a_mean_is_shown_with_as_many_digits_as_its_interval_has_meaning_for(
    metric: Metric, interval: Interval, shown: str
) -> None:
    assert metric.show(interval) == shown


@pytest.mark.parametrize("best", ["high", "low"])
def test_a_score_that_is_not_finite_ranks_last(best: Any) -> None:
    rank = Metric(max, best=best).rank
    values = [0.5, math.nan, -2.0, math.inf, 0.7]
    ranked = sorted(values, key=rank)
    assert ranked[:3] == sorted([0.5, -2.0, 0.7], reverse=best == "high")
    assert {rank(value) for value in ranked[3:]} == {math.inf}


def test_defaults_are_accuracy_and_loss_for_classes_and_the_loss_for_other_targets() -> None:
    learner = gs.maml(mlp(), loss=F.cross_entropy)
    outputs = torch.randn(2, 5, WAYS)
    found = default_metrics(learner, outputs, torch.zeros(2, 5, dtype=torch.int64))
    assert {name: metric.best for name, metric in found.items()} == {
        "accuracy": "high",
        "loss": "low",
    }
    assert found["accuracy"].chance == pytest.approx(1 / WAYS)
    assert found["loss"].function is F.cross_entropy
    pixels = default_metrics(
        learner, torch.randn(2, 5, WAYS, 4, 4), torch.zeros(2, 5, 4, 4, dtype=torch.int64)
    )
    assert list(pixels) == ["accuracy", "loss"]
    real = gs.maml(mlp(outputs=1), loss=F.mse_loss)
    assert list(default_metrics(real, torch.randn(2, 5, 1), torch.randn(2, 5, 1))) == ["loss"]


def test_the_users_metrics_are_measured_by_split_and_selected_by_the_score(
    tmp_path: Path,
) -> None:
    metrics = {"largest": Metric(largest, best="low", unit="V"), "accuracy": Metric(accuracy)}
    run = gs.fit(**rows(metrics=metrics, score="largest", ensemble=1), out=tmp_path / "run")
    for record in run.history:
        assert record.metrics["train"].keys() == {"loss", "largest", "accuracy"}
        for split in ("support before", "support after", "query before", "validation"):
            assert record.metrics[split].keys() == {"largest", "accuracy"}
    lowest = min(run.history, key=lambda record: record.mean("largest")).epoch
    (kept,) = (run.path / "checkpoints").glob("epoch-*")
    assert kept.name == f"epoch-{lowest:06d}.safetensors"
    assert str(run.tested).startswith("largest ")
    assert " V, accuracy 0." in str(run.tested)


def test_the_first_metric_is_the_score_unless_one_is_named(tmp_path: Path) -> None:
    metrics = {"largest": Metric(largest), "accuracy": Metric(accuracy)}
    assert gs.fit(**rows(metrics=metrics), out=tmp_path / "run").score == "largest"
    assert gs.fit(**rows(score="loss"), out=tmp_path / "other").score == "loss"


def never(outputs: Tensor, targets: Tensor) -> float:
    return math.nan


@pytest.mark.parametrize("function", [undefined_for_some, never])
def test_a_score_that_is_not_finite_stops_nothing(function: Any, tmp_path: Path) -> None:
    def fit(path: Path, **changes: Any) -> Run:
        given = rows(metrics={"odd": Metric(function), "loss": Metric(F.cross_entropy)}, **changes)
        return gs.fit(**given, out=path, resume="auto")

    run = fit(tmp_path / "run", val_tasks=20)
    assert run.diverged is None
    assert [record.epoch for record in run.history] == [1, 2, 3]
    assert all(math.isnan(record.mean("odd")) for record in run.history)
    assert run.test is not None
    # Of equals the earliest are kept.
    names = sorted(path.name for path in (run.path / "checkpoints").glob("epoch-*"))
    assert names == ["epoch-000001.safetensors", "epoch-000002.safetensors"]
    assert math.isnan(run.test.single["odd"][0]) or function is undefined_for_some
    again = fit(tmp_path / "run", val_tasks=20)
    assert [record.epoch for record in again.history] == [1, 2, 3]
    extended = fit(tmp_path / "run", val_tasks=20, epochs=4)
    whole = fit(tmp_path / "whole", val_tasks=20, epochs=4)
    assert str(extended.test) == str(whole.test)  # NaN is not equal to itself


def test_a_finite_score_is_preferred_to_one_that_is_not() -> None:
    class Record:
        def __init__(self, epoch: int, value: float) -> None:
            self.epoch, self.value = epoch, value

        def mean(self, metric: str) -> float:
            return self.value

    history: Any = [Record(e, v) for e, v in enumerate([math.nan, 0.2, math.inf, 0.4, 0.4], 1)]
    for best, epochs in (("high", [4, 5, 2, 1, 3]), ("low", [2, 4, 5, 1, 3])):
        found = ranked(history, Metric(max, best=best), "score")  # type: ignore[arg-type]
        assert [record.epoch for record in found] == epochs


def test_metrics_may_be_given_other_names_and_functions_when_a_run_is_evaluated(
    tmp_path: Path,
) -> None:
    run = gs.fit(**rows(), out=tmp_path / "run")
    found = run.evaluate(ROWS[2], tasks=7, metrics={"largest": Metric(largest)})
    assert found.score == "largest"
    assert len(found.values["largest"]) == 7


def test_a_reopened_run_asks_for_the_metrics_that_it_was_trained_with(tmp_path: Path) -> None:
    metrics = {"largest": Metric(largest, best="low")}
    run = gs.fit(**rows(metrics=metrics), out=tmp_path / "run")
    learner = rows()["learner"]
    without = open_run(run.path, learner)
    assert without.score == "largest"
    assert without.metrics["largest"].best == "low"
    assert without.table() == run.table()
    with pytest.raises(ConfigError) as error:
        without.evaluate(ROWS[2], tasks=3)
    assert str(error.value) == (
        "the run was trained with a metric of your own; give it again: "
        "open_run(path, learner, metrics={name: Metric(…)})"
    )
    again = open_run(run.path, learner, metrics=metrics)
    assert again.evaluate(ROWS[2], tasks=3).values == run.evaluate(ROWS[2], tasks=3).values


def test_what_is_not_a_metric_is_named() -> None:
    for build, words in (
        (lambda: Metric("accuracy"), "a metric's function is 'accuracy'; give a function"),  # type: ignore[arg-type]
        (lambda: Metric(max, best="most"), "a metric's best is 'most'; give 'high' or 'low'"),  # type: ignore[arg-type]
        (
            lambda: require_metrics({"acc": max}, None),  # type: ignore[dict-item]
            "the metric 'acc' is <built-in function max>; give a gradshare.Metric(function, "
            "best='high' or 'low')",
        ),
        (
            lambda: require_metrics({"loss": Metric(max)}, "mse"),
            "the score 'mse' is not a metric; give one of ['loss']",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            build()
        assert str(error.value) == words


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.ones(3), "shape (3,)"),
        (torch.ones(1), "shape (1,)"),
        ("0.5", "str"),
        (None, "NoneType"),
    ],
)
def test_a_metric_that_returns_no_number_for_a_task_is_named(value: Any, what: str) -> None:
    def mine(outputs: Tensor, targets: Tensor) -> Any:
        return value

    with pytest.raises(ConfigError) as error:
        Metric(mine).values(torch.randn(2, 3, WAYS), torch.zeros(2, 3))
    assert str(error.value) == (
        f"the metric mine returned a value of {what} for a task; it must return one number, such "
        "as the mean over the queries"
    )


def constant(value: Any, outputs: Tensor, targets: Tensor) -> Any:
    return value


def test_numbers_of_numpy_and_python_are_numbers() -> None:
    for value in (np.float32(0.5), np.array(0.5), 0.5, torch.tensor(0.5)):
        metric = Metric(functools.partial(constant, value))
        found = metric.values(torch.randn(2, 3, WAYS), torch.zeros(2, 3))
        assert found.tolist() == [0.5, 0.5]
