"""From names and options to a run: the configuration, and what is made of it.

What needs torch is imported when it is first used, so that the program shows its help at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradshare.config.arms import ARM_FIELDS, ORIGINAL, RATE_CONTROL, SHARING, is_control
from gradshare.config.fields import MACHINE_FIELDS, PLUS
from gradshare.config.settings import (
    RunConfig,
    first_difference,
    from_settings,
    heading_of,
    load_yaml,
    option_name,
)
from gradshare.config.text import at_home

if TYPE_CHECKING:
    from gradshare.config.parts import Parts, build
    from gradshare.config.runs import open_run, require_room, stored, train, train_in

__all__ = [
    "ARM_FIELDS",
    "MACHINE_FIELDS",
    "ORIGINAL",
    "PLUS",
    "RATE_CONTROL",
    "SHARING",
    "Parts",
    "RunConfig",
    "at_home",
    "build",
    "first_difference",
    "from_settings",
    "heading_of",
    "is_control",
    "load_yaml",
    "open_run",
    "option_name",
    "require_room",
    "stored",
    "train",
    "train_in",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "parts" if name in ("Parts", "build") else "runs"
    return getattr(import_module(f"{__name__}.{home}"), name)
