"""The rows of the result: what was measured, its target, and whether it is met."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from gradshare.training.files import null_where_not_finite, write_atomically
from gradshare.training.machine import environment

WIDTH = 118


@dataclass(frozen=True)
class Row:
    """One of them.

    Attributes:
        what: in words.
        measured: the value.
        direction: whether the value must be at least or at most the target.
        target: its bound; None for a value that is information only.
        details: the values behind it.
        spread: the lowest and the highest value of a round.
        within_spread: the target is met if a round met it.
        void: the contenders do not compute the same, so that the value means nothing.
        note: why there is no value.
    """

    what: str
    measured: float | None
    direction: Literal["≥", "≤"] = "≤"
    target: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    spread: tuple[float, float] | None = None
    within_spread: bool = False
    void: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target. NaN meets none."""
        if self.target is None:
            return None
        if self.void or self.measured is None:
            return False
        value = self.measured
        if self.within_spread and self.spread is not None:
            value = self.spread[1] if self.direction == "≥" else self.spread[0]
        return value >= self.target if self.direction == "≥" else value <= self.target

    def shown(self) -> tuple[str, str, str, str]:
        """The cells of a table."""
        measured = (self.note or "–") if self.measured is None else f"{self.measured:.3g}"
        if self.spread is not None:
            measured += f" ({self.spread[0]:.3g}…{self.spread[1]:.3g})"
        target = "" if self.target is None else f"{self.direction} {self.target:.3g}"
        met = {None: "", True: "yes", False: "void" if self.void else "no"}[self.met]
        return self.what, measured, target, met


def context(threads: int, device: str, peers: Sequence[str]) -> dict[str, Any]:
    """The machine, the versions and the date.

    Args:
        threads: of each contender.
        device: what was measured on.
        peers: installed packages whose versions are recorded.
    """
    return {
        **environment(torch.device(device), "of each contender: see the details"),
        "date": datetime.date.today().isoformat(),
        "threads": threads,
        **{name: version(name) for name in peers},
    }


def write(path: Path, rows: Sequence[Row], described: Mapping[str, Any]) -> None:
    """Write the rows as a list in JSON. Each has its context, so that one copied elsewhere still
    says where it comes from.
    """
    records = [
        {
            "what": row.what,
            "measured": row.measured,
            "target": None if row.target is None else f"{row.direction} {row.target:.3g}",
            "met": row.met,
            "void": row.void,
            "note": row.note,
            "spread": row.spread,
            "details": row.details,
            "context": described,
        }
        for row in rows
    ]
    text = json.dumps(null_where_not_finite(records), indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """Print a table of all rows."""
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for column in ("target", "met"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row.shown())
    console().print(table)


def console() -> Console:
    """A console that is wide enough in a file too."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=WIDTH)
