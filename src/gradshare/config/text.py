"""Settings as text: YAML files, and options of the form key=value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gradshare.errors import ConfigError, reason


class _Loader(yaml.SafeLoader):
    """YAML whose plain numbers, booleans and nulls are those of YAML 1.2.

    By YAML 1.1, which PyYAML reads, 010 is 8, 1:30 is 90, `no` is False and 1e-3 is a text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different; PyYAML would take the last of equal ones."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"it has the key {key!r} twice")
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", "null|~|", ["n", "~", ""]),
    ("bool", "true|false", ["t", "f"]),
    ("int", "[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
    ("float", r"[-+]?\.inf|\.nan", list("-+.")),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raise ConfigError if it has none."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {reason(error)}") from error
    except Exception as error:  # PyYAML's constructors raise nearly anything on odd values
        raise ConfigError(f"{path} is not valid YAML: {error!s:.400}") from error
    if not isinstance(settings or {}, dict):
        raise ConfigError(
            f"{path} must hold lines like `ways: 5`; it holds a {type(settings).__name__}"
        )
    if odd := [key for key in settings or {} if not isinstance(key, str)]:
        raise ConfigError(f"{path} has the key {odd[0]!r}; write the name of a setting there")
    return settings or {}


def key_and_value(text: str) -> tuple[str, Any]:
    """An option "key=value", or ValueError. The value is YAML: a number, true, [1, 2], or text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(f"{text!r} is not of the form key=value")
    try:
        return key, yaml.load(value, _Loader)
    except Exception:  # such as "%" and "*.npy"; see `read_yaml`
        return key, value
