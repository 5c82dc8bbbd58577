"""What is shown of runs while they train."""

from __future__ import annotations

import io

from rich.console import Console

from gradshare.training.options import Progress
from gradshare.training.progress import MOST_BARS, RunBars


def shown(bars: RunBars) -> list[str]:
    return [task.description for task in bars._bars.tasks if task.visible]


def test_of_many_runs_those_that_are_done_make_room() -> None:
    with RunBars(Console(file=io.StringIO(), force_terminal=True)) as bars:
        for number in range(MOST_BARS + 3):
            bars(f"run {number}", Progress("train", 1, 10, 1, None))
            if number != 1:  # which goes on
                bars(f"run {number}", Progress("test", 8, 8, 2, "accuracy 50.0 %"))
        names = shown(bars)
    assert len(names) == MOST_BARS
    assert "run 1" in names
    assert f"run {MOST_BARS + 2}" in names
    assert "run 0" not in names


def test_of_few_runs_all_stay() -> None:
    with RunBars(Console(file=io.StringIO(), force_terminal=True)) as bars:
        for number in range(3):
            bars(f"run {number}", Progress("test", 8, 8, 2, "accuracy 50.0 %"))
        assert shown(bars) == ["run 0", "run 1", "run 2"]
