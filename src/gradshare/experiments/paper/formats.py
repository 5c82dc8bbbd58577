"""Rows as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Final

from gradshare.experiments.table import Row

LATEX: Final = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "’": "'",
    "“": "``",
    "”": "''",
    "σ": r"$\sigma$",
    "λ": r"$\lambda$",
    "ĝ": r"$\hat{g}$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "√": r"$\surd$",
    "·": r"$\cdot$",
}

LATEX_HEAD: Final = "% To be read into a document that has \\usepackage{booktabs}."


def markdown(rows: Sequence[Row]) -> str:
    """A table of GitHub's Markdown, ending in a newline."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def latex(rows: Sequence[Row], caption: str) -> str:
    """A `table` of LaTeX with the rules of booktabs, ending in a newline."""
    columns = list(rows[0])
    body = [[row[name] for name in columns] for row in rows]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_text(caption)}}}",
        rf"  \begin{{tabular}}{{{'l' * len(columns)}}}",
        r"    \toprule",
        _latex_line(columns),
        r"    \midrule",
        *(_latex_line(line) for line in body),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """Plain text as LaTeX sets it; no line ends between a number and its "%"."""
    return "".join(LATEX.get(character, character) for character in text).replace(r" \%", r"\,\%")


def comma_separated(rows: Sequence[Mapping[str, object]]) -> str:
    """CSV with a header; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _latex_line(cells: Sequence[str]) -> str:
    return f"    {' & '.join(map(latex_text, cells))} \\\\"
