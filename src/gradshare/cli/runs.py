"""`gradshare train`, `compare`, `evaluate` and `report`."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradshare.cli.options import (
    DATA_ROOT_VARIABLE,
    GroupedCommand,
    UserPath,
    read_config,
    run_options,
)
from gradshare.cli.printing import print_line
from gradshare.cli.progress import RunBars
from gradshare.config import ARM_FIELDS, RunConfig
from gradshare.errors import ConfigError, RunError
from gradshare.experiments.compare import compare, jobs_of, results_of_runs
from gradshare.experiments.executors.choice import NAMES, Choice, Name
from gradshare.experiments.executors.local import default_threads
from gradshare.experiments.executors.loop import Executor
from gradshare.experiments.report import write_report
from gradshare.experiments.results import FILENAME, Results, load_results, save_results, seed_files
from gradshare.experiments.seeds import seeds_of
from gradshare.experiments.table import arm_rows, comparison_rows
from gradshare.experiments.verdict import verdict
from gradshare.experiments.wording import NOTHING, accuracy, counted, duration, method, points
from gradshare.training.dry_run import Estimate
from gradshare.training.dry_run import dry_run as estimate_run
from gradshare.training.evaluation import measure_test
from gradshare.training.folder import RunFolder
from gradshare.training.launch import is_first, torchrun_size
from gradshare.training.machine import keep_freed_memory
from gradshare.training.preflight import amount, memory_errors
from gradshare.training.run import train
from gradshare.training.setup import set_up
from gradshare.training.statistics import confidence95


def out_option(*, required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--out`, which a dry run can do without."""
    return click.option(
        "--out",
        type=UserPath(file_okay=False),
        required=required,
        help="New folder for everything that comes out.",
    )


resume_option = click.option(
    "--resume",
    type=click.Choice(["never", "auto"]),
    default="never",
    show_default=True,
    help="auto: continue what --out holds from its last checkpoint, to where it would have been; "
    "start where there is nothing to continue; do nothing where all is done.",
)


