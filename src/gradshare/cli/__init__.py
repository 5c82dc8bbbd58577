"""The `gradshare` program: parses, calls, prints."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from gradshare import __version__
from gradshare.errors import SIGNAL_STATUS, ConfigError, GradshareError

FAILED = 1

COMMANDS = {
    "compare": ("compare:compare_command", "Compare gradient sharing with the original."),
    "train": ("train:train_command", "Meta-train one learner, and test it."),
    "evaluate": ("evaluate:evaluate_command", "Test the best checkpoints of a RUN."),
    "report": ("compare:report_command", "Write the report of finished RUNs."),
    "data": ("data:data", "Prepare datasets and look at them."),
}
"""For each command the module and the name of its function, and its line in the help."""

TRAINING = {"train", "compare"}


class LazyGroup(click.Group):
    """The commands of `COMMANDS`. A command's module is imported when the command is run: torch
    alone takes more than a second.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Gradient-based meta-learning, with and without gradient sharing.

    Start with `gradshare compare --control --out runs/first`.
    """
    if _under_torchrun() and context.invoked_subcommand != "train":
        from gradshare.training.launch import torchrun_size  # noqa: PLC0415

        size = torchrun_size() or 1
        if size > 1:
            raise ConfigError(
                f"torchrun has started {size} processes of `gradshare "
                f"{context.invoked_subcommand}`, which runs in one; use torchrun with `gradshare "
                "train` only"
            )


def program() -> None:
    """The program as a shell starts it. Processes that train need the allocator's settings from
    their start on: those that `compare` and others start, and this one if it trains itself.
    """
    if TRAINING & {*sys.argv[1:2]} and not {"-h", "--help"} & {*sys.argv}:
        from gradshare.training.machine import join_freed_memory  # noqa: PLC0415

        join_freed_memory(start_again=sys.argv[1] == "train")
    main()


def main() -> None:
    """Run the program. An error that the user can correct is one message and an exit status."""
    try:
        cli(standalone_mode=True)
    except GradshareError as error:
        stopped = getattr(error, "signal", None)  # of a RunStoppedError
        if _speaks(error):
            click.echo(f"{'' if stopped else 'error: '}{error}", err=True)
        sys.exit(SIGNAL_STATUS + stopped if stopped else FAILED)
    except PermissionError as error:
        # Any question about a path in a closed folder raises this, wherever it is asked.
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


def _under_torchrun() -> bool:
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def _speaks(error: GradshareError) -> bool:
    """Whether this process prints an error: under torchrun one process of a machine prints what all
    of them know.
    """
    if not _under_torchrun():
        return True
    from gradshare.training.distributed import OtherRankError  # noqa: PLC0415
    from gradshare.training.interruption import RunStoppedError  # noqa: PLC0415
    from gradshare.training.launch import speaks_for_machine  # noqa: PLC0415

    return speaks_for_machine() or not isinstance(error, OtherRankError | RunStoppedError)
