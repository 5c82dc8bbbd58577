"""The errors that gradshare shows to a user.

Each message names the cause, the value that caused it, and the remedy. The command line prints
the message alone; a traceback that reaches a user is a defect.
"""

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any, get_args

SIGNAL_STATUS = 128
"""A program that a signal ends exits with this plus the signal's number, as in a shell."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_LONG_WORD = re.compile(r"(\S{400})\S{100,}")


def escaped(text: object) -> str:
    """A text whose control characters are escaped, so that it cannot change the terminal."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], str(text))


class GradshareError(Exception):
    """Base of every error that a user can correct. Its message is `escaped`, and words of thousands
    of letters are cut.
    """

    def __str__(self) -> str:
        return _LONG_WORD.sub(r"\1…", escaped(super().__str__()))


class DataError(GradshareError):
    """Images, archives, stores or splits that cannot be used as they are."""


class ConfigError(GradshareError):
    """A setting with a value that cannot be used, or a setting that does not exist."""


class RunError(GradshareError):
    """A run's folder, checkpoint or results file that cannot be used as it is."""


_OF_MEMORY = (
    "out of memory",  # CUDA
    "not enough memory",
    "can't allocate memory",  # torch
    "Cannot allocate memory",  # the system
    "could not create a primitive",  # oneDNN
    "can't start new thread",
    "failed to map segment",  # of a shared library
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | ImportError)
        and any(words in str(error) for words in _OF_MEMORY)
    )


def reason(error: BaseException) -> str:
    """What an error says, without the path that an error of the system quotes."""
    return getattr(error, "strerror", None) or str(error)


def require_choice(name: str, value: object, choices: object) -> None:
    """Raise ConfigError if `value` is not one of `choices`.

    Without this a misspelled choice would act as the default.

    Args:
        name: of the argument.
        value: of the argument.
        choices: a `typing.Literal`.
    """
    known = get_args(choices)
    if value not in known:
        raise ConfigError(f"{name} {value!r} is unknown; use {' or '.join(map(repr, known))}")


def require_count(name: str, value: object, least: int = 1) -> None:
    """Raise ConfigError unless `value` is a whole number of at least `least`.

    Args:
        name: of the argument.
        value: of the argument.
        least: the smallest value that is allowed.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ConfigError(f"{name} is {value!r}; give a whole number, at least {least}")


def some(items: Sequence[Any], most: int = 20) -> str:
    """The first items of a list for a message, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
