"""`gradshare train --dry-run`: what it measures, and that it leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gradshare.config import RunConfig
from gradshare.errors import RunError
from gradshare.training import dry_run as module
from gradshare.training import preflight
from gradshare.training.dry_run import Estimate, Stretch, dry_run
from gradshare.training.layout import Layout
from gradshare.training.memory import estimate
from gradshare.training.setup import set_up

LAYOUT = Layout("cpu", "vmap", "keep", compile=False)


def test_the_whole_is_the_sum_of_its_parts() -> None:
    whole = Estimate(LAYOUT, (Stretch(1, 10, 2.0), Stretch(11, 40, 1.0)), 5.0, 7.0, 4, None, 1, 1)
    assert whole.training == 50
    assert whole.epoch == 50 / 4 + 5
    assert whole.run == 50 + 4 * 5 + 7


@pytest.mark.parametrize(
    ("settings", "stretches"),
    [
        ({}, [(1, 9)]),
        ({"method": "maml++", "multi_step_loss": "0"}, [(1, 9)]),
        ({"method": "maml++", "multi_step_loss": "4"}, [(1, 4), (5, 9)]),
        (
            {"method": "maml++", "multi_step_loss": "4", "first_order_for": "2"},
            [(1, 2), (3, 4), (5, 9)],
        ),
        ({"first_order_for": "9"}, [(1, 9)]),
        ({"first_order_for": "2", "order": "first"}, [(1, 9)]),
    ],
)
def test_iterations_that_cost_the_same_are_timed_once(
    settings: dict[str, Any],
    stretches: list[tuple[int, int]],
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REPETITIONS", 1)
    found = dry_run(RunConfig(**{**tiny, **settings}), None)
    assert [(stretch.first, stretch.last) for stretch in found.stretches] == stretches
    assert all(stretch.seconds > 0 for stretch in found.stretches)


def test_everything_is_measured_and_nothing_written(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # a second for everything that is timed
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    config = RunConfig(**{**tiny, "val_tasks": 30, "test_tasks": 40})
    found = dry_run(config, tmp_path / "run")
    setup = set_up(config)
    learned, state = setup.learner.init()
    assert found.layout == setup.layout
    assert found.stretches == (Stretch(1, 9, 1.0),)
    assert found.validation == 3  # chunks of ten tasks
    assert found.test == 2 * 4  # two models
    assert found.memory_estimated == estimate(config, setup.learner, setup.image_shape)
    if Path("/proc/self/status").exists():
        assert found.memory_measured is not None
        assert found.memory_measured > 0
    assert found.disk == preflight.disk_bytes(config, learned, state)
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_would_be_refused_for_a_dry_run_is_too(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RunError, match=r"already holds 'mine\.txt'"):
        dry_run(RunConfig(**tiny), tmp_path)
    monkeypatch.setattr(preflight, "available", lambda device: 1)
    with pytest.raises(RunError, match="of memory"):
        dry_run(RunConfig(**tiny), None)
