"""`gradshare paper`: the paper's grid, its table and its figures."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.measure import Measurement
from rich.table import Table

from gradshare.cli.options import (
    Command,
    GroupedCommand,
    UserPath,
    default_data_root,
    machine_options,
)
from gradshare.cli.printing import print_line
from gradshare.cli.runs import executor_options
from gradshare.errors import RunError
from gradshare.experiments.drawing import save_all
from gradshare.experiments.executors.choice import Choice
from gradshare.experiments.paper.conditions import with_borrowed
from gradshare.experiments.paper.figures import draw_figures
from gradshare.experiments.paper.grid import (
    Standing,
    State,
    results_by_cell,
    run_cells,
    standings,
    unfinished,
)
from gradshare.experiments.paper.plan import SCALES, Cell, Plan, Scale, load_plan, on_machine, pick
from gradshare.experiments.paper.status import tally
from gradshare.experiments.paper.study_report import draw_studies, study_pages
from gradshare.experiments.paper.table1 import (
    PAPERS_IMAGES,
    on_the_papers_images,
    table1_pages,
)
from gradshare.experiments.results import Results
from gradshare.experiments.wording import NOTHING, accuracy, counted, duration
from gradshare.training.files import write_pages
from gradshare.training.progress import RunBars


def grid_options(command: Command) -> Command:
    """`--scale` and `--out`."""
    command = click.option(
        "--out",
        type=UserPath(file_okay=False),
        help="Folder of all cells.  [default: results/SCALE]",
    )(command)
    return click.option(
        "--scale",
        type=click.Choice(SCALES),
        default="paper",
        show_default=True,
        help="paper: Appendix A as it stands. cpu: the same protocol cut down to what two cores "
        "finish in a day.",
    )(command)


def filter_options(command: Command) -> Command:
    """Give a command the options that pick cells."""
    command = click.option(
        "--except",
        "without",
        multiple=True,
        metavar="WORD[,WORD…]",
        help="Not the cells that any of these words fits.",
    )(command)
    return click.option(
        "--only",
        multiple=True,
        metavar="WORD[,WORD…]",
        help="Only the cells of this study, or with this label, or whose names begin so; several "
        "words joined by commas: one of them. Repeat to narrow it down.",
    )(command)


@click.group()
def paper() -> None:
    """The paper's experiments: run them, see how far they are, its table and figures."""


@paper.command(name="run", cls=GroupedCommand)
@grid_options
@filter_options
@executor_options
@machine_options
def run_command(
    scale: Scale,
    only: tuple[str, ...],
    without: tuple[str, ...],
    out: Path | None,
    where: Choice,
    **machine: Any,
) -> None:
    """Train the cells that are not finished; interrupted ones go on where they were."""
    console = Console()
    given = {name: value for name, value in machine.items() if value is not None}
    default_data_root(given)
    home = home_of(scale, out)
    everything = standings(load_plan(scale).cells(), home)
    before = _picked(everything, only, without)
    todo = on_machine(unfinished(before), given)
    states = Counter[str](one.state for one in before)
    for state, what in (("done", "already finished"), ("running", "trained by another process")):
        if states[state]:
            print_line(console, f"{counted(states[state], 'cell')} {what}.")
    if not todo:
        return
    executor = where.executor(todo[0].config, home, len(todo))
    print_line(
        console,
        f"Training {counted(len(todo), 'cell')}, {executor.describe()}; everything goes to {home}.",
    )
    with RunBars(console) as bars:
        after = run_cells(todo, everything, scale, home, executor, bars)
    done = sum(one.state == "done" for one in after)
    print_line(console, f"{counted(done, 'cell')} finished, {len(after) - done} not.")
    _say_faults(console, after)
    if done < len(after):
        print_line(console, "To go on where these were saved, run the same command again.")
        sys.exit(1)


@paper.command(name="status")
@grid_options
@filter_options
@click.option("--cells", is_flag=True, help="List every cell.")
def status_command(
    scale: Scale, only: tuple[str, ...], without: tuple[str, ...], out: Path | None, cells: bool
) -> None:
    """Show which cells are done, running and left, and about how long the rest takes."""
    console = Console()
    home, plan = home_of(scale, out), load_plan(scale)
    everything = standings(plan.cells(), home)
    found = _picked(everything, only, without)
    if cells:
        listed = Table("cell", "state", "iterations", "time", "test accuracy", box=None)
        for one in found:
            listed.add_row(*_cell_row(one))
        # A name that is broken at the width of the terminal could not be given to --only.
        wide = console.options.update(max_width=1000)
        Console(width=Measurement.get(console, wide, listed).maximum).print(listed)
    studies = list(dict.fromkeys(one.cell.study for one in found))
    of_study = [(study, [one for one in found if one.cell.study == study]) for study in studies]
    for study, of in of_study:
        print_line(console, f"{study}: {plan.studies[study].title}")
        print_line(console, f"  {_progress(of, everything)}")
    if len(studies) > 1:
        print_line(console, f"all: {_progress(found, everything)}")
    print_line(console, "Times are of one process; with several jobs they go side by side.")
    _say_faults(console, found)


