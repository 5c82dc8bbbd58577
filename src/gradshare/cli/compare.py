"""`gradshare compare` and `report`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from pydantic import Field, JsonValue

from gradshare.cli.options import (
    GroupedCommand,
    Launch,
    UserPath,
    options_of,
    read_config,
    run_options,
)
from gradshare.comparison.compare import Comparison, run_plan
from gradshare.comparison.plan import Plan
from gradshare.comparison.results import load_results
from gradshare.config.comparing import plan_of, settings_shown
from gradshare.config.fields import Names, Options, option_name
from gradshare.config.names import is_import_path
from gradshare.config.parts import features_of, resolved
from gradshare.config.runs import require_same
from gradshare.config.settings import ARM_FIELDS, RunConfig
from gradshare.errors import ConfigError, escaped
from gradshare.executors import RayExecutor, slurm_executor
from gradshare.tasks.datasets import open_dataset
from gradshare.tasks.features import FeatureStore, features_command
from gradshare.tasks.registry import prepare_command

REMOTE_RETRIES = 2

Few = Annotated[int, Field(ge=1, le=10_000)]


class Compare(Launch):
    """What `gradshare compare` takes beside the settings of its runs."""

    methods: Names = ()
    """Compare these methods with the first of them: maml,anil,protonet,linear-probe,…
    METHOD+sharing shares gradients, METHOD+rate-control is its control. In a file: a list."""
    sweep: dict[str, list[JsonValue]] = Field({})
    """Compare each arm at the value with the best validation score of the first seed:
    inner-lr=0.03,0.1. Repeat for all combinations with another setting. In a file: a mapping."""
    control: bool = False
    """Train the arm rate-control too."""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many seeds, from --seed on, the comparison is repeated with."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """Where the runs are trained: in processes on this machine, on Ray, or as Slurm jobs; see
    docs/clusters.md."""
    jobs: Few | None = None
    """Runs at a time.  [default: local: as many as there are cores for, or one on a GPU; ray,
    slurm: all]"""
    retries: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How often in a row a run whose process or machine is lost is started again from its last
    checkpoint, while it completes no other epoch.  [default: local: 0; ray, slurm: 2]"""
    cpus: Few | None = None
    """CPUs of each run.  [default: --threads; else local: cores / runs at a time, ray: 1]"""
    gpus: Annotated[float, Field(ge=0, le=100)] | None = None
    """GPUs of each run, on Ray fractions too."""
    ray_address: str | None = None
    """Ray cluster, as `ray.init` takes it: auto, HOST:PORT.  [default: one of this machine]"""
    slurm: Options = Field({})
    """Slurm's settings, as submitit takes them: partition=gpu, timeout_min=600, mem_gb=16, qos=…,
    additional_parameters='{requeue: true}'.  Repeat for each."""


@click.command(name="compare", cls=GroupedCommand)
@options_of(Compare)
@run_options(RunConfig.model_fields.keys() - ARM_FIELDS)
def compare_command(asked: Compare, **options: Any) -> None:
    """Compare methods; or gradient sharing, or a rule of your own (--rule), with the original.

    All arms are trained on the same tasks from the same initialisation.
    """
    asked, from_file = asked.with_file()
    out = asked.folder
    for option, readers in (
        ("ray_address", ["ray"]),
        ("slurm", ["slurm"]),
        ("gpus", ["ray", "slurm"]),
    ):
        if getattr(asked, option) and asked.executor not in readers:
            raise ConfigError(
                f"{option_name(option)} is for --executor {' and '.join(readers)}, not "
                f"{asked.executor}; leave it out"
            )
    if asked.methods:
        if asked.control or options["method"]:
            raise ConfigError(
                f"--methods names all arms; leave {'--control' if asked.control else '--method'} "
                "out, and name a control METHOD+rate-control"
            )
        # What only MAML++ reads can be given if it is one of them.
        options["method"] = "maml++" if "maml++" in " ".join(asked.methods) else "maml"
    runs = read_config(from_file, asked.preset, options)
    config = resolved(runs)
    if config.workers > 1:
        raise ConfigError(
            f"--workers {config.workers}: `gradshare compare` trains each run in one process; "
            "leave it out, and give --cpus"
        )
    plan = plan_of(
        runs, control=asked.control, seeds=asked.seeds, methods=asked.methods, sweep=asked.sweep
    )
    _warn_of_unused(from_file, [*ARM_FIELDS, "method"] if asked.methods else ARM_FIELDS, plan)
    plan = replace(plan, threads=config.threads or asked.cpus or 0)
    for arm, seed in plan.runs if asked.resume == "auto" else ():
        own = RunConfig(**{**plan.settings[arm], "seed": seed})
        require_same(own, plan.place(out, arm, seed))
    # With the first seed all candidates are trained, with the others the best of them.
    left_out = sum(len(each) - 1 for each in plan.candidates) * (len(plan.seeds) - 1)
    click.echo(
        f"{', '.join(plan.arms)}: {len(plan.runs) - left_out} runs, {config.epochs} × "
        f"{config.iterations_per_epoch} iterations each, on {config.dataset}"
        f"{f', tested on {other}' if (other := config.test_dataset) else ''}; everything goes to "
        f"{escaped(out)}."
    )
    executor = _executor(asked, plan.threads)
    if executor is not None:
        click.echo("The arms are tried on a first worker before the runs begin.")
    retries = 0 if executor is None else REMOTE_RETRIES
    comparison = run_plan(
        plan,
        out,
        executor=executor,
        at_a_time=asked.jobs,
        retries=retries if asked.retries is None else asked.retries,
        resume=asked.resume == "auto",
        settings=settings_shown(plan),
        commands=_commands(runs),
    )
    _show(comparison)


@click.command(name="report")
@click.argument("comparison", type=UserPath())
def report_command(comparison: Path) -> None:
    """Print a finished COMPARISON, and write its report again."""
    home = comparison.parent if comparison.is_file() else comparison
    found = Comparison(home, load_results(comparison))
    found.report()
    _show(found)


def _warn_of_unused(settings: Mapping[str, Any], names: Collection[str], plan: Plan) -> None:
    """Warn of each setting of a file, among some by name, whose value no arm has."""
    found = {name: settings[name] for name in names if name in settings}
    said = RunConfig(**found)
    for name in found:
        value = getattr(said, name)
        if all(arm[name] != value for arm in plan.settings.values()):
            arms = escaped(", ".join(plan.arms))
            click.echo(
                f"warning: no arm has {name} {value!r}, as the file says; the arms are {arms}",
                err=True,
            )


def _executor(asked: Compare, threads: int) -> Any:
    """Where the runs are trained; None for processes on this machine."""
    cpus = asked.cpus or threads
    if asked.executor == "ray":
        return RayExecutor(asked.ray_address, cpus=cpus or 1, gpus=asked.gpus or 0)
    if asked.executor == "slurm":
        # submitit says that it takes no fraction of a GPU
        gpus = int(asked.gpus) if asked.gpus and asked.gpus.is_integer() else asked.gpus
        own = {"cpus_per_task": cpus, "gpus_per_node": gpus}
        slurm = asked.slurm | {name: count for name, count in own.items() if count}
        return slurm_executor(asked.folder / ".slurm", asked.folder.name, slurm)
    return None


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
