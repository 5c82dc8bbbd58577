"""What is checked before a comparison trains anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradshare.config import from_settings
from gradshare.errors import ConfigError, RunError
from gradshare.experiments.compare import compare, jobs_of
from gradshare.experiments.executors.local import LocalExecutor
from tests.experiments.executor_runs import ignore


def start(settings: dict[str, Any], out: Path, *, jobs: int) -> None:
    runs = jobs_of(from_settings(settings), out, control=True, seeds=1, resume=False)
    compare(runs, executor=LocalExecutor(jobs, 1), command="gradshare compare", watch=ignore)


def test_the_memory_of_all_runs_that_go_side_by_side_is_checked_before_any_begins(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshare.training.preflight.available", lambda device: 1000)
    with pytest.raises(RunError, match=r"^with --jobs 3, the run needs about .* 0\.0 MB are"):
        start(tiny, tmp_path / "out", jobs=3)
    assert not (tmp_path / "out").exists()


def test_runs_that_are_not_about_accuracy_are_refused_before_any_begins(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        start({**tiny, "metric": "loss"}, tmp_path / "out", jobs=1)
    assert str(error.value) == (
        "runs are compared by their accuracy, and these select checkpoints by loss; use --metric "
        "accuracy, or train each with `gradshare train`"
    )
    assert not (tmp_path / "out").exists()
