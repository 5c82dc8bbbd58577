"""The rows of the result: what was measured, what it must reach, and whether it does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from gradshare.training.files import null_where_not_finite, write_atomically

WIDTH = 110


@dataclass(frozen=True)
class Row:
    """One of them.

    Attributes:
        what: in words.
        measured: the figure.
        target: what it is held to.
        unit: of both: "×", "%", "MB" or "" for a bare number.
        direction: whether the figure must be at least or at most the target.
        depends_on_equality: void if contenders do not agree, since then they do different work.
        details: the figures behind it.
    """

    what: str
    measured: float
    target: float
    unit: str
    direction: Literal["≥", "≤"]
    details: Mapping[str, Any]
    depends_on_equality: bool = True

    @property
    def reached(self) -> bool:
        """Whether the figure is on the right side of the target; NaN is not."""
        if self.direction == "≥":
            return self.measured >= self.target
        return self.measured <= self.target


def verdicts(rows: Sequence[Row], context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows as JSON has them.

    Args:
        rows: in order.
        context: machine, versions, date, settings: stands in every row, so that one copied
            elsewhere still says where it comes from.
    """
    equal = all(row.reached for row in rows if not row.depends_on_equality)
    return [
        {
            "what": row.what,
            "measured": row.measured,
            "target": f"{row.direction} {_shown(row.target, row.unit)}",
            "met": row.reached and (equal or not row.depends_on_equality),
            "void": row.depends_on_equality and not equal,
            "unit": row.unit,
            "details": row.details,
            "context": context,
        }
        for row in rows
    ]


def write(path: Path, verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Write a list of rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(null_where_not_finite(verdicts), indent=1, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def print_table(verdicts: Sequence[Mapping[str, Any]]) -> None:
    """All rows, for people."""
    table = Table(title="gradshare beside its peers", title_justify="left")
    table.add_column("what")
    for column in ("measured", "target", "met"):
        table.add_column(column, justify="right", no_wrap=True)
    for verdict in verdicts:
        met = "void" if verdict["void"] else "yes" if verdict["met"] else "no"
        measured = _shown(verdict["measured"], verdict["unit"])
        table.add_row(verdict["what"], measured, verdict["target"], met)
    _console().print(table)


def print_figures(title: str, figures: Mapping[str, str]) -> None:
    """The figures behind some rows, for people."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, figure in figures.items():
        table.add_row(name, figure)
    _console().print(table)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _shown(value: float, unit: str) -> str:
    if unit:
        return f"{value:.3g} {unit}"
    return f"{value:.1e}"
