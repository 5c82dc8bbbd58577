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


def test_without_a_terminal_there_is_a_line_for_each_validated_epoch_with_its_score() -> None:
    output = io.StringIO()
    with RunBars(Console(file=output)) as bars:
        watch = bars.watch("run")
        for epoch in (1, 2):
            score = None if epoch == 1 else "accuracy 50.0 %"
            watch(Progress("train", 10 * epoch, 20, epoch, score))
            watch(Progress("validate", 10, 20, epoch, score))
            watch(Progress("validate", 20, 20, epoch, f"accuracy {40 + 10 * epoch}.0 %"))
        watch(Progress("test", 8, 8, 2, "accuracy 60.0 %"))
    lines = [line.split("  ")[:2] for line in output.getvalue().splitlines()]
    assert lines == [
        ["run: epoch 1", "validation accuracy 50.0 %"],
        ["run: epoch 2", "validation accuracy 60.0 %"],
    ]


def test_a_bar_says_that_the_score_beside_an_epoch_is_of_the_last_validation() -> None:
    with RunBars(Console(file=io.StringIO(), force_terminal=True)) as bars:
        bars("run", Progress("train", 11, 20, 2, "accuracy 50.0 %"))
        (task,) = bars._bars.tasks
    words = " ".join(task.fields["phase"].split())
    assert words == "epoch 2 last validation accuracy 50.0 %"


def test_of_few_runs_all_stay() -> None:
    with RunBars(Console(file=io.StringIO(), force_terminal=True)) as bars:
        for number in range(3):
            bars(f"run {number}", Progress("test", 8, 8, 2, "accuracy 50.0 %"))
        assert shown(bars) == ["run 0", "run 1", "run 2"]
