"""What `gradshare train` does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch
from rich.console import Console

from gradshare.cli.printing import print_line
from gradshare.config import RunConfig, build
from gradshare.config import train as train_run
from gradshare.errors import ConfigError
from gradshare.tasks.datasets import is_prepared
from gradshare.tasks.glyphs import GLYPHS
from gradshare.training.dry_run import dry_run
from gradshare.training.launch import is_first, threads, torchrun_size
from gradshare.training.machine import keep_freed_memory
from gradshare.training.progress import RunBars


def train(config: RunConfig, out: Path, *, resume: bool) -> None:
    """Train a run, and print and write what it came to."""
    console = Console(quiet=not is_first())
    keep_freed_memory()
    with RunBars(console) as bars:
        run = train_run(config, out, resume=resume, watch=bars.watch(config.arm))
    if not is_first():
        return
    if run.diverged is not None:
        print_line(console, f"Diverged: {run.diverged}")
    if run.tested is not None:
        print_line(console, f"Test: {run.tested}")
    print_line(console, f"Run: {run.path}")


def estimate(config: RunConfig, out: Path | None) -> None:
    """Print what a run would take, and write nothing."""
    if torchrun_size() is not None:
        raise ConfigError("--dry-run measures a run in one process; start it without torchrun")
    if config.workers > 1:
        raise ConfigError("--dry-run measures a run in one process; leave --workers out")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        here = config.dataset, config.data_root, config.image_size
        if config.dataset == GLYPHS.name and not is_prepared(*here):
            config = config.model_copy(update={"data_root": scratch})
        with threads(config.threads or torch.get_num_threads()):
            parts = build(config)
            sources = (parts.train, parts.validation, parts.test)
            click.echo(dry_run(parts.learner, sources, parts.options, out))
