"""How commands print lines, tables and reports."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradshare.experiments.report import write_report
from gradshare.experiments.results import Results
from gradshare.experiments.seeds import seeds_of
from gradshare.experiments.table import arm_rows, comparison_rows
from gradshare.experiments.verdict import verdict


def print_line(console: Console, line: str) -> None:
    """Print a line as it is, however long: brackets in a path are no markup, and a line that a
    script reads is not broken at the width of a terminal.
    """
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_report(results: Sequence[Results], folder: Path, console: Console) -> None:
    """Print the table and the verdict, write the report, and print where it is."""
    one_seed = len(seeds_of(results)) == 1
    for rows in (arm_rows(results), comparison_rows(results))[0 if one_seed else 1 :]:
        # A row for each quantity: a terminal has few columns and many lines.
        heading = "arm" if "arm" in rows[0] else "seed" if "seed" in rows[0] else "method/tasks"
        quantities = [name for name in rows[0] if name != heading]
        table = Table(heading, *(row[heading] for row in rows))
        for quantity in quantities:
            table.add_row(quantity, *(row[quantity] for row in rows))
        console.print(table)
    words = verdict(results)
    console.print()
    console.print(Text(words.headline, "bold"), soft_wrap=True)
    for sentence in (*words.sentences, *words.caveats):
        print_line(console, sentence)
    print_line(console, f"\nReport: {write_report(results, folder)}")


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join(["gradshare", *sys.argv[1:]])
