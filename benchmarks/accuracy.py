"""Accuracy on new classes: what needs no meta-training, a supervised start, and three heads.

    python -m benchmarks.accuracy DATASET ... [--shots 5] [--ways 2 --ways 5 ...]

The datasets are splits of the same classes; each is trained with another seed, so that a name given
twice is two seeds. `maml` has a fixed head, and is trained anew for each number of ways up to 5.
The heads of `unicorn-maml` and `proto-maml` take any number: they are trained on 5 ways and tested
on all. All are tested on the same tasks, and differences are paired by split and task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from gradshare.config.parts import build, resolved
from gradshare.config.runs import train
from gradshare.config.settings import RunConfig
from gradshare.errors import DataError
from gradshare.methods import MetaLearner
from gradshare.tasks import TaskSource
from gradshare.training.statistics import over_seeds_and_tasks
from gradshare.training.supervised import supervised_start
from gradshare.training.yardsticks import yardsticks

TRAINED_WAYS = 5
TASKS = 300
RECIPE = "unicorn-maml"
RATES = {"maml": 0.1, "unicorn-maml": 0.1, "proto-maml": 0.03}
"""By method. Of 0.03 and 0.1, these inner rates were better on 5-way validation tasks of signs."""


@click.command()
@click.argument("datasets", nargs=-1, required=True)
@click.option("--shots", type=int, default=5)
@click.option("--ways", "all_ways", type=int, multiple=True, default=(2, 5, 10, 20))
@click.option("--inner-steps", type=int, help="[default: as `gradshare train`]")
@click.option("--data-root", type=Path, default="data")
@click.option("--out", type=Path, default="runs/accuracy")
def main(
    datasets: tuple[str, ...],
    shots: int,
    all_ways: tuple[int, ...],
    inner_steps: int | None,
    data_root: Path,
    out: Path,
) -> None:
    """Measure the accuracy at several numbers of classes."""
    settings = {"shots": shots, "data_root": data_root, "sharing": False}
    settings |= {} if inner_steps is None else {"inner_steps": inner_steps}
    found: dict[tuple[int, str], list[list[float]]] = {}
    for seed, dataset in enumerate(datasets):
        config = RunConfig(dataset=dataset, seed=seed, **settings)
        folder = out / f"{dataset}-{shots}-shot-{seed}"
        for ways, name, values in accuracies(config, all_ways, folder):
            found.setdefault((ways, name), []).append(values)
    click.echo(f"\n{', '.join(datasets)}, {shots}-shot, {TASKS} tasks each")
    for (ways, name), rows in found.items():
        line = f"  {ways}-way, {name}: {percent(rows)}"
        if name != RECIPE:
            line += f"; {RECIPE} minus this: {percent(np.subtract(found[ways, RECIPE], rows))}"
        click.echo(line)


def accuracies(
    config: RunConfig, all_ways: Iterable[int], out: Path
) -> Iterator[tuple[int, str, list[float]]]:
    """The accuracy on each test task, by the number of ways and the name of what was tested."""
    parts = build(config)
    test: Any = parts.test
    sources = []
    for ways in all_ways:
        try:
            sources.append((ways, test.replace(ways=ways)))
        except DataError:  # there are fewer classes
            break
    for ways, source in sources:
        for name, values in yardsticks(source, TASKS).items():
            yield ways, name, values["accuracy"]
    if parts.options.start == "supervised":
        assert isinstance(parts.learner, MetaLearner)
        started = supervised_start(parts.learner.model, parts.train, seed=config.seed)
        body = started.get_submodule("body")
        for ways, source in sources:
            yield ways, "supervised start, nearest class mean", nearest_mean(body, source)
    steps = resolved(config).inner_steps
    same = {"inner_steps": steps, "ensemble": 1, "val_tasks": 100, "test_tasks": 10}
    for method, rate in RATES.items():
        for ways, source in sources:
            any_ways = method != "maml"
            if ways > TRAINED_WAYS and not any_ways:
                continue
            trained_ways = TRAINED_WAYS if any_ways else ways
            changes = {"method": method, "inner_lr": rate, "ways": trained_ways, **same}
            run = train(
                config.model_copy(update=changes), out / f"{method}-{trained_ways}", resume=True
            )
            yield ways, method, run.evaluate(source, tasks=TASKS).values["accuracy"]


@torch.no_grad()
def nearest_mean(body: nn.Module, source: TaskSource) -> list[float]:
    """The accuracy on each task of the nearest class mean behind a body."""
    values = []
    for index in range(TASKS):
        task = source.prepare(source.batch([index]))  # type: ignore[attr-defined]
        support, labels = body(task.support_x[0]), task.support_y[0]
        means = torch.stack([support[labels == label].mean(0) for label in labels.unique()])
        guesses: Tensor = torch.cdist(body(task.query_x[0]), means).argmin(1)
        values.append(float((guesses == task.query_y[0]).double().mean()))
    return values


def percent(rows: Any) -> str:
    """In percent: the mean over splits and tasks, and in brackets that of each split over tasks."""
    of_splits = [100 * np.asarray(row) for row in rows]
    mean, *each = (over_seeds_and_tasks(part) for part in (of_splits, *([r] for r in of_splits)))
    shown = ", ".join(f"{interval.mean:.1f} ± {interval.ci95:.1f}" for interval in each)
    return f"{mean.mean:.1f} ± {mean.ci95:.1f} ({shown})"


if __name__ == "__main__":
    main()
