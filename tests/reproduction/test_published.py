"""The published runs give the published tables and figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from reproduction.__main__ import finished_of, reproduction
from reproduction.conditions import Results
from reproduction.figures import draw_studies
from reproduction.plan import HOME, load_plan
from reproduction.records import PACKED, read_runs, write_runs
from tests.reproduction.plotted import digest

PUBLISHED = HOME / "results" / "cpu"


@pytest.fixture(scope="module")
def results() -> Results:
    return finished_of(load_plan("cpu"), "cpu", PUBLISHED)


def test_each_of_the_201_cells_has_a_run_of_its_settings(results: Results) -> None:
    plan = load_plan("cpu")
    own = [cell for cell in results if not cell.borrowed]
    assert own == plan.cells()
    assert len(own) == 201


def test_the_tables_are_the_published_ones_byte_for_byte(tmp_path: Path) -> None:
    for path in PUBLISHED.glob(f"*{PACKED}"):
        (tmp_path / path.name).symlink_to(path)
    arguments = ["table", "--scale", "cpu", "--out", str(tmp_path)]
    printed = CliRunner().invoke(reproduction, arguments, catch_exceptions=False).output
    for name in ("tables.md", "cells.csv"):
        assert (tmp_path / name).read_bytes() == (PUBLISHED / name).read_bytes(), name
    assert printed.startswith((PUBLISHED / "tables.md").read_text("utf-8"))


def test_the_figures_have_the_published_values(results: Results) -> None:
    drawn = {name: digest(figure) for name, figure in draw_studies(load_plan("cpu"), results)}
    published = json.loads(Path(__file__).with_name("figures.json").read_text("utf-8"))
    assert drawn == published
    assert {path.stem for path in (PUBLISHED / "figures").iterdir()} == published.keys()


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob(f"*{PACKED}")), ids=lambda p: p.name)
def test_a_packed_file_is_written_again_with_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_runs(tmp_path / path.name, read_runs(path))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
