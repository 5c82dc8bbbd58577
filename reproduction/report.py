"""The results at CPU scale as files: tables, and the numbers of each run as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence

from reproduction import wording
from reproduction.conditions import Condition, Results, conditions
from reproduction.contrast import contrast_rows, contrasts
from reproduction.plan import PAPERS_IMAGES, Cell, Plan, Study
from reproduction.records import Run
from reproduction.tables import markdown, tables_of


def studies_of(plan: Plan, results: Results) -> Iterator[tuple[str, Study, list[Condition]]]:
    """Each study with a finished cell that it does not borrow: its name, the study, its conditions.

    Its note says which part of a dataset its runs used, unless they used all of it.
    """
    for name, study in plan.studies.items():
        shown = {cell: run for cell, run in results.items() if cell.study == name}
        if not all(cell.borrowed for cell in shown):
            note = "; ".join(filter(None, (study.note, *_parts_of_datasets(shown))))
            noted = study.model_copy(update={"note": note})
            yield name, noted, conditions(plan, results, name)


def study_tables(plan: Plan, cells: Sequence[Cell], results: Results) -> str:
    """The tables of all studies as Markdown.

    Args:
        plan: of the studies.
        cells: the cells of the plan that were asked for, finished or not.
        results: the finished ones, with those that studies borrow.
    """
    own = {cell: run for cell, run in results.items() if not cell.borrowed}
    planned, finished = (Counter(cell.study for cell in of) for of in (cells, own))
    page = f"# Results at CPU scale\n\n{plan.legend}\n"
    if both := contrasts(plan, results):
        rows = markdown(contrast_rows(both))
        page += f"\n## What sharing adds to its control\n\n{plan.contrast}:\n\n{rows}"
    for name, study, found in studies_of(plan, results):
        caveats = f" {study.note[0].upper()}{study.note[1:]}." if study.note else ""
        if finished[name] < planned[name]:
            caveats += f" So far {finished[name]} of {planned[name]} runs are finished."
        page += f"\n## {study.heading}\n\nStudy `{name}`.{caveats}\n"
        for caption, table in tables_of(study, found):
            page += f"\n{caption}:\n\n{markdown(table)}"
    return page


def cells_csv(results: Results) -> str:
    """One line of numbers for each run, as CSV; accuracies are fractions."""
    rows = [_numbers(cell, run) for cell, run in results.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parts_of_datasets(results: Results) -> list[str]:
    """Such as "30,000 of the 60,000 images of mini-ImageNet"."""
    used = {(cell.config.dataset, run.environment.get("images")) for cell, run in results.items()}
    return sorted(
        f"{images:,} of the {whole:,} images of {wording.DATASETS[dataset]}"
        for dataset, images in used
        if images and (whole := PAPERS_IMAGES.get(dataset)) and images != whole
    )


def _numbers(cell: Cell, run: Run) -> dict[str, object]:
    config, best, test = cell.config, run.best, run.tested
    return {
        "cell": cell.name,
        "dataset": config.dataset,
        "method": config.method,
        "arm": config.arm,
        "seed": config.seed,
        "shots": config.shots,
        "task_batch": config.task_batch,
        "inner_rate": config.inner_rate,
        "iterations": run.epochs * config.iterations_per_epoch,
        "outcome": run.outcome,
        "best_validation": best.mean if best else None,
        "best_epoch": run.best_epoch,
        "last_validation": run.validation[-1] if run.validation else None,
        "test_accuracy": test.mean if test else None,
        "test_ci95": test.ci95 if test else None,
        "test_tasks": test.n if test else None,
        "ensemble": run.members if test else None,
        "seconds": run.seconds,
    }
