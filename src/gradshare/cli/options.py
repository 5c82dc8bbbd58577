"""The command-line options of a run, made from the fields of `RunConfig`."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from types import UnionType
from typing import Any

import click
from pydantic.fields import FieldInfo

from gradshare.config import RunConfig, at_home, heading_of, load_yaml, option_name
from gradshare.config.presets import paper_settings
from gradshare.config.text import key_and_value
from gradshare.errors import ConfigError

Command = Callable[..., None]

DATA_ROOT_VARIABLE = "GRADSHARE_DATA_ROOT"


class UserPath(click.Path):
    """A path that may begin with ~, which no shell replaces in `--out=~/runs`."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Replace ~ by the user's home."""
        try:
            path = at_home(Path(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(path, param, ctx)


class GroupedCommand(click.Command):
    """A command whose `--help` lists the settings of a run under the names of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                name = parameter.name or ""
                group = heading_of(name) if name in RunConfig.model_fields else "Command"
                sections.setdefault(group, []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def out_option(*, required: bool) -> Callable[[Command], Command]:
    """Give a command `--out`."""
    return click.option(
        "--out",
        type=UserPath(file_okay=False),
        required=required,
        help="New folder for everything that comes out.",
    )


resume_option = click.option(
    "--resume",
    type=click.Choice(["never", "auto"]),
    default="never",
    show_default=True,
    help="auto: continue the run in --out from its last checkpoint, exactly as if it had not been "
    "interrupted; start it if there is none; do nothing if it is complete. A finished run is "
    "extended by more --epochs.",
)


def run_options(leave_out: Iterable[str] = ()) -> Callable[[Command], Command]:
    """Give a command `--config`, `--preset` and an option for each setting of a run, for
    `read_config`.

    Args:
        leave_out: settings that the command chooses by itself.
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(RunConfig.model_fields.items()):
            if name not in leave_out:
                command = _option(name, field)(command)
        command = click.option(
            "--preset",
            type=click.Choice(["paper"]),
            help="Start from the paper's settings for --dataset and --task-batch.",
        )(command)
        return click.option(
            "--config",
            "config_file",
            type=UserPath(dir_okay=False),
            help="Read settings from a YAML file; options override it.",
        )(command)

    return decorate


def default_data_root(settings: dict[str, Any]) -> None:
    """Take the data root from the environment if the settings have none."""
    if DATA_ROOT_VARIABLE in os.environ:
        settings.setdefault("data_root", os.environ[DATA_ROOT_VARIABLE])


def read_config(config_file: Path | None, preset: str | None, options: dict[str, Any]) -> RunConfig:
    """The configuration that a command line asks for.

    Options override the YAML file, which overrides the preset, which overrides the defaults.

    Raises:
        ConfigError: a setting is unknown or out of bounds.
    """
    settings = load_yaml(config_file) if config_file else {}
    settings |= {name: value for name, value in options.items() if value not in (None, ())}
    default_data_root(settings)
    if preset == "paper":
        if "dataset" not in settings:
            raise ConfigError("--preset paper needs --dataset cub or mini-imagenet")
        given = RunConfig(**settings)
        settings = {**paper_settings(given.dataset, given.task_batch, given.method), **settings}
    return RunConfig(**settings)


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    plain, default = _plain(field.annotation), field.default
    flag, kind = option_name(name), _TYPES.get(plain, str)
    more: dict[str, Any] = {}
    if plain is bool:
        flag = f"{flag}/--no-{name.replace('_', '-')}"
        default = flag.split("/")[0 if default else 1]
    elif typing.get_origin(plain) is typing.Literal:
        kind = click.Choice(typing.get_args(plain))
    elif typing.get_origin(plain) is dict:
        more = {"callback": pairs, "metavar": "KEY=VALUE"}
    shown = "" if default in (None, (), {}) else f"  [default: {default}]"
    return click.option(
        flag,
        name,
        type=kind,
        default=None,
        multiple=typing.get_origin(plain) in (dict, tuple),
        help=f"{field.description}{shown}",
        **more,
    )


def pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """Read the values of an option KEY=VALUE that may be repeated; None without any."""
    try:
        return dict(map(key_and_value, values)) or None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_TYPES: dict[Any, Any] = {int: int, float: float, bool: bool, Path: UserPath()}


def _plain(annotation: Any) -> Any:
    """The type behind `X | None`."""
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation
