"""`gradshare train`. Its help needs no torch, so what does is imported when a run starts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from gradshare.cli.options import GroupedCommand, Launch, options_of, read_config, run_options
from gradshare.config import RunConfig
from gradshare.errors import ConfigError, escaped


class Train(Launch):
    """What `gradshare train` takes beside the settings of its run."""

    dry_run: bool = False
    """Check everything, time a few steps, print what the whole run would take, and write nothing.
    It needs no --out."""


@click.command(name="train", cls=GroupedCommand)
@options_of(Train)
@run_options()
def train_command(asked: Train, **options: Any) -> None:
    """Meta-train one learner, and test it.

    A dataset, model, method, rule, loss or metric of your own is given by its import path:
    package.module:Name or file.py:Name, with its options as --model-option KEY=VALUE.
    """
    asked, settings = asked.with_file()
    config = read_config(settings, asked.preset, options)
    resume = asked.resume == "auto"
    if asked.dry_run:
        # A run that is to be continued may have its folder.
        _estimate(config, None if resume else asked.out)
    else:
        _train(config, asked.folder, resume=resume)


def _train(config: RunConfig, out: Path, *, resume: bool) -> None:
    """Train a run, show its progress, and print its results."""
    from rich.console import Console  # noqa: PLC0415

    from gradshare.config.runs import train  # noqa: PLC0415
    from gradshare.training.launch import is_first  # noqa: PLC0415
    from gradshare.training.machine import keep_freed_memory  # noqa: PLC0415
    from gradshare.training.progress import RunBars  # noqa: PLC0415

    keep_freed_memory()
    with RunBars(Console(quiet=not is_first())) as bars:
        run = train(config, out, resume=resume, watch=bars.watch("run"))
    if is_first():
        if run.diverged is not None:
            click.echo(f"Diverged: {run.diverged}")
        if run.tested is not None:
            click.echo(f"Test: {run.tested}")
        click.echo(f"Run: {escaped(run.path)}")


def _estimate(config: RunConfig, out: Path | None) -> None:
    """Print what a run would take, and write nothing."""
    import torch  # noqa: PLC0415

    from gradshare.config.parts import build, tests_of_another  # noqa: PLC0415
    from gradshare.tasks import ImageTasks  # noqa: PLC0415
    from gradshare.tasks.datasets import is_prepared  # noqa: PLC0415
    from gradshare.training.dry_run import dry_run  # noqa: PLC0415
    from gradshare.training.launch import threads, torchrun_size  # noqa: PLC0415
    from gradshare.training.machine import keep_freed_memory  # noqa: PLC0415

    if torchrun_size() is not None or config.workers > 1:
        raise ConfigError(
            "--dry-run measures a run in one process; start it without torchrun and --workers"
        )
    keep_freed_memory()
    count = config.threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch, threads(count):

        def reading(dataset: str, size: int | None) -> RunConfig:
            """The configuration; glyphs that its data root lacks are drawn into another."""
            here = config.data_root, size, config.resize
            lacks = dataset == "glyphs" and not is_prepared(dataset, *here)
            return config.model_copy(update={"data_root": scratch} if lacks else {})

        alone = reading(config.dataset, config.image_size)
        parts = build(alone.model_copy(update={"test_dataset": None}))
        test, other = parts.test, config.test_dataset
        if other is not None:
            size = parts.train.form.size if isinstance(parts.train, ImageTasks) else None
            test = tests_of_another(reading(other, size), "--test-dataset", other, parts.train)
        sources = (parts.train, parts.validation, test)
        click.echo(dry_run(parts.learner, sources, parts.options, out))
