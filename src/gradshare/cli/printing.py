"""How commands print a line of text."""

from __future__ import annotations

from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Print a line as it is, however long: brackets in a path are no markup, and a line that a
    script reads is not broken at the width of a terminal.
    """
    console.print(line, soft_wrap=True, highlight=False, markup=False)
