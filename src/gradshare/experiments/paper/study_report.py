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
from gradshare.experiments.paper.study_tables import tables_of
from gradshare.experiments.results import Results
from gradshare.training.files import make_folder, write_atomically

LEGEND: Final = (
    "± is a 95 % confidence interval: over seeds (Student’s t) and test tasks together where there "
    "are several seeds, else over the test tasks (1.96·s/√n). With three seeds it is itself "
    "uncertain, and of twenty intervals one misses by chance. A run that diverged before it was "
    "validated counts as guessing. Test accuracy is that of the best checkpoints by validation. "
    "Sooner: (original − arm) / arm, the geometric mean over seeds; a dash where none got there, ≤ "
    "where one was there at its first validation. Seconds are iterations times the least that an "
    "epoch of the arm took: the runs went side by side on a machine that did other things too. "
    "The paper’s speed-up stands only where both curves have flattened; elsewhere the epoch of the "
    "best validation accuracy is that of the end of the run. These are runs at CPU scale: none of "
    "these figures belongs in a column of the paper’s Table 1."
)


def studies_of(
    plan: Plan, results: Mapping[Cell, Results]
) -> Iterator[tuple[str, Study, list[Condition]]]:
    """The studies with a finished cell of their own, and what was compared in them."""
    for name, study in plan.studies.items():
        if any(cell.study == name for cell in results):
            yield name, study, conditions(plan, results, name)


def tables_as_markdown(plan: Plan, results: Mapping[Cell, Results]) -> str:
    """Every table of every study, on one page."""
    page = f"# Results at CPU scale\n\n{LEGEND}\n"
    for name, study, found in studies_of(plan, results):
        page += f"\n## {study.heading}\n\nStudy `{name}`.{_caveats(plan, name, results)}\n"
        for caption, rows in tables_of(study, found):
            page += f"\n{caption}:\n\n{markdown(rows)}"
    return page


def write_study_tables(plan: Plan, results: Mapping[Cell, Results], out: Path) -> list[Path]:
    """Write `tables.md`, `tables.tex`, and `cells.csv` with the numbers of every run.

    Returns:
        What was written.

    Raises:
        RunError: it cannot be written.
    """
    tex = "".join(
        latex(rows, f"{study.heading}. {caption}.{_caveats(plan, name, results)}") + "\n"
        for name, study, found in studies_of(plan, results)
        for caption, rows in tables_of(study, found)
    )
    pages = {
        out / "tables.md": tables_as_markdown(plan, results),
        out / "tables.tex": tex,
        out / "cells.csv": comma_separated(
            [_numbers(cell, found) for cell, found in results.items()]
        ),
    }
    make_folder(out)
    for path, text in pages.items():
        write_atomically(path, text.encode())
    return list(pages)


def draw_studies(plan: Plan, results: Mapping[Cell, Results]) -> list[Drawing]:
    """Every figure of every study."""
    return [
        drawing
        for name, study, found in studies_of(plan, results)
        for drawing in draw_study(
            name, study, found, {cell: one for cell, one in results.items() if cell.study == name}
        )
    ]


def _caveats(plan: Plan, name: str, results: Mapping[Cell, Results]) -> str:
    """What has to be said of a study, as further sentences."""
    note = plan.studies[name].note
    text = f" {note[0].upper()}{note[1:]}." if note else ""
    done = sum(cell.study == name for cell in results)
    whole = sum(cell.study == name for cell in plan.cells())
    return text if done == whole else f"{text} So far {done} of {whole} runs are finished."


def _numbers(cell: Cell, found: Results) -> dict[str, object]:
    """One run as a line of numbers: accuracies are fractions."""
    config, (run,) = cell.config, found.arms
    return {
        "cell": cell.name,
        "dataset": config.dataset,
        "method": config.method,
        "arm": config.arm,
        "seed": config.seed,
        "shots": config.shots,
        "task_batch": config.task_batch,
        "inner_rate": config.inner_lr * config.inner_lr_scale,
        "iterations": run.epochs * config.iterations_per_epoch,
        "outcome": run.outcome,
        "best_validation": run.best.accuracy if run.best else None,
        "best_epoch": run.best_epoch,
        "last_validation": run.validation[-1].accuracy if run.validation else None,
        "test_accuracy": run.test.accuracy if run.test else None,
        "test_ci95": run.test.ci95 if run.test else None,
        "test_tasks": run.test.tasks if run.test else None,
        "ensemble": run.test.ensemble if run.test else None,
        "seconds": run.seconds,
    }
