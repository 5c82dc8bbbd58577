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

from gradshare.config import RunConfig, at_home, load_yaml, option_name
from gradshare.errors import ConfigError
from gradshare.experiments.paper.plan import paper_settings
from gradshare.training.folder import MACHINE_FIELDS

Command = Callable[..., None]

DATA_ROOT_VARIABLE = "GRADSHARE_DATA_ROOT"


class UserPath(click.Path):
    """A path that may begin with ~; see `gradshare.config.at_home`."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """The path, of this user's home where it begins so."""
        try:
            path = at_home(Path(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(path, param, ctx)


class GroupedCommand(click.Command):
    """A command whose `--help` lists the configuration's fields under the names of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                field = RunConfig.model_fields.get(parameter.name or "")
                sections.setdefault(_group(field) if field else "Command", []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def run_options(leave_out: Iterable[str] = ()) -> Callable[[Command], Command]:
    """Give a command `--config`, `--preset` and an option for every field of `RunConfig`.

    The command is called with the given ones in `settings`; `read_config` makes a configuration
    of them.

    Args:
        leave_out: fields that the command decides by itself.
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


def machine_options(command: Command) -> Command:
    """Give a command the options that say where and how fast a run goes, but not what it is."""
    for name in reversed(MACHINE_FIELDS):
        command = _option(name, RunConfig.model_fields[name])(command)
    return command


def default_data_root(settings: dict[str, Any]) -> None:
    """Take the data root from the environment where the settings have none."""
    if DATA_ROOT_VARIABLE in os.environ:
        settings.setdefault("data_root", os.environ[DATA_ROOT_VARIABLE])


def read_config(config_file: Path | None, preset: str | None, options: dict[str, Any]) -> RunConfig:
    """The configuration that a command line asks for.

    Options override the YAML file, which overrides the preset, which overrides the defaults.

    Raises:
        ConfigError: a setting is unknown or out of bounds.
    """
    settings = load_yaml(config_file) if config_file else {}
    settings |= {name: value for name, value in options.items() if value is not None}
    default_data_root(settings)
    if preset == "paper":
        if "dataset" not in settings:
            raise ConfigError("--preset paper needs --dataset cub or mini-imagenet")
        given = RunConfig(**settings)
        settings = {**paper_settings(given.dataset, given.task_batch, given.method), **settings}
    return RunConfig(**settings)


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    choices = _choices(field.annotation)
    flag = option_name(name)
    kind: Any = click.Choice(choices) if choices else _TYPES.get(_plain(field.annotation), str)
    if field.annotation is bool:
        flag, kind = f"{flag}/--no-{name.replace('_', '-')}", bool
    default = field.default
    if field.annotation is bool:
        default = flag.split("/")[0 if default else 1]
    shown = "" if default is None else f"  [default: {default}]"
    return click.option(
        flag,
        name,
        type=kind,
        default=None,
        help=f"{field.description}{shown}",
    )


_TYPES: dict[Any, Any] = {int: int, float: float, Path: UserPath()}


def _plain(annotation: Any) -> Any:
    """The type behind `X | None`."""
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation


def _choices(annotation: Any) -> list[str]:
    plain = _plain(annotation)
    return list(typing.get_args(plain)) if typing.get_origin(plain) is typing.Literal else []


def _group(field: FieldInfo) -> str:
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["group"])
