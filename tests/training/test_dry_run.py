"""A dry run: what it measures, and that it leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import gradshare as gs
from gradshare.errors import ConfigError, RunError
from gradshare.training import dry_run as module
from gradshare.training import preflight
from gradshare.training.dry_run import Estimate, Stretch
from gradshare.training.layout import Layout
from tests.training.killing import timeless
from tests.training.small import PROBLEMS, mlp, rows


def estimate(**changes: Any) -> Estimate:
    given = rows(**changes)
    del given["progress"]
    return gs.estimate(**given)


def test_the_whole_is_the_sum_of_its_parts() -> None:
    stretches = (Stretch(1, 10, 2.0), Stretch(11, 40, 1.0))
    whole = Estimate(Layout("vmap", "keep", 0), stretches, 5.0, 7.0, 4, None, 1, 1)
    assert whole.training == 50
    assert whole.epoch == 50 / 4 + 5
    assert whole.run == 50 + 4 * 5 + 7


def test_it_is_shown_as_a_table() -> None:
    stretches = (Stretch(1, 1000, 0.5), Stretch(1001, 4000, 0.25))
    whole = Estimate(
        Layout("vmap", "keep", 0), stretches, 30.0, 90.0, 4, 3_000_000, 2_000_000, 10**9
    )
    assert str(whole).splitlines() == [
        "layout                     tasks all at once (vmap), graphs kept (keep)",
        "iterations 1 to 1,000      0.500 s each",
        "iterations 1,001 to 4,000  0.250 s each",
        "validation                 30.0 s after each epoch",
        "test                       2 min",
        "an epoch                   6 min, validation included",
        "all 4 epochs and the test  24 min",
        "peak memory                3.0 MB measured, 2.0 MB estimated from what autograd keeps",
        "disk                       1.0 GB at most",
    ]
    unknown = Estimate(Layout("vmap", "keep", 0), stretches, 1, 7000, 4, None, 2_000_000, 1)
    assert "peak memory                2.0 MB estimated" in str(unknown)
    assert "test                       1.9 h" in str(unknown)


def plus_plus(**options: Any) -> gs.MetaLearner:
    return gs.maml_plus_plus(mlp(), steps=2, **options)


@pytest.mark.parametrize(
    ("learner", "stretches"),
    [
        (gs.maml(mlp(), steps=2), [(1, 9)]),
        (plus_plus(multi_step_iterations=0), [(1, 9)]),
        (plus_plus(multi_step_iterations=4), [(1, 4), (5, 9)]),
        (
            plus_plus(multi_step_iterations=4, first_order_iterations=2),
            [(1, 2), (3, 4), (5, 9)],
        ),
        (gs.maml(mlp(), first_order_iterations=9), [(1, 9)]),
        (gs.maml(mlp(), first_order_iterations=2, second_order=False), [(1, 9)]),
    ],
)
def test_iterations_that_cost_differently_are_measured_apart(
    learner: gs.MetaLearner, stretches: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPETITIONS", 1)
    found = estimate(learner=learner)
    assert [(stretch.first, stretch.last) for stretch in found.stretches] == stretches
    assert all(stretch.seconds > 0 for stretch in found.stretches)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_everything_is_measured_and_nothing_written(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # a second for everything that is timed
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    given = PROBLEMS[problem](val_tasks=30, test_tasks=40)
    del given["progress"]
    found = gs.estimate(**given, out=tmp_path / "run")
    assert found.stretches == (Stretch(1, 9, 1.0),)
    assert found.validation == 30 / 10  # ten tasks took a second
    assert found.test == 2 * 40 / 10  # by two models
    assert found.epochs == 3
    assert found.layout.tasks == "vmap"
    if Path("/proc/self/status").exists():
        assert found.memory_measured is not None
        assert found.memory_measured >= 0
    assert found.memory_estimated > 0
    assert found.disk > 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_the_same_after_a_dry_run_with_the_same_learner(tmp_path: Path) -> None:
    given = rows(callbacks=[lambda event: pytest.fail("a dry run tells nobody")])
    del given["progress"]
    state = torch.get_rng_state()
    gs.estimate(**given)
    assert torch.equal(torch.get_rng_state(), state)
    given["callbacks"] = ()
    after = gs.fit(**given, progress=False, out=tmp_path / "after")
    assert timeless(after) == timeless(gs.fit(**rows(), out=tmp_path / "fresh"))


def test_what_a_run_would_be_refused_for_a_dry_run_is_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RunError, match=r"already holds 'mine\.txt'"):
        estimate(out=tmp_path)
    with pytest.raises(ConfigError, match="Sequential has 4 outputs"):
        estimate(learner=gs.maml(mlp(outputs=4)))
    monkeypatch.setattr(preflight, "available", lambda device: 1)
    with pytest.raises(RunError, match="of memory"):
        estimate()
