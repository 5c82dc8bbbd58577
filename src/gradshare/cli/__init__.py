"""The `gradshare` program: parses, calls, prints."""

from __future__ import annotations

import os
import sys

import click

from gradshare import __version__
from gradshare.cli.data import data
from gradshare.cli.paper import paper
from gradshare.cli.runs import compare_command, evaluate_command, report_command, train_command
from gradshare.errors import SIGNAL_STATUS, ConfigError, GradshareError
from gradshare.training.distributed import OtherRankError
from gradshare.training.interruption import RunStoppedError
from gradshare.training.launch import speaks_for_machine, torchrun_size
from gradshare.training.machine import join_freed_memory

FAILED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Gradient-based meta-learning, with and without gradient sharing.

    Start with `gradshare compare --control --out runs/first`.
    """
    size = torchrun_size() or 1
    if size > 1 and context.invoked_subcommand != train_command.name:
        raise ConfigError(
            f"torchrun has started {size} processes of `gradshare {context.invoked_subcommand}`, "
            "which does its work in one; use torchrun with `gradshare train` only"
        )


for command in (compare_command, train_command, evaluate_command, report_command, paper, data):
    cli.add_command(command)


def program() -> None:
    """The program as a shell starts it. What trains must have its allocator's settings from its
    start on: the processes that `compare` and others start, and this one where it trains itself.
    """
    join_freed_memory(start_again=sys.argv[1:2] == [train_command.name])
    main()


def main() -> None:
    """Run the program; what a user can mend is one clear message and an exit status."""
    try:
        cli(standalone_mode=True)
    except RunStoppedError as stopped:
        if speaks_for_machine():
            click.echo(str(stopped), err=True)
        sys.exit(SIGNAL_STATUS + stopped.signal)
    except GradshareError as error:
        if speaks_for_machine() or not isinstance(error, OtherRankError):
            click.echo(f"error: {error}", err=True)
        sys.exit(FAILED)
    except PermissionError as error:
        # The least question about a path in a folder that is closed raises this, wherever asked.
        where = error.filename or "a file"
        click.echo(
            f"error: {where} cannot be used: {error.strerror}; give yourself permission to it and "
            "to the folders that it is in, or name another",
            err=True,
        )
        sys.exit(FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
