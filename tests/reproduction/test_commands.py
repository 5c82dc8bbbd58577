"""`gradshare paper table` and `figures`: what they print, write and refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gradshare.cli import cli
from gradshare.config import ORIGINAL
from gradshare.errors import RunError
from reproduction.plan import load_plan
from reproduction.results import FILENAME, load_results, save_results
from tests.reproduction.synthetic_cells import finished
from tests.reproduction.synthetic_results import arm, comparison

RUN = "maml/batch-5/shot-5/rate-1x"
TRAITS: dict[str, dict[str, Any]] = {
    f"grid/cub/{RUN}/original": {},
    f"grid/cub/{RUN}/gradient-sharing": {"gain": 0.3},
}


def gradshare(*words: str) -> Result:
    return CliRunner().invoke(cli, ["paper", *words])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two finished cells, and of each no more than its results."""
    for cell, results in finished(TRAITS).items():
        save_results(results, tmp_path / "cells" / cell.name / FILENAME)
    return tmp_path / "cells"


def test_the_table_is_printed_and_written(home: Path) -> None:
    result = gradshare("table", "--out", str(home))
    assert result.exception is None
    row = next(line for line in result.output.splitlines() if "MAML/5" in line)
    assert [word.strip() for word in row.strip("| ").split("|")] == [
        "MAML/5",
        "83.2 ± 1.4 %",
        "47.1 ± 0.9 %",
        "83.4 ± 1.4 %",
        "48.9 ± 0.9 %",
        "66 %",
        "0 %",
        "25 %",
    ]
    assert "2 of 144 cells finished, one seed each." in result.output
    for ending in ("md", "tex", "csv"):
        path = home / f"table1.{ending}"
        assert f"Written: {path}" in result.output
        assert path.stat().st_size > 1000


def test_the_table_of_some_cells_is_printed_and_not_written(home: Path) -> None:
    result = gradshare("table", "--out", str(home), "--only", "cub", "--except", "rate-10x")
    assert result.exception is None
    assert "MAML/5" in result.output
    assert "2 of 36 cells finished, one seed each." in result.output
    assert "Written" not in result.output
    assert [path.name for path in home.iterdir()] == ["grid"]


@pytest.mark.parametrize(
    ("only", "studies", "rows"),
    [
        # A study is shown with the cells that it borrows, and its lender where it is asked for.
        (["controls"], ["controls"], [(ORIGINAL, 2), ("own-gradient", 2)]),
        (["controls", "seed-1"], ["controls"], [(ORIGINAL, 1), ("own-gradient", 1)]),
        (["rates", "seed-1"], ["rates"], [("rate-0.1 | original", 1)]),
        (["seed-0", "original,own-gradient"], ["rates", "controls"], [("rate-0.1 | original", 1)]),
    ],
)
def test_tables_of_one_study_or_seed(
    only: list[str], studies: list[str], rows: list[tuple[str, int]], tmp_path: Path
) -> None:
    names = ("rates/seed-{}/rate-0.1/original", "controls/seed-{}/own-gradient")
    wanted = {name.format(seed) for name in names for seed in (0, 1)}
    for cell in load_plan("cpu").cells():
        if cell.name in wanted:
            result = comparison(
                [arm(cell.config.arm, seed=cell.config.seed)],
                config=cell.config.model_dump(mode="json"),
            )
            save_results(result, tmp_path / cell.name / FILENAME)
    words = [word for filter_ in only for word in ("--only", filter_)]
    output = gradshare("table", "--scale", "cpu", "--out", str(tmp_path), *words).output
    assert re.findall(r"^Study `(.+)`", output, re.MULTILINE) == studies
    for name, seeds in rows:
        assert f"\n| {name} | {seeds} | trained | " in output
    assert not list(tmp_path.glob("tables.*"))


def test_tables_of_cells_that_are_not_finished_are_not_shown(home: Path) -> None:
    error = gradshare("table", "--out", str(home), "--only", "mini-imagenet").exception
    assert isinstance(error, RunError)
    assert str(error) == (
        f"{home} holds no finished cell of those that --only and --except leave; see which are "
        "finished with `gradshare paper status --scale paper --cells`"
    )


def test_a_list_of_cells_has_their_whole_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = gradshare("status", "--out", str(home), "--cells").output
    for cell in load_plan("paper").cells():
        state = "done" if cell.name in TRAITS else "left"
        assert re.search(rf"^ {re.escape(cell.name)} +{state} ", output, re.MULTILINE)


def test_the_figures_with_data_are_drawn(home: Path) -> None:
    result = gradshare("figures", "--out", str(home))
    assert result.exception is None
    names = ["figure-4.png", "figure-4.svg", "figure-5.png", "figure-5.svg"]
    assert sorted(path.name for path in (home / "figures").iterdir()) == names
    assert result.output.splitlines() == [f"Written: {home / 'figures' / name}" for name in names]


@pytest.mark.parametrize("command", ["table", "figures"])
def test_without_results_it_says_what_to_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = gradshare(command).exception
    assert isinstance(error, RunError)
    assert str(error) == (
        "results/paper holds no finished cell; train some with `gradshare paper run "
        "--scale paper`, or name another folder with --out"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(home: Path) -> None:
    (home / "figures").touch()
    error = gradshare("figures", "--out", str(home)).exception
    assert isinstance(error, RunError)
    assert str(error) == (
        f"{home / 'figures'}: the folder cannot be made: File exists; choose another output folder"
    )


def test_a_part_of_a_dataset_is_another_one(home: Path) -> None:
    (path, *_) = sorted(home.rglob(FILENAME))
    results = load_results(path)
    half = results.model_copy(update={"environment": {**results.environment, "images": 5894}})
    save_results(half, path)
    result = gradshare("table", "--out", str(home))
    name = path.parent.relative_to(home).as_posix()
    assert f"left out: {name}: trained on 5,894 images, cub has 11,788" in result.output
    assert "1 of 144 cells finished" in result.output
