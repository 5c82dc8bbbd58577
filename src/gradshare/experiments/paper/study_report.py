"""What the finished cells of a plan's studies say, as pages and drawings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from gradshare.experiments import wording
from gradshare.experiments.drawing import Drawing
from gradshare.experiments.paper.conditions import Condition, conditions
from gradshare.experiments.paper.contrast import (
    CAPTION,
    contrast_rows,
    contrasts,
    draw_contrasts,
)
from gradshare.experiments.paper.formats import (
    LATEX_HEAD,
    comma_separated,
    latex,
    latex_text,
    markdown,
)
from gradshare.experiments.paper.plan import Cell, Plan, Study
from gradshare.experiments.paper.study_figures import draw_study
from gradshare.experiments.paper.study_tables import tables_of
from gradshare.experiments.paper.table1 import PAPERS_IMAGES
from gradshare.experiments.results import Results

LEGEND: Final = (
    "± is a 95 % confidence interval: over seeds (Student’s t) and test tasks together where "
    "there are several seeds, else over the test tasks (1.96·s/√n). With three seeds it is itself "
    "uncertain, and of twenty intervals one misses by chance. A run that diverged before it was "
    "validated counts as guessing. Test accuracy is that of the best checkpoints by validation. "
    "Sooner: (original − arm) / arm of the iterations to the same level, the paper’s formula, so "
    "that 41 % sooner is 29 % fewer iterations and −25 % a third more; the geometric mean over "
    "seeds, in brackets its 95 % interval over seeds (Student’s t on logarithms). Curves are "
    "straight from one validation to the next. ≤ and ≥: at most and at least so much, since one "
    "of both was there at its first validation; such a bound has no interval. “Never”: the arm "
    "did not get there in any seed; “2 of 3 got there”: not in every seed, and then no mean is "
    "taken. A dash: it cannot be told, since the original is missing, or did not train, or has a "
    "gain whose shares are closer together than a validation errs; or, of what is sooner, since "
    "both were there at their first validation, or some seeds give a lower bound and others an "
    "upper one. “2 of 3” in brackets: of so many seeds, which are those in which it can be told. "
    "Seconds are iterations times the least that an epoch of the arm took. The runs went side by "
    "side on a machine that did other things too: there is a figure only where at least three "
    "runs of the arm, and as many of the original in the same conditions and seeds, had the same "
    "work with the same machine, PyTorch and commit, and the two quickest of each came to the "
    "same within 5 %; elsewhere a dash. The paper’s speed-up stands only where both curves have "
    "flattened; elsewhere the epoch of the best validation accuracy is that of the end of the "
    "run. These are runs at CPU scale: none of these figures belongs in a column of the paper’s "
    "Table 1."
)


def studies_of(
    plan: Plan, results: Mapping[Cell, Results]
) -> Iterator[tuple[str, Study, list[Condition]]]:
    """The studies with a finished cell of their own, and what was compared in them.

    To their notes is added what part of a dataset their runs had, where they recorded it.
    """
    for name, study in plan.studies.items():
        standing = {cell: one for cell, one in results.items() if cell.study == name}
        if any(plan.owns(cell) for cell in standing):
            note = "; ".join(filter(None, (study.note, *_parts_of_datasets(standing))))
            noted = study.model_copy(update={"note": note})
            yield name, noted, conditions(plan, results, name)


def _parts_of_datasets(results: Mapping[Cell, Results]) -> list[str]:
    """Such as "30,000 of the 60,000 images of mini-ImageNet"."""
    had = {(cell.config.dataset, one.environment.get("images")) for cell, one in results.items()}
    return sorted(
        f"{images:,} of the {whole:,} images of {wording.dataset(dataset)}"
        for dataset, images in had
        if isinstance(images, int)
        and (whole := PAPERS_IMAGES.get(dataset)) is not None
        and images != whole
    )


def study_pages(
    plan: Plan, cells: Sequence[Cell], results: Mapping[Cell, Results]
) -> dict[str, str]:
    """Every table of every study by the names of files: Markdown, LaTeX, and the numbers of every
    run as CSV.

    Args:
        plan: that the studies are of.
        cells: which of its runs are asked for, finished or not.
        results: what the finished ones came to, borrowed ones too.
    """
    own = {cell: one for cell, one in results.items() if plan.owns(cell)}
    planned, finished = (Counter(cell.study for cell in of) for of in (cells, own))
    page, tex = f"# Results at CPU scale\n\n{LEGEND}\n", f"{LATEX_HEAD}\n"
    tex += f"\\noindent\n{latex_text(LEGEND)}\n\n"
    if both := contrasts(plan, results):
        rows = contrast_rows(both)
        page += f"\n## What sharing adds to its control\n\n{CAPTION}:\n\n{markdown(rows)}"
        tex += latex(rows, f"{CAPTION}.") + "\n"
    for name, study, found in studies_of(plan, results):
        caveats = f" {study.note[0].upper()}{study.note[1:]}." if study.note else ""
        if finished[name] < planned[name]:
            caveats += f" So far {finished[name]} of {planned[name]} runs are finished."
        page += f"\n## {study.heading}\n\nStudy `{name}`.{caveats}\n"
        for caption, rows in tables_of(study, found):
            page += f"\n{caption}:\n\n{markdown(rows)}"
            tex += latex(rows, f"{study.heading}. {caption}.{caveats}") + "\n"
    numbers = [_numbers(cell, found) for cell, found in own.items()]
    return {"tables.md": page, "tables.tex": tex, "cells.csv": comma_separated(numbers)}


def draw_studies(plan: Plan, results: Mapping[Cell, Results]) -> list[Drawing]:
    """Every figure of every study, after that of what sharing adds to its control.

    Args:
        plan: that the studies are of.
        results: what finished cells came to, borrowed ones too.
    """
    both = contrasts(plan, results)
    first = [draw_contrasts(both)] if both else []
    return first + [
        drawing
        for name, study, found in studies_of(plan, results)
        for drawing in draw_study(
            name, study, found, {cell: one for cell, one in results.items() if cell.study == name}
        )
    ]


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
        "inner_rate": config.inner_rate,
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