def executor_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where runs go; it is called with a `Choice`, `where`."""

    @functools.wraps(command)
    def chosen(
        executor: Name,
        jobs: int | None,
        retries: int | None,
        ray_address: str | None,
        slurm: tuple[str, ...],
        **others: Any,
    ) -> None:
        command(where=Choice(executor, jobs, retries, ray_address, slurm), **others)

    options = (
        click.option(
            "--executor",
            type=click.Choice(NAMES),
            default="local",
            show_default=True,
            help="Where the runs are trained: in processes on this machine, on Ray, or as Slurm "
            "jobs; see docs/clusters.md.",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1),
            help="Training runs at a time.  [default: local: one more than there are cores, 1 on "
            "a GPU; ray, slurm: all that there is room for]",
        ),
        click.option(
            "--retries",
            type=click.IntRange(0),
            help="Start a run whose process or machine is lost again from its last checkpoint, so "
            "many times in a row without another epoch.  [default: local: 0; ray, slurm: 2]",
        ),
        click.option(
            "--ray-address",
            help="Ray cluster, as `ray.init` takes it: auto, HOST:PORT.  [default: one of this "
            "machine, for this command]",
        ),
        click.option(
            "--slurm",
            multiple=True,
            metavar="KEY=VALUE",
            help="Slurm's settings, under sbatch's names: time=24:00:00 (needed), partition=gpu, "
            "gpus-per-node=1, cpus-per-task=4, mem=16G, …  Repeat for each.",
        ),
    )
    for option in reversed(options):
        chosen = option(chosen)
    return chosen


@click.command(name="train", cls=GroupedCommand)
@out_option(required=False)
@resume_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, time a few steps, say what the whole run would take, and write "
    "nothing; --out may be left out then.",
)
@run_options()
def train_command(
    out: Path | None,
    resume: str,
    dry_run: bool,
    config_file: Path | None,
    preset: str | None,
    **options: Any,
) -> None:
    """Meta-train one learner, with gradient sharing or without, and test it."""
    console = Console(quiet=not is_first())
    config = read_config(config_file, preset, options)
    if out is None and not dry_run:
        raise ConfigError("--out is missing; name a new folder for everything that comes out")
    keep_freed_memory()
    torch.set_num_threads(default_threads(config, 1))
    if out is None or dry_run:
        if torchrun_size() is not None:
            raise ConfigError("--dry-run measures a run in one process; start it without torchrun")
        if config.workers > 1:
            raise ConfigError("--dry-run measures a run in one process; leave --workers out")
        # A run that is to be continued may have its folder.
        _estimate(estimate_run(config, None if resume == "auto" else out), console)
        return
    if torchrun_size() is None:
        RunFolder(out).require_room(config, resume=resume == "auto")  # before glyphs are drawn
        print_line(console, f"Layout: {set_up(config).layout.describe()}")
    with RunBars(console) as bars:
        result = train(
            config, out, lambda progress: bars(config.arm, progress), resume=resume == "auto"
        )
    if is_first():
        results = results_of_runs([result], _command_line())
        save_results(results, out / FILENAME)
        _report([results], out, console)


@click.command(name="compare", cls=GroupedCommand)
@out_option(required=True)
@resume_option
@click.option("--control", is_flag=True, help="Train the rate-control arm too.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Repeat the comparison with so many seeds, from --seed on.",
)
@executor_options
@run_options(leave_out=ARM_FIELDS)
def compare_command(
    out: Path,
    resume: str,
    control: bool,
    seeds: int,
    where: Choice,
    config_file: Path | None,
    preset: str | None,
    **options: Any,
) -> None:
    """Meta-train with and without gradient sharing on the same episodes, and report."""
    console = Console()
    config = read_config(config_file, preset, options)
    # Before glyphs are drawn for it.
    jobs = jobs_of(config, out, control=control, seeds=seeds, resume=resume == "auto")
    executor = where.executor(config, out, len(jobs))
    _announce(console, config, out, len(jobs), executor, control=control)
    if executor.here:
        print_line(console, f"Layout of each run: {set_up(config).layout.describe()}")
    with RunBars(console) as bars:
        comparison = compare(jobs, executor=executor, command=_command_line(), watch=bars)
    _report(comparison, out, console)


@click.command(name="evaluate")
@click.argument("run", type=UserPath())
@click.option("--test-tasks", type=click.IntRange(1), help="Test tasks.  [default: the run's]")
@click.option(
    "--batch-norm",
    type=click.Choice(["transductive", "inductive"]),
    help="Mode of batch norm at test.  [default: the run's]",
)
@click.option(
    "--sharing-control",
    type=click.Choice(["forgotten"]),
    help="forgotten: test with ĝ = 0, without what other tasks left behind.  [default: the run's]",
)
@click.option(
    "--data-root",
    type=UserPath(),
    envvar=DATA_ROOT_VARIABLE,
    show_envvar=True,
    help="Folder of prepared datasets.  [default: the run's]",
)
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: the run's]")
@click.option(
    "--threads", type=click.IntRange(0), help="CPU threads, 0 for all cores.  [default: the run's]"
)
def evaluate_command(run: Path, **options: Any) -> None:
    """Test the best checkpoints of a training RUN again, as one ensemble and the best alone.

    The difference is that from the test at the end of the run, task by task.
    """
    console = Console()
    given = {name: value for name, value in options.items() if value is not None}
    folder = RunFolder(run)
    config = folder.config()
    if "sharing_control" in given and not config.shares:
        raise ConfigError(
            f"--sharing-control forgotten takes ĝ away, which {run} ({config.arm}) has none of; "
            "leave it out, or name a run with gradient sharing"
        )
    config = config.model_copy(update=given)
    own = _own_test(run, console)
    keep_freed_memory()
    torch.set_num_threads(default_threads(config, 1))
    # What an evaluation takes is settled by the run, and by nothing that can be given here.
    remedy = "stop other programs that hold some, or evaluate on another machine or --device"
    with memory_errors(remedy):
        setup = set_up(config)
        folder.require_same_images(setup.images_sha256)
        models = folder.best_models(folder.history(), config.ensemble, setup.learner.init())
        with console.status(f"testing on {config.test_tasks} tasks"):
            result = measure_test(setup, models, config.test_tasks, lambda _: None)
    table = Table("model", "test accuracy", "difference", "tasks", "batch norm")
    for name, values, difference in (
        (f"ensemble of {result.members}", result.ensemble, _from_own_test(result.ensemble, own)),
        ("single best", result.single, NOTHING),
    ):
        shown = accuracy(confidence95(values))
        table.add_row(name, shown, difference, str(config.test_tasks), config.batch_norm)
    console.print(table)


def _own_test(run: Path, console: Console) -> Sequence[float]:
    """The test accuracies (tasks,) that a run's ensemble ended with; none if there are none."""
    try:
        arms = load_results(run).arms
    except RunError as error:  # the checkpoints can be tested all the same
        print_line(console, f"No difference from the run's own test: {error}")
        return ()
    return (arms[0].test_accuracies or ()) if len(arms) == 1 else ()


