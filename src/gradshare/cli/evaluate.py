"""`gradshare evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from gradshare.cli.options import DATA_ROOT_VARIABLE, UserPath
from gradshare.cli.printing import print_line
from gradshare.comparison.verdict import show_difference
from gradshare.config import Parts, RunConfig, build, stored
from gradshare.config.parts import splits_of
from gradshare.errors import ConfigError, RunError
from gradshare.tasks import ImageTasks, TaskSource
from gradshare.tasks.source import fingerprint_of
from gradshare.training.evaluation import Evaluation
from gradshare.training.folder import RunFolder
from gradshare.training.launch import threads
from gradshare.training.layout import Layout
from gradshare.training.machine import keep_freed_memory
from gradshare.training.run import open_run as reopen
from gradshare.training.statistics import confidence95


@click.command(name="evaluate")
@click.argument("run", type=UserPath())
@click.option("--test-tasks", type=click.IntRange(1), help="Test tasks.  [default: the run's]")
@click.option(
    "--shots", type=click.IntRange(1), help="Support examples of each class.  [default: the run's]"
)
@click.option("--steps", type=click.IntRange(0), help="Inner steps.  [default: the run's]")
@click.option(
    "--batch-norm",
    type=click.Choice(["transductive", "inductive"]),
    help="Batch norm statistics at test; see `gradshare train --help`.  [default: the run's]",
)
@click.option(
    "--sharing-control",
    type=click.Choice(["forgotten"]),
    help="forgotten: test with ĝ = 0, without the gradients of other tasks.  [default: the run's]",
)
@click.option(
    "--dataset",
    help="Test on another dataset: the name of a prepared one, or an import path. Images are "
    "normalised as in training.  [default: the run's]",
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
    "--threads", type=click.IntRange(0), help="CPU threads; see `gradshare train --help`."
)
def evaluate_command(
    run: Path,
    test_tasks: int | None,
    shots: int | None,
    steps: int | None,
    dataset: str | None,
    **options: Any,
) -> None:
    """Test the best checkpoints of a RUN.

    They are tested as one ensemble, and the best one alone. If the tasks are those of the test at
    the end of the run, the difference from it is printed too, paired by task.
    """
    console = Console()
    given = {name: value for name, value in options.items() if value is not None}
    changes = ("batch_norm", "sharing_control")  # of how a learner adapts, and none of its tensors
    how = {name: value for name, value in given.items() if name in changes}
    config = stored(run)
    if "sharing_control" in how and not config.shares:
        raise ConfigError(
            f"--sharing-control forgotten takes ĝ away, and {run} ({config.arm}) has none; leave "
            "it out, or name a run with gradient sharing"
        )
    machine = {name: value for name, value in given.items() if name not in changes}
    config = config.model_copy(update=machine)
    keep_freed_memory()
    with threads(config.threads or torch.get_num_threads()):
        parts = build(config)
        metrics = parts.options.metrics
        opened = reopen(run, parts.learner, parts.train, metrics=metrics, device=config.device)
        if how:
            layout = Layout(**RunFolder(run).contents()["layout"])
            opened.learner = layout.applied(build(config.model_copy(update=how)).learner)
        if dataset is None:
            source = _own_test_source(run, config, parts)
        else:
            source = _other_source(config, parts, dataset)
        if shots is not None:
            source = _with_shots(source, shots)
        members = min(config.ensemble, len(opened.history))
        count = test_tasks or config.test_tasks
        with console.status(f"testing on {count} tasks"):
            together = opened.evaluate(source, tasks=count, steps=steps, ensemble=members)
            print_line(console, f"Ensemble: {together}")
            best = opened.evaluate(source, tasks=count, steps=steps)
            print_line(console, f"Best checkpoint: {best}")
    if dataset is None and shots is None and opened.test is not None:
        own = opened.test.ensemble[opened.score]
        _print_difference(console, together, own)


def _own_test_source(run: Path, config: RunConfig, parts: Parts) -> TaskSource:
    """The source of the run's own test tasks.

    Raises:
        ConfigError: it has none.
        RunError: the dataset has changed.
    """
    if parts.test is None:
        raise ConfigError(f"{run} has no test tasks; name a --dataset that has some")
    then = RunFolder(run).contents()["identity"].get("test source")
    if fingerprint_of(parts.test) != then:
        raise RunError(
            f"{run} was tested on other tasks than the dataset {config.dataset!r} in "
            f"{config.data_root} gives now; prepare the dataset as it was, name the folder that "
            "still holds it with --data-root, or name another --dataset"
        )
    return parts.test


def _other_source(config: RunConfig, parts: Parts, dataset: str) -> TaskSource:
    """The test tasks of another dataset; images in the form that the run takes.

    Raises:
        ConfigError: it has no test tasks, or its images have other channels.
        DataError: see `gradshare.config.build`.
    """
    ours = parts.train
    changes: dict[str, Any] = {"dataset": dataset, "dataset_option": {}}
    if isinstance(ours, ImageTasks):
        changes["image_size"] = ours.split.images.shape[-1]
    source = splits_of(config.model_copy(update=changes)).test
    if source is None:
        raise ConfigError(f"--dataset {dataset} has no test tasks; name another")
    if isinstance(ours, ImageTasks) and isinstance(source, ImageTasks):
        here, there = source.split.images.shape[1], ours.split.images.shape[1]
        if here != there:
            raise ConfigError(
                f"--dataset {dataset} has images of {here} channels, and the run takes {there}; "
                "name another"
            )
        source = source.replace(normalization=ours.normalization)
    return source


def _with_shots(source: TaskSource, shots: int) -> TaskSource:
    replace = getattr(source, "replace", None)
    if replace is None:
        raise ConfigError(
            f"--shots {shots}: {type(source).__name__} has no method `replace(shots=…)`; add one, "
            "or leave --shots out"
        )
    changed: TaskSource = replace(shots=shots)
    return changed


def _print_difference(console: Console, evaluation: Evaluation, own: Sequence[float]) -> None:
    """Print how the score differs from that of the run's own test, on the tasks that both have."""
    values = evaluation.values[evaluation.score]
    differences = [here - there for here, there in zip(values, own, strict=False)]
    interval, metric = confidence95(differences), evaluation.metrics[evaluation.score]
    shown = show_difference(metric, interval)
    first = f" (first {len(differences)} tasks)" if len(differences) < len(values) else ""
    print_line(console, f"Difference from the run's own test: {shown}{first}")
