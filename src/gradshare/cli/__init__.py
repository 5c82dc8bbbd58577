"""The `gradshare` program: parses, calls, prints."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from gradshare import __version__
from gradshare.errors import SIGNAL_STATUS, ConfigError, GradshareError, escaped, is_out_of_memory

COMMANDS = {
    "compare": ("compare:compare_command", "Compare gradient sharing with the original."),
    "train": ("train:train_command", "Meta-train one learner, and test it."),
    "evaluate": ("evaluate:evaluate_command", "Test the best checkpoints of a RUN."),
    "predict": ("predict:predict_command", "Classify new images from a few examples."),
    "check": ("predict:check_command", "Say what accuracy to expect on images of your own."),
    "export": ("predict:export_command", "Write a classifier as an ONNX file."),
    "serve": ("serve:serve_command", "Classify on a page in the browser."),
    "report": ("compare:report_command", "Print a finished comparison, with a new report."),
    "data": ("data:data", "Prepare datasets and look at them."),
}
"""For each command the module and the name of its function, and its line in the help."""

UNDER_TORCHRUN = {"RANK", "WORLD_SIZE"}


class LazyGroup(click.Group):
    """The commands of `COMMANDS`. A command's module is imported when the command is run: torch
    alone takes more than a second.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. What click quotes in an error may be the name of a file."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = escaped(error.message)  # type: ignore[misc]
            raise
        except SystemExit as end:  # of the user's code, or of a signal; click raises others
            if isinstance(end.code, int) and end.code > SIGNAL_STATUS:
                raise
            place = traceback.extract_tb(end.__traceback__)[-1]
            where = f"{place.filename}, line {place.lineno},"
            raise ConfigError(f"{where} called sys.exit; raise an error there instead") from end

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is no such command."""
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
    size = os.environ["WORLD_SIZE"] if os.environ.keys() >= UNDER_TORCHRUN else "1"
    if size != "1" and context.invoked_subcommand != "train":
        raise ConfigError(
            f"torchrun has started {size} processes of `gradshare {context.invoked_subcommand}`, "
            "which runs in one; use torchrun with `gradshare train` only"
        )


class _Output:
    """Standard output whose errors are reported at the end: a full disk must not end a training."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        stream.reconfigure(errors="replace")  # such as "ĝ" in cp1252
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self.error = error
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def program() -> None:
    """Run the program, and report errors of its output at the end.

    Processes that train need the allocator's settings when they start: those that `compare` starts
    inherit them, and `train` starts itself again.
    """
    if sys.stdout is None:  # closed by `>&-`; the next open file would be written to as output
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    output: Any = _Output(sys.stdout)
    try:
        if {"train", "compare"} & {*sys.argv[1:2]} and not {"-h", "--help"} & {*sys.argv}:
            from gradshare.training.machine import join_freed_memory  # noqa: PLC0415

            join_freed_memory(start_again=sys.argv[1] == "train")
        sys.stdout = output
        main()
    except SystemExit as end:
        output.flush()
        if output.error is None or end.code:
            raise
        if isinstance(output.error, BrokenPipeError):
            sys.exit(SIGNAL_STATUS + 13)  # as if SIGPIPE had ended it
        click.echo(f"error: the output cannot be written: {output.error.strerror}", err=True)
        sys.exit(1)


def main() -> None:
    """Run the program. An error that the user can correct is one message and an exit status."""
    try:
        cli(prog_name="gradshare")
    except GradshareError as error:
        stopped = getattr(error, "signal", None)  # of a RunStoppedError
        if _speaks(error):
            click.echo(f"{'' if stopped else 'error: '}{error}", err=True)
        sys.exit(SIGNAL_STATUS + stopped if stopped else 1)
    except Exception as error:
        if is_out_of_memory(error):
            cause = str(error).partition("\n")[0] or type(error).__name__
            words = f"memory ran out ({cause}); free some, or allow the program more"
        elif isinstance(error, OSError) and error.filename is not None:
            # A closed folder, or a name that is too long, wherever it is met.
            words = (
                f"{error.filename} cannot be used: {error.strerror}; give yourself permission to "
                "it and to the folders that it is in, or name another"
            )
        else:
            raise
        click.echo(f"error: {escaped(words)}", err=True)
        sys.exit(1)


def _speaks(error: GradshareError) -> bool:
    """Whether this process prints an error: under torchrun, one process of each machine prints an
    error that all have.
    """
    if not os.environ.keys() >= UNDER_TORCHRUN:
        return True
    from gradshare.training.distributed import OtherRankError  # noqa: PLC0415
    from gradshare.training.interruption import RunStoppedError  # noqa: PLC0415

    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    return first_here or not isinstance(error, OtherRankError | RunStoppedError)
