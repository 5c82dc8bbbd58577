"""`gradshare evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import torch
from pydantic import Field
from rich.console import Console

from gradshare.cli.options import UserPath, given, options_of, run_options
from gradshare.config.fields import MOST_STEPS, Declared
from gradshare.config.metrics import metrics_of
from gradshare.config.parts import Parts, build, tests_of_another
from gradshare.config.runs import folder_of, stored
from gradshare.config.settings import RunConfig
from gradshare.errors import ConfigError, RunError
from gradshare.tasks import TaskSource
from gradshare.tasks.source import fingerprint_of
from gradshare.training.evaluation import Evaluation
from gradshare.training.folder import RunFolder
from gradshare.training.launch import threads
from gradshare.training.layout import Layout
from gradshare.training.machine import keep_freed_memory
from gradshare.training.run import open_run
from gradshare.training.statistics import confidence95

CHANGED = (
    *("test_tasks", "ways", "shots", "ensemble", "metric", "batch_norm"),
    *("data_root", "device", "threads"),
)
"""The settings of a run that a test may have others of."""


class Evaluate(Declared):
    """What `gradshare evaluate` takes beside settings of the run."""

    steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] | None = None
    """Inner steps.  [default: the run's]"""
    sharing_control: Literal["forgotten"] | None = None
    """forgotten: test with ĝ = 0, without the gradients of other tasks.  [default: the run's]"""
    dataset: str | None = None
    """Test on another dataset: the name of a prepared one, or an import path. Images are normalised
    as in training.  [default: the run's]"""
    calibration: bool = False
    """Also measure how far the classifier's probabilities, prediction sets and rejections hold when
    they are calibrated on validation tasks."""


@click.command(name="evaluate")
@click.argument("run", type=UserPath())
@run_options(CHANGED, default="the run's")
@options_of(Evaluate)
def evaluate_command(run: Path, asked: Evaluate, **options: Any) -> None:
    """Test the best checkpoints of a RUN.

    They are tested as one ensemble, and the best one alone. If the tasks are those of the test at
    the end of the run, the difference from it is printed too, paired by task.
    """
    dataset, control = asked.dataset, asked.sharing_control
    changes = RunConfig(**given({**options, "sharing_control": control}))

    def chosen(*names: str) -> dict[str, Any]:
        return {name: getattr(changes, name) for name in names if name in changes.model_fields_set}

    run = folder_of(run)
    sizes, adapting = chosen("ways", "shots"), chosen("batch_norm", "sharing_control")
    config = stored(run)
    resized = config.model_copy(update=sizes)
    if asked.calibration and tuple in (type(resized.ways), type(resized.shots)):
        raise ConfigError(
            "--calibration is for tasks of one size, and these vary in ways or shots; give numbers "
            "as --ways and --shots"
        )
    if "sharing_control" in adapting and not config.shares:
        raise ConfigError(
            f"--sharing-control forgotten takes ĝ away, and {run} ({config.arm}) has none; leave "
            "it out, or name a run with gradient sharing"
        )
    config = config.model_copy(update=chosen("data_root", "device", "threads"))
    if dataset is not None:  # then the run's own is not needed
        config = config.model_copy(update={"test_dataset": None})
    keep_freed_memory()
    with threads(config.threads or torch.get_num_threads()):
        parts = build(config)
        metrics = parts.options.metrics
        opened = open_run(run, parts.learner, parts.train, metrics=metrics, device=config.device)
        if adapting:
            layout = Layout(**RunFolder(run).contents()["layout"])
            opened.learner = layout.applied(build(config.model_copy(update=adapting)).learner)
        tasks = options["test_tasks"] or config.test_tasks
        how: dict[str, Any] = {"tasks": tasks, "steps": asked.steps}
        if metric := chosen("metric"):
            other = config.model_copy(update={**metric, "metric_option": {}})
            how["metrics"] = metrics_of(other, parts.learner, parts.train)
        source = _source(run, config.model_copy(update=sizes), parts, dataset)
        if sizes:
            source = _replaced(source, sizes)
        members = options["ensemble"] or min(config.ensemble, len(opened.history))
        if asked.calibration:  # before the test, since a run on other targets has none
            from gradshare.classifier.calibration import measured_on  # noqa: PLC0415
            from gradshare.classifier.trained import Trained  # noqa: PLC0415

            trained = Trained(opened, members, config.device)
        with Console().status(f"testing on {tasks} tasks"):
            together = opened.evaluate(source, ensemble=members, **how)
            click.echo(f"Ensemble: {together}")
            click.echo(f"Best checkpoint: {opened.evaluate(source, **how)}")
        if asked.calibration:
            validation = _replaced(parts.validation, sizes) if sizes else parts.validation
            click.echo(str(measured_on(trained, validation, source, tasks)))
    own = None if opened.test is None else opened.test.ensemble.get(together.score)
    if dataset is None and not sizes and own is not None:
        click.echo(_difference(together, own))


def _source(run: Path, config: RunConfig, parts: Parts, dataset: str | None) -> TaskSource:
    """The test tasks of the run, or of another dataset."""
    source = parts.test
    if dataset is not None:
        return tests_of_another(config, "--dataset", dataset, parts.train)
    if source and fingerprint_of(source) != RunFolder(run).contents()["identity"]["test source"]:
        raise RunError(
            f"{run} was tested on other tasks than the dataset {config.dataset!r} in "
            f"{config.data_root} gives now; prepare the dataset as it was, name the folder that "
            "still holds it with --data-root, or name another --dataset"
        )
    if source is None:
        raise ConfigError(f"{run} has no test tasks; name a --dataset that has some")
    return source


def _replaced(source: TaskSource, sizes: dict[str, int]) -> TaskSource:
    replace = getattr(source, "replace", None)
    if replace is None:
        name, value = next(iter(sizes.items()))
        raise ConfigError(
            f"--{name} {value}: {type(source).__name__} has no method `replace({name}=…)`; add "
            f"one, or leave --{name} out"
        )
    changed: TaskSource = replace(**sizes)
    return changed


def _difference(evaluation: Evaluation, own: Sequence[float]) -> str:
    """How the score differs from that of the run's own test, on the tasks that both have."""
    values = evaluation.values[evaluation.score]
    differences = [here - there for here, there in zip(values, own, strict=False)]
    interval, metric = confidence95(differences), evaluation.metrics[evaluation.score]
    first = f" (first {len(differences)} tasks)" if len(differences) < len(values) else ""
    return f"Difference from the run's own test: {metric.show_difference(interval)}{first}"
