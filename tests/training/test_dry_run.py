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
from gradshare.training import memory
from gradshare.training.dry_run import Estimate
from gradshare.training.layout import Layout
from tests.training.killing import timeless
from tests.training.small import PROBLEMS, mlp, rows


def estimate(**changes: Any) -> Estimate:
    given = rows(**changes)
    del given["progress"]
    return gs.estimate(**given)


def test_the_whole_is_the_sum_of_its_parts() -> None:
    whole = Estimate(Layout("vmap", "keep", 0), 2.0, 5.0, 7.0, 4, 10, 1, 1)
    assert whole.epoch == 10 * 2 + 5
    assert whole.run == 4 * 25 + 7


def test_it_is_shown_as_a_table() -> None:
    layout = Layout("vmap", "keep", 0)
    whole = Estimate(layout, 0.25, 30.0, 7000.0, 4, 1000, 2_000_000, 10**9)
    assert str(whole).splitlines() == [
        "layout         tasks all at once (vmap), graphs kept (keep)",
        "an iteration   0.250 s at most",
        "validation     30.0 s after each epoch",
        "test           1.9 h",
        "an epoch       5 min, validation included",
        "the whole run  2.3 h, 4 × an epoch and the test",
        "peak memory    about 2.0 MB",
        "disk           1.0 GB at most",
    ]


def test_the_slower_of_the_first_and_the_last_iteration_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([0.0, 1.0, 1.0, 3.0, *range(4, 1000)])  # the first iteration, and the last
    monkeypatch.setattr(module, "REPETITIONS", 1)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    assert estimate().iteration == 2


@pytest.mark.parametrize("problem", PROBLEMS)
def test_everything_is_measured_and_nothing_written(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # a second for everything that is timed
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    given = PROBLEMS[problem](val_tasks=30, test_tasks=40)
    del given["progress"]
    found = gs.estimate(**given, out=tmp_path / "run")
    assert found.iteration == 1
    assert found.validation == 30 / 10  # ten tasks took a second
    assert found.test == 40 / 10
    assert (found.epochs, found.iterations) == (3, 3)
    assert found.layout.tasks == "vmap"
    assert found.memory > 0
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
    monkeypatch.setattr(memory, "available", lambda device: 1)
    with pytest.raises(RunError, match="of memory"):
        estimate()
