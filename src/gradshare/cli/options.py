"""Command-line options that are made from the fields of a model, such as `RunConfig`."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self

import click
from pydantic.fields import FieldInfo

from gradshare.config.fields import LARGEST, Declared, HomePath, Size, home_path, option_name
from gradshare.config.settings import RunConfig, heading_of, paper_settings
from gradshare.config.text import key_and_value, read_yaml
from gradshare.errors import ConfigError

Command = Callable[..., None]

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""What pydantic's names of bounds mean."""

DATA_ROOT_VARIABLE = "GRADSHARE_DATA_ROOT"


class UserPath(click.Path):
    """A path that may begin with ~, which no shell replaces in `--out=~/runs`."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Replace ~ by the user's home."""
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


class Launch(Declared):
    """What `gradshare train` and `compare` take beside the settings of a run."""

    out: HomePath | None = None
    """New folder for everything that comes out."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue the run in --out from its last checkpoint, exactly as if it had not been
    interrupted; start it if there is none; do nothing if it is complete. A finished run is extended
    by more --epochs."""
    config: HomePath | None = None
    """Read settings from a YAML file; options override it."""
    preset: Literal["paper"] | None = None
    """Start from the paper's settings for --dataset and --task-batch."""

    @property
    def folder(self) -> Path:
        """`out`, which the command line or the file must name."""
        if self.out is None:
            raise ConfigError("--out is missing; name a new folder for everything that comes out")
        return self.out

    def with_file(self) -> tuple[Self, dict[str, Any]]:
        """These options with those that only the file has, and the settings in the file."""
        settings = {} if self.config is None else read_yaml(self.config)
        own = settings.keys() & (type(self).model_fields.keys() - {"config"})
        options = {name: settings.pop(name) for name in own}
        return type(self)(**{**options, **self.model_dump(exclude_unset=True)}), settings


def options_of(model: type[Declared]) -> Callable[[Command], Command]:
    """Give a command an option for each field of a model. What was asked for is its argument
    `asked`, a checked instance of the model.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(**arguments: Any) -> None:
            own = {name: arguments.pop(name) for name in model.model_fields}
            command(asked=model(**given(own)), **arguments)

        return _with_options(called, model.model_fields)

    return decorate


def run_options(
    names: Collection[str] = RunConfig.model_fields, default: str | None = None
) -> Callable[[Command], Command]:
    """Give a command an option for each of some settings of a run, for `read_config`.

    Args:
        names: of the settings.
        default: the default in words; by default that of each setting.
    """
    fields = {name: field for name, field in RunConfig.model_fields.items() if name in names}
    return lambda command: _with_options(command, fields, default)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given."""
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
    listed = (f"{n.replace('-', '_')}=[{each}]" if equals else n for n, equals, each in words)
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


def _with_options(
    command: Command, fields: Mapping[str, FieldInfo], default: str | None = None
) -> Command:
    for name, field in reversed([*fields.items()]):
        command = _option(name, field, default or field.default)(command)
    return command


def _option(name: str, field: FieldInfo, default: Any) -> Callable[[Command], Command]:
    kind: Any = str if field.annotation == Size else field.annotation
    bounds = [*field.metadata]
    while typing.get_origin(kind) in (typing.Union, UnionType, typing.Annotated):  # of X | None, X
        kind, *others = typing.get_args(kind)
        bounds += [bound for other in others for bound in getattr(other, "metadata", ())]
    flag, origin = option_name(name), typing.get_origin(kind)
    more: dict[str, Any] = {"type": {int: int, float: float, Path: UserPath()}.get(kind, str)}
    if kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
        default = flag.split("/")[0 if default else 1]
        more = {}
    elif origin is Literal:
        more = {"type": click.Choice(typing.get_args(kind))}
    elif origin is dict:
        lists = typing.get_origin(typing.get_args(kind)[1]) is list
        metavar = "SETTING=VALUE,VALUE" if lists else "KEY=VALUE"
        callback = values_by_setting if lists else pairs
        more = {"callback": callback, "metavar": metavar, "multiple": True}
    elif origin is tuple:
        is_path = typing.get_args(kind)[0] == HomePath
        more = {"multiple": True, "type": UserPath() if is_path else str}
    elif name == "data_root":
        more = {"envvar": DATA_ROOT_VARIABLE, "show_envvar": True}
        more["type"] = UserPath(file_okay=False)
    more |= {"required": True} if field.is_required() else {"default": None}
    has_default = not field.is_required() and default not in (None, (), {})
    shown = f"  [default: {default}]" if has_default else ""
    if limits := _limits(bounds):
        shown += f"  [{limits}]"
    return click.option(flag, name, help=f"{field.description}{shown}", **more)


def _limits(bounds: Iterable[Any]) -> str:
    """The bounds of a number in words, such as "at least 1, at most 65535"."""
    return ", ".join(
        f"{words} {limit}"
        for bound in bounds
        for name, words in _BOUNDS.items()
        if (limit := getattr(bound, name, LARGEST)) != LARGEST
    )
