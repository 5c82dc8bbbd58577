"""Accuracy on features of a frozen backbone: what needs no meta-training, and the recipe.

    python -m benchmarks.on_features DATASET ... [--data-root data] [--out runs/on-features]

For each dataset that `gradshare data features` wrote, and for 5 shots and 1, it prints the accuracy
on the same 300 test tasks, and the recipe minus each of the others, paired by task.
"""

from __future__ import annotations

import functools
from pathlib import Path

import click
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.config.features import DEFAULTS
from gradshare.tasks.features import features_path
from gradshare.training.statistics import confidence95
from gradshare.training.yardsticks import yardsticks

TASKS = 300
QUERIES = 15


@click.command()
@click.argument("datasets", nargs=-1, required=True)
@click.option("--data-root", type=Path, default="data")
@click.option("--out", type=Path, default="runs/on-features")
def main(datasets: tuple[str, ...], data_root: Path, out: Path) -> None:
    """Measure the recipe on features."""
    for dataset in datasets:
        store = gs.FeatureStore.open(features_path(data_root, dataset))
        for shots in (5, 1):
            splits = gs.feature_splits(store, shots=shots, queries=QUERIES)
            found = accuracies(splits, len(store.mean), out / f"{dataset}-{shots}-shot")
            *others, recipe = found
            click.echo(f"\n{dataset}, {shots}-shot, {TASKS} tasks")
            for name, values in found.items():
                difference = [a - b for a, b in zip(found[recipe], values, strict=True)]
                less = f"; {recipe} minus this {percent(difference)}" if name in others else ""
                click.echo(f"  {name}: {percent(values)}{less}")


def accuracies(splits: gs.Splits, features: int, out: Path) -> dict[str, list[float]]:
    """The accuracy on each test task of each way to classify, the recipe last."""
    assert splits.test is not None
    frozen = {
        f"frozen features, {name}": values["accuracy"]
        for name, values in yardsticks(splits.test, TASKS).items()
    }
    torch.manual_seed(0)
    model = gs.MLP(ways=5, features=features)
    body = gs.supervised_start(model, splits.train).body
    run = gs.fit(
        gs.maml(model),
        *splits,
        out=out,
        start="supervised",
        epochs=DEFAULTS["epochs"],
        iterations=DEFAULTS["iterations_per_epoch"],
        task_batch=DEFAULTS["task_batch"],
        optimizer=functools.partial(torch.optim.Adam, lr=DEFAULTS["outer_lr"]),
        test_tasks=TASKS,
        device="cpu",
    )
    assert run.test is not None
    return {
        **frozen,
        "supervised start, nearest class mean": nearest_mean(body, splits.test),
        "supervised start, then gs.maml": run.test.single["accuracy"],
    }


@torch.no_grad()
def nearest_mean(body: nn.Module, source: gs.TaskSource) -> list[float]:
    """The accuracy on each task of the nearest class mean behind a body."""
    values = []
    for index in range(TASKS):
        task = source.prepare(source.batch([index]))  # type: ignore[attr-defined]
        support, labels = body(task.support_x[0]), task.support_y[0]
        means = torch.stack([support[labels == label].mean(0) for label in labels.unique()])
        guesses: Tensor = torch.cdist(body(task.query_x[0]), means).argmin(1)
        values.append(float((guesses == task.query_y[0]).double().mean()))
    return values


def percent(values: list[float]) -> str:
    """The mean and its interval in percent."""
    interval = confidence95([100 * value for value in values])
    return f"{interval.mean:.1f} ± {interval.ci95:.1f}"


if __name__ == "__main__":
    main()
