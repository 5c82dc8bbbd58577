"""Settings as text: YAML files, spans of a run, options of the form key=value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gradshare.errors import ConfigError

MAX_CONFIG_BYTES = 64 << 10

# Control characters, and the halves of pairs that UTF-8 has no form for.
UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which make a few lines grow beyond all memory or never end."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name); write the value out")
        return super().compose_node(parent, index)


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def numbers(value: Any) -> Any:
    """The value of an option with each text like "1e-3" as a number: YAML 1.1 takes it for text."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """The lines of a YAML file of settings.

    Raises:
        ConfigError: it cannot be read, or is not such a file.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path} has more than {MAX_CONFIG_BYTES:,} bytes and is no configuration; give a "
            "file of lines like `ways: 5`"
        )
    try:
        settings = yaml.load(text, _Loader)
    except Exception as error:  # PyYAML's constructors raise nearly anything on odd values
        raise ConfigError(f"{path} is not valid YAML: {error!s:.400}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(
            f"{path} must hold lines like `ways: 5`; it holds a {type(settings).__name__}"
        )
    return settings


def key_and_value(text: str) -> tuple[str, Any]:
    """An option "key=value". The value is YAML: a number, true, null, [1, 2], or text.

    Raises:
        ValueError: it is not of this form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(f"{text!r} is not of the form key=value")
    try:
        return key, yaml.load(value, _Loader)
    except Exception:  # such as "%" and "*.npy"; see `read_yaml`
        return key, value


def span(value: object) -> str:
    """A stretch of a run from its start: a number of iterations, or a percentage of them.

    Raises:
        ValueError: it is neither.
    """
    text = str(value).strip()
    number = text.removesuffix("%")
    try:
        valid = 0 <= float(number) <= 100 if text.endswith("%") else int(number) >= 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("give a number of iterations like 7500, or a share of the run like 15%")
    return text


def at_home(path: Path) -> Path:
    """A path that may begin with ~: in a file, in Python and after `--out=` no shell replaces it.

    Raises:
        ValueError: it is in the home of an unknown user.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{str(path)!r} is in the home of a user that is not known here"
        ) from error