def _from_own_test(accuracies: Sequence[float], own: Sequence[float]) -> str:
    """How test accuracies (tasks,) differ from others, on the tasks that both have: the test tasks
    are the same for all, in the same order.
    """
    if not own:
        return NOTHING
    differences = [here - there for here, there in zip(accuracies, own, strict=False)]
    shown = points(confidence95(differences))
    both = len(differences)
    return shown if both == len(accuracies) else f"{shown} (first {both})"


@click.command(name="report")
@click.argument("runs", nargs=-1, required=True, type=UserPath())
@click.option(
    "--out",
    type=UserPath(file_okay=False),
    help="Folder for the report.  [default: the run's own, if there is one only]",
)
def report_command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the report of finished RUNs, comparisons or single arms, again or together."""
    if out is None and len(runs) > 1:
        raise ConfigError("a report over several runs needs --out FOLDER to be written to")
    paths = [path for run in runs for path in seed_files(run) or [run]]
    home = runs[0].parent if runs[0].is_file() else runs[0]
    _report([load_results(path) for path in paths], out or home, Console())


def _announce(
    console: Console, config: RunConfig, out: Path, runs: int, executor: Executor, *, control: bool
) -> None:
    """Say what a comparison will do, before it does it."""
    arms = "the original, gradient sharing" + (
        " and its control, which shares nothing" if control else ""
    )
    shared = f", each run shared by {config.workers} processes" if config.workers > 1 else ""
    print_line(
        console,
        f"Training {method(config.method)} on {config.dataset} ({config.ways}-way "
        f"{config.shots}-shot, task batch {config.task_batch}, {config.inner_steps} inner steps at "
        f"rate {config.inner_rate:g}) for {config.epochs} epochs of "
        f"{config.iterations_per_epoch} iterations: {arms}. {counted(runs, 'run')}, "
        f"{executor.describe()}{shared}; everything goes to {out}.",
    )


def _estimate(estimate: Estimate, console: Console) -> None:
    """Print what a run would take."""
    rows = [("layout", estimate.layout.describe())]
    for stretch in estimate.stretches:
        which = f"iterations {stretch.first:,} to {stretch.last:,}"
        rows.append((which, f"{stretch.seconds:.3f} s each"))
    measured = estimate.memory_measured
    rows += [
        ("validation", f"{duration(estimate.validation)} after each epoch"),
        ("test", duration(estimate.test)),
        ("an epoch", f"{duration(estimate.epoch)}, validation included"),
        (f"all {estimate.epochs} epochs and the test", duration(estimate.run)),
        (
            "peak memory",
            ("" if measured is None else f"{amount(measured)} measured, ")
            + f"{amount(estimate.memory_estimated)} estimated from the shapes",
        ),
        ("disk", f"{amount(estimate.disk)} at most"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print_line(console, f"{name:<{width}}  {value}")


def _report(results: Sequence[Results], folder: Path, console: Console) -> None:
    """Print the table and the verdict, write the report, and say where it is."""
    one_seed = len(seeds_of(results)) == 1
    for rows in (arm_rows(results), comparison_rows(results))[0 if one_seed else 1 :]:
        # On its side: a terminal has few columns and many lines.
        heading = "arm" if "arm" in rows[0] else "seed" if "seed" in rows[0] else "method/tasks"
        quantities = [name for name in rows[0] if name != heading]
        table = Table(heading, *(row[heading] for row in rows))
        for quantity in quantities:
            table.add_row(quantity, *(row[quantity] for row in rows))
        console.print(table)
    words = verdict(results)
    console.print()
    console.print(Text(words.headline, "bold"), soft_wrap=True)
    for sentence in (*words.sentences, *words.caveats):
        print_line(console, sentence)
    print_line(console, f"\nReport: {write_report(results, folder)}")


def _command_line() -> str:
    return shlex.join(["gradshare", *sys.argv[1:]])
