"""`gradshare compare` and `report`."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gradshare.cli.options import (
    GroupedCommand,
    UserPath,
    out_option,
    pairs,
    read_config,
    resume_option,
    run_options,
    values_by_setting,
)
from gradshare.comparison.compare import Comparison, run_plan
from gradshare.comparison.report import write_report
from gradshare.comparison.results import load_results
from gradshare.config.comparing import plan_of, settings_shown
from gradshare.config.features import features_of
from gradshare.config.names import is_import_path
from gradshare.config.parts import resolved, settings_read
from gradshare.config.runs import require_same
from gradshare.config.settings import ARM_FIELDS, RunConfig
from gradshare.errors import ConfigError, escaped
from gradshare.executors import RayExecutor, slurm_executor
from gradshare.tasks.datasets import open_dataset
from gradshare.tasks.features import FeatureStore, features_command
from gradshare.tasks.registry import prepare_command
from gradshare.training.machine import cores

REMOTE_RETRIES = 2


@click.command(name="compare", cls=GroupedCommand)
@out_option(required=True)
@resume_option
@click.option(
    "--methods",
    callback=lambda _, __, words: words and words.split(","),
    help="Compare these methods with the first of them: maml,anil,protonet,linear-probe,… "
    "METHOD+sharing shares gradients, METHOD+rate-control is its control. In a file: a list.",
)
@click.option(
    "--sweep",
    multiple=True,
    callback=values_by_setting,
    metavar="SETTING=VALUE,VALUE",
    help="Compare each arm at the value with the best validation score of the first seed: "
    "inner-lr=0.03,0.1. Repeat for all combinations with another setting. In a file: a mapping.",
)
@click.option("--control", is_flag=True, help="Train the arm rate-control too.")
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many seeds, from --seed on, the comparison is repeated with.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray", "slurm"]),
    default="local",
    show_default=True,
    help="Where the runs are trained: in processes on this machine, on Ray, or as Slurm jobs; see "
    "docs/clusters.md.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 10_000),
    help="Runs at a time.  [default: local: as many as there are cores; ray, slurm: all]",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 1000),
    help="How often in a row a run whose process or machine is lost is started again from its last "
    "checkpoint, while it completes no other epoch.  [default: local: 0; ray, slurm: 2]",
)
@click.option(
    "--cpus",
    type=click.IntRange(1, 10_000),
    help="CPUs of each run.  [default: --threads; else local: cores / runs at a time, ray: 1]",
)
@click.option(
    "--gpus", type=click.FloatRange(0, 100), help="GPUs of each run, on Ray fractions too."
)
@click.option(
    "--ray-address",
    help="Ray cluster, as `ray.init` takes it: auto, HOST:PORT.  [default: one of this machine]",
)
@click.option(
    "--slurm",
    multiple=True,
    callback=pairs,
    metavar="KEY=VALUE",
    help="Slurm's settings, as submitit takes them: partition=gpu, timeout_min=600, mem_gb=16, "
    "qos=…, additional_parameters='{requeue: true}'.  Repeat for each.",
)
@run_options(leave_out=ARM_FIELDS)
def compare_command(
    out: Path,
    resume: str,
    methods: list[str] | None,
    sweep: dict[str, Any] | None,
    control: bool,
    seeds: int,
    executor: str,
    jobs: int | None,
    retries: int | None,
    cpus: int | None,
    gpus: float | None,
    ray_address: str | None,
    slurm: dict[str, Any] | None,
    from_file: dict[str, Any],
    preset: str | None,
    **options: Any,
) -> None:
    """Compare methods; or gradient sharing, or a rule of your own (--rule), with the original.

    All arms are trained on the same tasks from the same initialisation.
    """
    for option, given, readers in (
        ("--ray-address", ray_address, ["ray"]),
        ("--slurm", slurm, ["slurm"]),
        ("--gpus", gpus, ["ray", "slurm"]),
    ):
        if given and executor not in readers:
            known = " and ".join(readers)
            raise ConfigError(f"{option} is for --executor {known}, not {executor}; leave it out")
    if gpus is not None and math.isnan(gpus):  # no range leaves it out
        raise ConfigError(f"--gpus {gpus}: give a number from 0 to 100")
    own_methods, own_sweep = _in_file(from_file)
    methods, sweep = methods or own_methods, sweep or own_sweep
    if methods:
        if control or options["method"]:
            raise ConfigError(
                f"--methods names all arms; leave {'--control' if control else '--method'} out, "
                "and name a control METHOD+rate-control"
            )
        # What only MAML++ reads can be given if it is one of them.
        options["method"] = "maml++" if "maml++" in " ".join(methods) else "maml"
    asked = read_config(from_file, preset, options)
    config = resolved(asked)
    if config.workers > 1:
        raise ConfigError(
            f"--workers {config.workers}: `gradshare compare` trains each run in one process; "
            "leave it out, and give --cpus"
        )
    threads = config.threads or cpus or 0
    plan = plan_of(asked, control=control, seeds=seeds, methods=methods, sweep=sweep)
    plan = replace(plan, threads=threads)
    for arm, seed in plan.runs if resume == "auto" else ():
        own = RunConfig(**{**plan.settings[arm], "seed": seed})
        require_same(own, plan.place(out, arm, seed))
    # With the first seed all candidates are trained, with the others the best of each group.
    left_out = sum(len(group) - 1 for group in plan.candidates) * (len(plan.seeds) - 1)
    click.echo(
        f"{', '.join(plan.arms)}: {len(plan.runs) - left_out} runs, {config.epochs} × "
        f"{config.iterations_per_epoch} iterations each, on {config.dataset}"
        f"{f', tested on {other}' if (other := config.test_dataset) else ''}; everything goes to "
        f"{escaped(out)}."
    )
    where: Any = None
    if executor == "local":
        jobs = jobs or (max(1, cores() // threads) if threads else None)
    elif executor == "ray":
        where = RayExecutor(ray_address, cpus=cpus or threads or 1, gpus=gpus or 0)
    else:
        # submitit says that it takes no fraction of a GPU
        whole = int(gpus) if gpus and gpus.is_integer() else gpus
        given = {"cpus_per_task": cpus or threads, "gpus_per_node": whole}
        slurm = (slurm or {}) | {name: count for name, count in given.items() if count}
        where = slurm_executor(out / ".slurm", out.name, slurm)
    if where is not None:
        click.echo("The arms are tried on a first worker before the runs begin.")
        retries = REMOTE_RETRIES if retries is None else retries
    comparison = run_plan(
        plan,
        out,
        executor=where,
        at_a_time=jobs,
        retries=retries or 0,
        resume=resume == "auto",
        settings=settings_shown(plan) if methods or sweep else settings_read(config),
        commands=_commands(asked),
    )
    _show(comparison)


@click.command(name="report")
@click.argument("comparison", type=UserPath())
def report_command(comparison: Path) -> None:
    """Print a finished COMPARISON, and write its report again."""
    results = load_results(comparison)
    home = comparison.parent if comparison.is_file() else comparison
    write_report(results, home)
    _show(Comparison(home, results))


def _in_file(settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The methods and the sweep of a file, which are taken out of its settings."""
    methods, sweep = settings.pop("methods", []), settings.pop("sweep", {})
    if not isinstance(methods, list) or not isinstance(sweep, dict):
        raise ConfigError(
            f"--config: methods {methods!r} must be a list, as [maml, anil], and sweep {sweep!r} a "
            "mapping of lists, as {inner_lr: [0.03, 0.1]}"
        )
    return [str(word) for word in methods], sweep


def _show(comparison: Comparison) -> None:
    """Print the table, the verdict and where the report is."""
    click.echo(f"{comparison}\n\nReport: {escaped(comparison.path / 'report.html')}")


def _commands(config: RunConfig) -> list[str]:
    """What reproduces this: preparing the data, and the command itself."""
    words = ["gradshare", *sys.argv[1:]]
    if "--data-root" not in words:
        words += ["--data-root", str(config.data_root)]
    commands, root, size = [], config.data_root, config.image_size
    for name in filter(None, (config.dataset, config.test_dataset)):
        if is_import_path(name):
            continue
        if (features := features_of(config.model_copy(update={"dataset": name}))) is not None:
            commands.append(features_command(FeatureStore.open(features), name, root))
            continue
        store = open_dataset(name, root, size, config.resize)
        size = store.image_shape[1]
        commands.append(prepare_command(name, root, size, config.resize, store.source))
    return [*commands, shlex.join(words)]
