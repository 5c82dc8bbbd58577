"""The errors that gradshare shows to a user.

Each message names the cause, the value that caused it, and the remedy. The command line prints
the message alone; a traceback that reaches a user is a defect.
"""

import re
from numbers import Integral
from typing import get_args

SIGNAL_STATUS = 128
"""A program that a signal ends has this plus the signal's number as its exit status, as a shell
has it.
"""


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


class GradshareError(Exception):
    """Base of every error that a user can mend.

    Control characters of a file's name or content are escaped in the message, so that it cannot
    change the terminal.
    """

    def __str__(self) -> str:
        return _CONTROL.sub(lambda match: repr(match[0])[1:-1], super().__str__())


class DataError(GradshareError):
    """Images, archives, stores or splits that cannot be used as they are."""


class ConfigError(GradshareError):
    """A setting with a value that cannot be used, or a setting that does not exist."""


class RunError(GradshareError):
    """A run's folder, checkpoint or results file that cannot be used as it is."""


def require_choice(name: str, value: str, choices: object) -> None:
    """Refuse a value that is none of a setting's.

    A misspelt one would otherwise be taken for whichever choice nobody asks for by name.

    Args:
        name: the setting's.
        value: what it was given.
        choices: a `typing.Literal`.

    Raises:
        ConfigError: it is none of them.
    """
    known = get_args(choices)
    if value not in known:
        raise ConfigError(f"{name} {value!r} is unknown; use {' or '.join(map(repr, known))}")


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither true nor false: a text, "first" or "False", would count as true.

    Args:
        name: of the argument.
        value: what it was given.

    Raises:
        ConfigError: it is neither.
    """
    if value not in (True, False):
        raise ConfigError(f"{name} is {value!r}; give True or False")


def require_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number, or too small a one.

    Args:
        name: of the setting or argument.
        value: what it was given.
        least: the smallest that is taken.

    Raises:
        ConfigError: it is none, or smaller.
    """
    if not isinstance(value, Integral) or int(value) < least:
        raise ConfigError(f"{name} is {value!r}; give a whole number, at least {least}")
