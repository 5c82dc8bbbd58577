"""From runs to the arms of `results.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradshare.config import from_settings, train
from gradshare.experiments.arms import arm_of, finished
from gradshare.tasks.datasets import open_dataset


@pytest.mark.parametrize(
    ("settings", "has_m", "has_lambda"),
    [
        ({}, True, True),
        ({"fixed_lambda": 0.5}, True, False),
        ({"fixed_m": 0.5}, False, True),
        ({"sharing_control": "rate-control"}, False, True),
        ({"sharing_control": "learned-rates"}, False, False),
        ({"fixed_m": 1.0, "fixed_lambda": 0.5}, False, False),
        ({"sharing": False}, False, False),
    ],
)
def test_an_arm_has_the_mean_of_every_gate_that_it_learned(
    tiny: dict[str, Any], tmp_path: Path, settings: dict[str, Any], has_m: bool, has_lambda: bool
) -> None:
    config = from_settings({**tiny, **settings})
    run = train(config, tmp_path / "run")
    points = arm_of(run, config).sharing
    learned = run.history if has_m or has_lambda else []
    assert [point.epoch for point in points] == [record.epoch for record in learned]
    for point, record in zip(points, learned, strict=True):
        assert (point.m is not None, point.lambda_ is not None) == (has_m, has_lambda)
        if has_m:
            m = record.learned["sharing.m"]
            assert point.m == pytest.approx(sum(m) / len(m), abs=1e-12)
        if has_lambda:
            gates = record.learned["sharing.lambda"]
            assert point.lambda_ == pytest.approx(sum(gates) / len(gates), abs=1e-12)


def test_an_arm_has_the_accuracies_and_losses_that_the_run_recorded(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = from_settings({**tiny, "seed": 5})
    run = train(config, tmp_path / "run")
    arm = arm_of(run, config)
    assert (arm.name, arm.seed, arm.chance) == ("gradient-sharing", 5, 1 / 3)
    assert (arm.seconds, arm.message) == (run.seconds, None)
    best = max(run.history, key=lambda record: record.mean("accuracy"))
    assert arm.best_epoch == best.epoch
    for record, point, inner in zip(run.history, arm.validation, arm.inner_loop, strict=True):
        accuracy = record.metrics["validation"]["accuracy"]
        assert (point.epoch, point.accuracy, point.ci95) == (record.epoch, *accuracy[:2])
        for place, split in (
            ("support_{}_before", "support before"),
            ("support_{}_after", "support after"),
            ("query_{}_before", "query before"),
            ("query_{}_after", "validation"),
        ):
            for metric in ("accuracy", "loss"):
                assert getattr(inner, place.format(metric)) == record.mean(metric, split)
    assert run.test is not None
    assert arm.test is not None
    assert arm.test_single is not None
    assert arm.test_accuracies == tuple(run.test.ensemble["accuracy"])
    assert (arm.test.tasks, arm.test.ensemble) == (8, 2)
    assert arm.test.accuracy == pytest.approx(sum(run.test.ensemble["accuracy"]) / 8)
    assert arm.test_single.accuracy == pytest.approx(sum(run.test.single["accuracy"]) / 8)
    assert arm.test_single.ensemble == 1


def test_what_a_run_came_to_names_the_images_that_it_was_trained_on(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = from_settings(tiny)
    environment = finished(train(config, tmp_path / "run"), config).environment
    store = open_dataset("tiny", tiny["data_root"])
    assert environment["images_sha256"] == store.sha256
    assert environment["images"] == sum(split.counts.sum() for split in store.splits.values())
    assert environment["device"] == "cpu"
