"""Command-line options that are made from the fields of a model, such as `RunConfig`."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import click
from pydantic.fields import FieldInfo

from gradshare.config.fields import Declared, Size, home_path, option_name
from gradshare.config.presets import paper_settings
from gradshare.config.settings import RunConfig, heading_of
from gradshare.config.text import key_and_value, read_yaml

Command = Callable[..., None]

DATA_ROOT_VARIABLE = "GRADSHARE_DATA_ROOT"


class UserPath(click.Path):
    """A path that may begin with ~, which no shell replaces in `--out=~/runs`."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Replace ~ by the user's home. An empty path would be the current folder."""
        if value == "":
            self.fail("it is empty; name a file or folder", param, ctx)
        try:
            return super().convert(home_path(value), param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class GroupedCommand(click.Command):
    """A command whose `--help` lists the settings of a run under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                name = parameter.name or ""
                title = heading_of(name) if name in RunConfig.model_fields else "Command"
                sections.setdefault(title, []).append(row)
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


config_option = click.option(
    "--config",
    "from_file",
    type=UserPath(dir_okay=False),
    callback=lambda _, __, path: read_yaml(path) if path else {},
    help="Read settings from a YAML file; options override it.",
)
preset_option = click.option(
    "--preset",
    type=click.Choice(["paper"]),
    help="Start from the paper's settings for --dataset and --task-batch.",
)


def declared_options(
    model: type[Declared],
    *,
    only: Collection[str] = (),
    leave_out: Collection[str] = (),
    default: str | None = None,
) -> Callable[[Command], Command]:
    """Give a command an option for each field of a model, for `given`.

    Args:
        model: its fields are the options.
        only: these fields; by default all.
        leave_out: all fields but these.
        default: the default in words; by default that of each field.
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(model.model_fields.items()):
            if name not in leave_out and (not only or name in only):
                command = _option(name, field, default or field.default)(command)
        return command

    return decorate


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, of all that `declared_options` has declared."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """Read the KEY=VALUE words of an option."""
    try:
        found = dict(map(key_and_value, values))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if len(found) < len(values):
        raise click.BadParameter(f"{', '.join(values)}: one key has two values; leave one out")
    return found or None


def values_by_setting(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any] | None:
    """Read the SETTING=VALUE,VALUE words of an option as lists."""
    words = (word.partition("=") for word in values)
    listed = (f"{name.replace('-', '_')}{equals}[{each}]" for name, equals, each in words)
    return pairs(context, parameter, tuple(listed))


def read_config(
    from_file: dict[str, Any], preset: str | None, options: dict[str, Any]
) -> RunConfig:
    """The configuration that a command line asks for.

    Options, and the environment's data root, override the YAML file, which overrides the preset,
    which overrides the defaults.
    """
    settings = from_file | given(options)
    if preset == "paper":
        asked = RunConfig(**settings)
        settings = {**paper_settings(asked.dataset, asked.task_batch, asked.method), **settings}
    return RunConfig(**settings)


def _option(name: str, field: FieldInfo, default: Any) -> Callable[[Command], Command]:
    kind: Any = str if field.annotation == Size else field.annotation
    while typing.get_origin(kind) in (typing.Union, UnionType, typing.Annotated):  # of X | None, X
        kind = typing.get_args(kind)[0]
    flag, origin = option_name(name), typing.get_origin(kind)
    more: dict[str, Any] = {"type": {int: int, float: float, Path: UserPath()}.get(kind, str)}
    if kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
        default = flag.split("/")[0 if default else 1]
        more = {}
    elif origin is typing.Literal:
        more = {"type": click.Choice(typing.get_args(kind))}
    elif origin is dict:
        lists = typing.get_origin(typing.get_args(kind)[1]) is list
        metavar = "SETTING=VALUE,VALUE" if lists else "KEY=VALUE"
        callback = values_by_setting if lists else pairs
        more = {"callback": callback, "metavar": metavar, "multiple": True}
    elif origin is tuple:
        more = {"multiple": True}
    elif name == "data_root":
        more |= {"envvar": DATA_ROOT_VARIABLE, "show_envvar": True}
    if field.is_required():
        more["required"] = True
    elif default not in (None, (), {}):
        more["help"] = f"{field.description}  [default: {default}]"
    return click.option(flag, name, default=None, **{"help": field.description, **more})
