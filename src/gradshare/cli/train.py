"""`gradshare train`. Its help needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradshare.cli.options import (
    GroupedCommand,
    out_option,
    read_config,
    resume_option,
    run_options,
)
from gradshare.errors import ConfigError


@click.command(name="train", cls=GroupedCommand)
@out_option(required=False)
@resume_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, time a few steps, print what the whole run would take, and write "
    "nothing. It needs no --out.",
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
    """Meta-train one learner, and test it.

    A dataset, model, method, rule, loss or metric of your own is given by its import path:
    package.module:Name or file.py:Name, with its options as --model-option KEY=VALUE.
    """
    config = read_config(config_file, preset, options)
    if out is None and not dry_run:
        raise ConfigError("--out is missing; name a new folder for everything that comes out")
    from gradshare.cli import training  # noqa: PLC0415  # torch takes a second

    if out is None or dry_run:
        # A run that is to be continued may have its folder.
        training.estimate(config, None if resume == "auto" else out)
    else:
        training.train(config, out, resume=resume == "auto")