@paper.command(name="table")
@grid_options
@filter_options
def table_command(
    scale: Scale, only: tuple[str, ...], without: tuple[str, ...], out: Path | None
) -> None:
    """Print the tables of what is finished, and write them as Markdown, LaTeX and CSV.

    At the paper's scale that is Table 1, with the paper's own figures beside ours. The tables of
    some cells alone, such as those of one seed, are printed and not written.
    """
    console = Console()
    home = home_of(scale, out)
    plan = load_plan(scale)
    planned = plan.cells()
    finished = _finished(plan, scale, home, console)
    # What a study borrows may be picked as its own: it stands in the study's tables.
    picked = set(pick(list(dict.fromkeys([*planned, *finished])), only, without))
    cells = [cell for cell in planned if cell in picked]
    results = {cell: one for cell, one in finished.items() if cell in picked}
    if not any(cell in results for cell in cells):
        raise RunError(
            f"{home} holds no finished cell of those that --only and --except leave; see which are "
            f"finished with `gradshare paper status --scale {scale} --cells`"
        )
    pages = table1_pages(cells, results) if scale == "paper" else study_pages(plan, cells, results)
    _show(console, next(text for name, text in pages.items() if name.endswith(".md")))
    if not only and not without:
        _say_written(console, write_pages(home, pages))


@paper.command(name="figures")
@grid_options
def figures_command(scale: Scale, out: Path | None) -> None:
    """Draw every figure that there is data for, as PNG and SVG.

    At the paper's scale those are its Figures 2 to 11.
    """
    console = Console()
    home = home_of(scale, out)
    plan = load_plan(scale)
    results = _finished(plan, scale, home, console)
    drawn = draw_figures(results) if scale == "paper" else draw_studies(plan, results)
    _say_written(console, save_all(drawn, home / "figures"))


def home_of(scale: Scale, out: Path | None) -> Path:
    """The folder of all cells."""
    return out or Path("results") / scale


def _picked(
    everything: Sequence[Standing], only: Sequence[str], without: Sequence[str]
) -> list[Standing]:
    """Those that the filters leave."""
    picked = {cell.name for cell in pick([one.cell for one in everything], only, without)}
    return [one for one in everything if one.cell.name in picked]


def _finished(plan: Plan, scale: Scale, home: Path, console: Console) -> Mapping[Cell, Results]:
    """What the finished cells of a plan came to, with those that its studies borrow from one
    another; says which cannot be read.

    Raises:
        RunError: none is finished.
    """
    found = standings(plan.cells(), home)
    _say_faults(console, [one for one in found if one.state == "unreadable"])
    results = results_by_cell(found)
    if scale == "paper":
        whole = on_the_papers_images(results)
        for cell in results.keys() - whole.keys():
            images = results[cell].environment["images"]
            whole_of = PAPERS_IMAGES[cell.config.dataset]
            print_line(
                console,
                f"left out: {cell.name}: trained on {images:,} images, {cell.config.dataset} has "
                f"{whole_of:,}",
            )
        results = whole
    if not results:
        raise RunError(
            f"{home} holds no finished cell; train some with `gradshare paper run --scale {scale}`"
            ", or name another folder with --out"
        )
    return with_borrowed(plan, results)


def _progress(of: Sequence[Standing], measured: Sequence[Standing]) -> str:
    """Such as "3 of 54 done, 2 running, 49 left; 12 min so far, about 3 h 40 min left"."""
    together = tally(of, measured)
    states = together.states
    parts = [f"{states['done']} of {together.cells} done"]
    parts += [f"{states[state]} {state}" for state in get_args(State)[1:] if states[state]]
    times = [f"{duration(together.spent)} so far"] if together.spent else []
    if states["done"] < together.cells:
        left = together.left
        times.append("time left unknown" if left is None else f"about {duration(left)} left")
    return "; ".join(filter(None, (", ".join(parts), ", ".join(times))))


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


def _say_faults(console: Console, found: Sequence[Standing]) -> None:
    for one in found:
        if one.fault is not None:
            print_line(console, f"{one.state}: {one.cell.name}: {one.fault}")


def _say_written(console: Console, paths: Sequence[Path]) -> None:
    for path in paths:
        print_line(console, f"Written: {path}")


def _show(console: Console, page: str) -> None:
    """Markdown, laid out where somebody looks at it."""
    if console.is_terminal:
        console.print(Markdown(page))
    else:
        print_line(console, page)
