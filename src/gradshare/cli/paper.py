"""`gradshare paper`: the paper's grid, its table and its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradshare.cli.options import DATA_ROOT_VARIABLE, GroupedCommand, machine_options
from gradshare.cli.progress import RunBars
from gradshare.cli.runs import executor_options
from gradshare.errors import RunError
from gradshare.experiments.drawing import save_all
from gradshare.experiments.executors.choice import Choice
from gradshare.experiments.paper.figures import draw_figures
from gradshare.experiments.paper.grid import Standing, State, results_by_cell, run_cells, standing
from gradshare.experiments.paper.plan import SCALES, Cell, Plan, Scale, load_plan, pick
from gradshare.experiments.paper.status import progress
from gradshare.experiments.paper.study_report import (
    LEGEND,
    draw_studies,
    studies_of,
    tables_of,
    write_study_tables,
)
from gradshare.experiments.paper.table1 import notes, table1, write_table1
from gradshare.experiments.results import Results
from gradshare.experiments.wording import NOTHING, accuracy, counted, duration


def grid_options(command: Any) -> Any:
    """`--scale`, `--only` and `--out`."""
    for option in (
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder of all cells.  [default: results/SCALE]",
        ),
        click.option(
            "--only",
            multiple=True,
            metavar="WORD[,WORD…]",
            help="Only the cells of this study, or with this label, or whose names begin so; "
            "several words joined by commas: one of them. Repeat to narrow it down.",
        ),
        click.option(
            "--scale",
            type=click.Choice(SCALES),
            default="paper",
            show_default=True,
            help="paper: Appendix A as it stands. cpu: the same protocol cut down to what two "
            "cores finish in half a day.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def paper() -> None:
    """The paper's experiments: run them, see how far they are, its table and figures."""


@paper.command(name="run", cls=GroupedCommand)
@grid_options
@executor_options
@machine_options
def run_command(
    scale: Scale, only: tuple[str, ...], out: Path | None, where: Choice, **machine: Any
) -> None:
    """Train the cells that are not finished; interrupted ones go on where they were."""
    console = Console()
    given = {name: value for name, value in machine.items() if value is not None}
    cells = chosen(scale, only, given)
    home = home_of(scale, out)
    executor = where.executor(cells[0].config, home, len(cells))
    _print(
        console, f"{counted(len(cells), 'cell')}, {executor.describe()}; everything goes to {home}."
    )
    with RunBars(console) as bars:
        found = run_cells(cells, scale, home, executor, bars)
    for one in found:
        if one.failure is not None:
            _print(console, f"failed: {one.cell.name}: {one.failure}")


@paper.command(name="status")
@grid_options
@click.option("--cells", is_flag=True, help="List every cell.")
def status_command(scale: Scale, only: tuple[str, ...], out: Path | None, cells: bool) -> None:
    """Show which cells are done, running and left, and about how long the rest takes."""
    console = Console()
    home = home_of(scale, out)
    found = [standing(cell, home) for cell in chosen(scale, only, {})]
    if cells:
        listed = Table("cell", "state", "iterations", "time", "test accuracy")
        for one in found:
            listed.add_row(*_cell_row(one))
        console.print(listed)
    plan = load_plan(scale)
    table = Table(
        "study", "cells", "done", "running", "begun", "failed", "left", "time so far", "time left"
    )
    studies = list(dict.fromkeys(one.cell.study for one in found))
    for title, of in (
        *((study, [one for one in found if one.cell.study == study]) for study in studies),
        *([("all", found)] if len(studies) > 1 else []),
    ):
        together = progress(of, found)
        table.add_row(
            title,
            *map(str, (together.cells, *(together.states[s] for s in get_args(State)))),
            duration(together.spent),
            NOTHING if together.left is None else duration(together.left),
        )
    console.print(table)
    for study in studies:
        _print(console, f"{study}: {plan.studies[study].title}")
    _print(console, "Times are of one process; with several jobs they go side by side.")
    for one in found:
        if one.failure is not None:
            _print(console, f"failed: {one.cell.name}: {one.failure}")


