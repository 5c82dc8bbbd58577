"""What the finished cells of a plan's studies say, written into files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from gradshare.experiments.drawing import Drawing
from gradshare.experiments.paper.conditions import Condition, conditions
from gradshare.experiments.paper.formats import comma_separated, latex, markdown
from gradshare.experiments.paper.plan import Cell, Plan, Study
from gradshare.experiments.paper.study_figures import draw_study
from gradshare.experiments.paper.study_tables import accuracy_rows, mechanism_rows, pace_rows
from gradshare.experiments.results import Results
from gradshare.experiments.table import Row
from gradshare.training.files import make_folder, write_atomically

TABLES: Final = {
    "accuracy": (
        accuracy_rows,
        "Test accuracy, and differences task by task; in brackets the smallest difference that "
        "would have been seen four times in five",
    ),
    "pace": (
        pace_rows,
        "Iterations to shares of the original’s gain over chance, on smoothed validation curves",
    ),
    "mechanism": (
        mechanism_rows,
        "The inner loop’s over-fitting (support less query accuracy after adaptation, on "
        "validation tasks), and the gates",
    ),
}

LEGEND: Final = (
    "± is a 95 % confidence interval: over seeds (Student’s t) where there are several, else over "
    "the test tasks (1.96·s/√n). Sooner: (original − arm) / arm; a dash where an arm never got "
    "there. The paper’s speed-up stands only where both curves have flattened: where it does not, "
    "its epoch of the best validation accuracy is that of the end of the run. These are runs at "
    "CPU scale: none of these figures belongs in a column of the paper’s Table 1."
)


def studies_of(
    plan: Plan, results: Mapping[Cell, Results]
) -> Iterator[tuple[str, Study, list[Condition]]]:
    """The studies with a finished cell of their own, and what was compared in them."""
    for name, study in plan.studies.items():
        if any(cell.study == name for cell in results):
            yield name, study, conditions(plan, results, name)


def tables_of(found: list[Condition]) -> Iterator[tuple[str, str, list[Row]]]:
    """The name, the caption and the rows of each table of a study."""
    for name, (rows, caption) in TABLES.items():
        yield name, caption, rows(found)


def write_study_tables(plan: Plan, results: Mapping[Cell, Results], out: Path) -> list[Path]:
    """Write `tables.md`, `tables.tex` and `tables/STUDY-TABLE.csv`.

    Returns:
        What was written.

    Raises:
        RunError: it cannot be written.
    """
    pages = {out / "tables.md": f"# Results at CPU scale\n\n{LEGEND}\n", out / "tables.tex": ""}
    for name, study, found in studies_of(plan, results):
        note = f" {study.note[0].upper()}{study.note[1:]}." if study.note else ""
        heading = f"{study.title[0].upper()}{study.title[1:]}"
        cells = sum(cell.study == name for cell in results)
        whole = sum(cell.study == name for cell in plan.cells())
        done = "" if cells == whole else f" So far {cells} of {whole} runs are finished."
        pages[out / "tables.md"] += f"\n## {heading}\n\nStudy `{name}`.{note}{done}\n"
        for table, caption, rows in tables_of(found):
            pages[out / "tables.md"] += f"\n{caption}:\n\n{markdown(rows)}"
            pages[out / "tables.tex"] += latex(rows, f"{heading}. {caption}.{note}{done}") + "\n"
            pages[out / "tables" / f"{name}-{table}.csv"] = comma_separated(rows)
    for path, text in pages.items():
        make_folder(path.parent)
        write_atomically(path, text.encode())
    return list(pages)


def draw_studies(plan: Plan, results: Mapping[Cell, Results]) -> list[Drawing]:
    """Every figure of every study."""
    return [
        drawing
        for name, study, found in studies_of(plan, results)
        for drawing in draw_study(name, study, found)
    ]
