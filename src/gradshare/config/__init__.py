"""From names and options to a run: the configuration, and what is made of it.

`RunConfig` needs no torch, so that the program shows its help at once. What does is imported when
it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradshare.config.settings import ORIGINAL, RATE_CONTROL, SHARING, RunConfig

if TYPE_CHECKING:
    from gradshare.config.parts import Parts, build
    from gradshare.config.runs import open_run, stored, train

__all__ = [
    "ORIGINAL",
    "RATE_CONTROL",
    "SHARING",
    "Parts",
    "RunConfig",
    "build",
    "open_run",
    "stored",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "parts" if name in ("Parts", "build") else "runs"
    return getattr(import_module(f"{__name__}.{home}"), name)
