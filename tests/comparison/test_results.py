"""What a comparison came to, written and read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradshare.comparison.results import FILENAME, load_results, save_results
from gradshare.errors import RunError
from gradshare.training.metrics import Metric
from gradshare.training.records import judge, ranked
from tests.comparison.builders import SAMPLE, arm_run, classification, results_of

HIGH = Metric(max, chance=0.2)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = classification("base", "new", seeds=2, controls=("new",), notes=("a note",))
    save_results(results, tmp_path / FILENAME)
    assert load_results(tmp_path) == results
    assert load_results(tmp_path / FILENAME) == results


def test_values_that_are_not_finite_are_null_in_the_file_and_nan_again(tmp_path: Path) -> None:
    run = arm_run("base", validation=[math.nan, 0.3], test=[math.nan, 0.5])
    save_results(results_of(run), tmp_path / FILENAME)
    assert "NaN" not in (tmp_path / FILENAME).read_text(encoding="utf-8")
    (back,) = load_results(tmp_path).runs
    assert math.isnan(back.test["accuracy"][0])
    assert back.test["accuracy"][1] == 0.5
    assert math.isnan(back.history[0].mean("accuracy"))


def duplicate(stored: Any) -> None:
    stored["runs"].append(stored["runs"][0])


def set_to(*path: Any) -> Callable[[Any], None]:
    """An edit that sets the place of a path to its last part."""
    *places, last, value = path

    def edit(stored: Any) -> None:
        for place in places:
            stored = stored[place]
        stored[last] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        duplicate,
        set_to("baseline", "nobody"),
        set_to("controls", ["base"]),
        set_to("metrics", "accuracy", "best", "low"),
        set_to("runs", 0, "test", "accuracy", 0, 7.0),
        set_to("runs", 0, "outcome", "diverged"),
        set_to("runs", 0, "history", []),
        set_to("runs", 0, "arm", "x" * 10_000),
        set_to("mine", 1),
        set_to("runs", []),
        set_to("samples", 0, "queries", 0, 1, "http://x"),
        set_to("sha256", None),
    ],
)
def test_results_that_were_edited_by_hand_are_refused(
    edit: Callable[[Any], None], tmp_path: Path
) -> None:
    file = tmp_path / FILENAME
    save_results(classification("base", "new", samples=[SAMPLE]), file)
    stored = json.loads(file.read_text(encoding="utf-8"))
    edit(stored)
    file.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(RunError) as error:
        load_results(tmp_path)
    assert str(error.value) == (
        f"{file} was edited or is damaged; give the folder of a comparison, or write it again with "
        "--resume auto (resume='auto')"
    )


def test_a_file_that_was_only_formatted_anew_is_read(tmp_path: Path) -> None:
    file = tmp_path / FILENAME
    results = classification("base", "new")
    save_results(results, file)
    file.write_text(json.dumps(json.loads(file.read_bytes()), indent=2), encoding="utf-8")
    assert load_results(file) == results


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_not_json_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILENAME).write_bytes(content)
    with pytest.raises(RunError, match=r"results\.json is damaged: .*, or write it again"):
        load_results(tmp_path)


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be read: .*; give the folder of a comparison"):
        load_results(tmp_path / "none")
    os.mkfifo(tmp_path / FILENAME)
    with pytest.raises(RunError, match=r"results\.json is a pipe; give the folder of"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("content", "found", "author"),
    [
        ({"format_version": 1}, "1", "0.1.0"),
        ({"format": 4, "gradshare": "7.1"}, "4", "7.1"),
    ],
)
def test_results_of_another_version_say_which_one_reads_them(
    content: Any, found: str, author: str, tmp_path: Path
) -> None:
    (tmp_path / FILENAME).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError) as error:
        load_results(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / FILENAME} has format {found}, and this gradshare reads 3; use gradshare "
        f"{author}, which wrote it"
    )


def test_the_table_has_a_row_for_each_epoch_and_each_test_task() -> None:
    rows = classification("base", "new", seeds=2, tasks=5).table()
    columns = {"arm", "seed", "epoch", "split", "dataset", "metric", "value", "ci95", "task"}
    assert {row["dataset"] for row in rows} == {None}
    assert all(row.keys() == columns for row in rows)
    of_one = [row for row in rows if (row["arm"], row["seed"]) == ("new", 1)]
    assert [row["epoch"] for row in of_one if row["split"] == "validation"] == [1, 2, 3, 4]
    assert [row["task"] for row in of_one if row["split"] == "test"] == [0, 1, 2, 3, 4]
    assert len(rows) == 4 * 9


def test_the_best_epoch_is_the_earliest_of_the_best() -> None:
    history = arm_run("a", validation=[0.3, 0.5, math.nan, 0.5]).history
    assert ranked(history, HIGH, "accuracy")[0].epoch == 2
    assert ranked(history, Metric(max, best="low"), "accuracy")[0].epoch == 1


@pytest.mark.parametrize(
    ("validation", "half", "metric", "outcome"),
    [
        ([0.3], 0.05, HIGH, "trained"),
        ([0.3], 0.11, HIGH, "not trained"),
        ([0.1], 0.05, HIGH, "not trained"),
        ([0.3], 0.05, Metric(max, best="low", chance=0.5), "trained"),
        ([0.6], 0.05, Metric(max, best="low", chance=0.5), "not trained"),
        ([0.1], 0.05, Metric(max), "trained"),
        ([], 0.05, Metric(max), "not trained"),
        # The best of forty epochs is that far above chance by luck alone.
        ([0.26] * 40, 0.05, HIGH, "not trained"),
        ([0.26], 0.05, HIGH, "trained"),
    ],
)
def test_a_run_has_trained_if_its_best_epoch_is_surely_better_than_chance(
    validation: list[float], half: float, metric: Metric, outcome: str
) -> None:
    history = arm_run("a", validation=validation, half=half).history
    assert judge(history, metric, "accuracy") == outcome