@paper.command(name="table")
@grid_options
def table_command(scale: Scale, only: tuple[str, ...], out: Path | None) -> None:
    """Print the tables of what is finished, and write them as Markdown, LaTeX and CSV.

    At the paper's scale that is Table 1, with the paper's own figures beside ours.
    """
    console = Console()
    home = home_of(scale, out)
    cells = chosen(scale, only, {})
    results = _finished(scale, cells, home)
    if scale == "paper":
        _say_written(console, _paper_table(console, cells, results, home))
    else:
        _say_written(console, _study_tables(console, load_plan(scale), results, home))


def _paper_table(
    console: Console, cells: Sequence[Cell], results: Mapping[Cell, Results], home: Path
) -> list[Path]:
    """Print and write Table 1."""
    for table in table1(cells, results):
        for block in table.blocks:
            shown = Table(title=block.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for column in table.columns:
                head = f"{column.heading}\n{column.source}".strip()
                # In a narrow terminal figures go on in the next line; a row's name stays whole.
                shown.add_column(head, no_wrap=not column.source, overflow="fold")
            for row in block.rows:
                shown.add_row(*row)
            console.print(shown)
    for note in notes(cells, results):
        _print(console, note)
    return write_table1(cells, results, home)


def _study_tables(
    console: Console, plan: Plan, results: Mapping[Cell, Results], home: Path
) -> list[Path]:
    """Print and write the tables of each study."""
    for name, study, found in studies_of(plan, results):
        console.rule(f"{name}: {study.title}{f' ({study.note})' if study.note else ''}")
        for _, caption, rows in tables_of(found):
            table = Table(*rows[0], title=caption, title_justify="left")
            for row in rows:
                table.add_row(*row.values())
            console.print(table)
    _print(console, LEGEND)
    return write_study_tables(plan, results, home)


@paper.command(name="figures")
@grid_options
def figures_command(scale: Scale, only: tuple[str, ...], out: Path | None) -> None:
    """Draw every figure that there is data for, as PNG and SVG.

    At the paper's scale those are its Figures 2 to 11.
    """
    home = home_of(scale, out)
    results = _finished(scale, chosen(scale, only, {}), home)
    if scale == "paper":
        drawings = draw_figures(results)
    else:
        drawings = draw_studies(load_plan(scale), results)
    _say_written(Console(), save_all(drawings, home / "figures"))


def _finished(scale: Scale, cells: Sequence[Cell], home: Path) -> Mapping[Cell, Results]:
    """What the chosen cells came to.

    Raises:
        RunError: none of them is finished.
    """
    results = results_by_cell(cells, home)
    if not results:
        raise RunError(
            f"{home} holds no finished cell of these; train some with `gradshare paper run "
            f"--scale {scale}`, or name another folder with --out"
        )
    return results


def _say_written(console: Console, paths: Sequence[Path]) -> None:
    for path in paths:
        _print(console, f"Written: {path}")


def _cell_row(one: Standing) -> tuple[str, ...]:
    """A line of the list of cells."""
    test = ""
    if one.results is not None:
        arm = one.results.arms[0]
        test = arm.outcome if arm.test is None or not arm.trained else accuracy(arm.test.interval)
    return (
        one.cell.name,
        one.state,
        f"{one.iterations:,} of {one.cell.config.iterations:,}",
        NOTHING if one.seconds is None else duration(one.seconds),
        test,
    )


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def chosen(scale: Scale, only: tuple[str, ...], machine: dict[str, Any]) -> list[Cell]:
    """The cells that a command line picks, with its settings of the machine."""
    if "data_root" not in machine and DATA_ROOT_VARIABLE in os.environ:
        machine = {**machine, "data_root": os.environ[DATA_ROOT_VARIABLE]}
    return pick(load_plan(scale).cells(machine), only)


def home_of(scale: Scale, out: Path | None) -> Path:
    """The folder of all cells."""
    return out or Path("results") / scale
