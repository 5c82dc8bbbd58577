"""`python -m reproduction`: train the paper's experiments, and make its table and figures."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from gradshare import GradshareError, RunError
from gradshare.comparison.figures import style
from gradshare.training.progress import duration
from reproduction import methods, wording
from reproduction.conditions import Results, with_borrowed
from reproduction.figures import draw_studies
from reproduction.paper import draw_paper, on_the_papers_images, table1
from reproduction.plan import HOME, SCALES, Plan, Scale, load_plan, on_machine, pick
from reproduction.records import PACKED, write_runs
from reproduction.report import cells_csv, study_tables
from reproduction.running import State, Status, finished, run_cells, seconds_left, statuses

Words = tuple[str, ...]

scale_option = click.option(
    "--scale",
    type=click.Choice(SCALES),
    default="paper",
    show_default=True,
    is_eager=True,  # the default of --out depends on it
    help="paper: the settings of Appendix A. cpu: the same protocol, cut down to what two cores "
    "finish in a day.",
)
out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    callback=lambda context, _, out: out or HOME / "results" / context.params["scale"],
    help="Folder of all cells.  [default: reproduction/results/SCALE]",
)
only_option = click.option(
    "--only",
    multiple=True,
    metavar="WORD[,WORD…]",
    help="Only the cells of a study, with a label, or whose names begin so; one of the words must "
    "fit. Repeat to narrow it down.",
)
except_option = click.option(
    "--except",
    "without",
    multiple=True,
    metavar="WORD[,WORD…]",
    help="Not the cells that one of these words fits.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def reproduction() -> None:
    """The paper's experiments: run them, see how far they are, its table and figures."""


@reproduction.command("run")
@scale_option
@out_option
@only_option
@except_option
@click.option("--jobs", type=click.IntRange(1), help="Cells at a time.  [default: one a core]")
@click.option("--data-root", envvar="GRADSHARE_DATA_ROOT", help="Folder of prepared datasets.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(0), help="CPU threads of each cell.")
def run_command(
    scale: Scale,
    only: Words,
    without: Words,
    out: Path,
    jobs: int | None,
    **machine: Any,
) -> None:
    """Train the cells that are not finished; interrupted ones continue from their checkpoints."""
    found = statuses(pick(load_plan(scale).cells(), only, without), out)
    todo = [one.cell for one in found if one.state not in ("done", "running")]
    todo = on_machine(todo, {name: v for name, v in machine.items() if v is not None})
    states = Counter(one.state for one in found)
    click.echo(f"{states['done']} of {len(found)} cells are done, {states['running']} running.")
    if not todo:
        return
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(todo))
    click.echo(f"Training {wording.counted(len(todo), 'cell')}, {jobs} at a time, into {out}.")
    failed = 0
    for count, (cell, failure) in enumerate(run_cells(todo, out, jobs), 1):
        failed += failure is not None
        click.echo(f"{count} of {len(todo)}: {cell.name}: {failure or 'done'}")
    if failed:
        raise RunError(
            f"{wording.counted(failed, 'cell')} failed; correct the cause and give the same "
            "command again"
        )


@reproduction.command("status")
@scale_option
@out_option
@only_option
@except_option
@click.option("--cells", is_flag=True, help="List every cell.")
def status_command(scale: Scale, only: Words, without: Words, out: Path, cells: bool) -> None:
    """Show which cells are done, running and left, and about how long the rest takes."""
    plan = load_plan(scale)
    everything = statuses(plan.cells(), out)
    chosen = set(pick(plan.cells(), only, without))
    found = [one for one in everything if one.cell in chosen]
    for one in found if cells else ():
        iterations = f"{one.iterations:,} of {one.cell.config.iterations:,} iterations"
        tested = one.run and one.run.tested
        test = f", test {wording.accuracy(tested)}" if tested else ""
        click.echo(f"{one.cell.name}: {one.state}, {iterations}{test}")
    for study in dict.fromkeys(one.cell.study for one in found):
        click.echo(f"{study}: {plan.studies[study].title}")
        click.echo(f"  {_progress([o for o in found if o.cell.study == study], everything)}")
    click.echo(f"all: {_progress(found, everything)}")
    for one in found:
        if one.failure is not None:
            click.echo(f"failed: {one.cell.name}: {one.failure}")


