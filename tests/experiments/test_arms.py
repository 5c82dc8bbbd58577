"""From runs to the arms of `results.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradshare.config import RunConfig
from gradshare.experiments.arms import arm_of
from gradshare.training.run import train


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
    run = train(RunConfig(**{**tiny, **settings}), tmp_path / "run")
    points = arm_of(run).sharing
    learned = run.history if has_m or has_lambda else []
    assert [point.epoch for point in points] == [record.epoch for record in learned]
    for point, record in zip(points, learned, strict=True):
        assert (point.m is not None, point.lambda_ is not None) == (has_m, has_lambda)
        if has_m:
            assert record.m is not None
            assert point.m == pytest.approx(sum(record.m) / len(record.m), abs=1e-12)
        if has_lambda:
            assert record.lambda_ is not None
            assert point.lambda_ == pytest.approx(sum(record.lambda_) / len(record.lambda_))