@reproduction.command("table")
@scale_option
@out_option
@only_option
@except_option
def table_command(scale: Scale, only: Words, without: Words, out: Path) -> None:
    """Print the tables of what is finished, and write them as Markdown and CSV.

    At the paper's scale that is Table 1, with the paper's own figures beside ours. The tables of
    some cells alone, such as those of one seed, are printed and not written.
    """
    plan = load_plan(scale)
    everything = finished_of(plan, scale, out)
    # A study's tables have the cells that it borrows, so --only can name them too.
    chosen = set(pick(list(dict.fromkeys([*plan.cells(), *everything])), only, without))
    cells = [cell for cell in plan.cells() if cell in chosen]
    results = {cell: run for cell, run in everything.items() if cell in chosen}
    own = {cell: run for cell, run in results.items() if not cell.borrowed}
    if not own:
        raise RunError(f"{out} holds no finished cell of those that --only and --except leave")
    page = table1(cells, results) if scale == "paper" else study_tables(plan, cells, results)
    click.echo(page)
    if not only and not without:
        name = "table1.md" if scale == "paper" else "tables.md"
        for path, text in ((out / name, page), (out / "cells.csv", cells_csv(own))):
            path.write_text(text, "utf-8")
            click.echo(f"Written: {path}")


@reproduction.command("figures")
@scale_option
@out_option
def figures_command(scale: Scale, out: Path) -> None:
    """Draw every figure for which there are results; at the paper's scale its Figures 2 to 11."""
    plan = load_plan(scale)
    results = finished_of(plan, scale, out)
    drawn = draw_paper(results) if scale == "paper" else draw_studies(plan, results)
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in drawn:
        with style():
            figure.savefig(folder / f"{name}.png", dpi=120)
        click.echo(f"Written: {folder / name}.png")


@reproduction.command("pack")
@scale_option
@out_option
def pack_command(scale: Scale, out: Path) -> None:
    """Put the results of the finished cells into one file a study, to be published."""
    results = finished(statuses(load_plan(scale).cells(), out))
    for study in dict.fromkeys(cell.study for cell in results):
        path = out / f"{study}{PACKED}"
        write_runs(path, [run for cell, run in results.items() if cell.study == study])
        click.echo(f"Written: {path}")


@reproduction.command("methods")
@click.option(
    "--from",
    "runs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Keep the results of finished comparisons first: OUT of methods.sh.",
)
@click.option(
    "--cost",
    "data_root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Measure the time and memory of each arm first, on Omniglot in this folder.",
)
def methods_command(runs: Path | None, data_root: Path | None) -> None:
    """Print the table of methods, and write it as Markdown."""
    if runs is not None:
        for path in methods.pack(runs):
            click.echo(f"Written: {path}")
    if data_root is not None:
        cost = json.dumps(methods.costs(data_root), indent=1)
        (methods.PUBLISHED / methods.COST).write_text(cost + "\n", "utf-8")
    page = methods.table()
    click.echo(page)
    path = methods.PUBLISHED / "table.md"
    path.write_text(page, "utf-8")
    click.echo(f"Written: {path}")


def finished_of(plan: Plan, scale: Scale, out: Path) -> Results:
    """The results of the finished cells of a plan, with those that its studies borrow.

    Raises:
        RunError: no cell is finished.
    """
    results: Results = finished(statuses(plan.cells(), out))
    if scale == "paper":
        results = on_the_papers_images(results)
    if not results:
        raise RunError(
            f"{out} holds no finished cell; train some with `python -m reproduction run --scale "
            f"{scale}`, or name another folder with --out"
        )
    return with_borrowed(plan, results)


def _progress(of: Sequence[Status], measured: Sequence[Status]) -> str:
    """Such as "3 of 54 done, 2 running, 49 left; 12 min so far, about 3.7 h left"."""
    states = Counter[str](one.state for one in of)
    others = [f", {states[state]} {state}" for state in get_args(State)[1:] if states[state]]
    left = [seconds_left(one, measured) for one in of]
    spent = duration(sum(one.seconds for one in of))
    text = f"{states['done']} of {len(of)} done{''.join(others)}; {spent} so far"
    if None in left:
        return f"{text}, time left unknown"
    rest = sum(filter(None, left))
    return f"{text}, about {duration(rest)} left" if rest else text


def main() -> None:
    """Run the program; an error that the user can correct is one message."""
    try:
        reproduction()
    except GradshareError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
