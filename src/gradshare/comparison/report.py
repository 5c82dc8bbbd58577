"""`report.html`: one file that says what a comparison came to, and shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, StrictUndefined

from gradshare.comparison.differences import counted
from gradshare.comparison.figures import draw_all, drawn
from gradshare.comparison.plan import shown
from gradshare.comparison.results import Example, Results, SampleTask
from gradshare.comparison.table import FEW_ARMS, arm_rows, cells, span
from gradshare.comparison.verdict import verdict
from gradshare.training.files import make_folder, write_atomically

FILENAME: Final = "report.html"
FEW_CLASSES: Final = 20


def write_report(results: Results, folder: Path) -> Path:
    """Write `report.html` into a folder, which is made if it is not there.

    Args:
        results: of the comparison.
        folder: of the report.

    Returns:
        The path of the page.

    Raises:
        RunError: the folder cannot be written.
    """
    make_folder(folder)
    path = folder / FILENAME
    write_atomically(path, _page(results).encode("utf-8", "replace"))
    return path


def _page(results: Results) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = lambda text: shown(text, 300)
    template = files("gradshare.comparison").joinpath("report.html.j2").read_text("utf-8")
    tested = [run for run in results.runs if run.test]
    arms, every = drawn(results), len(results.arms)
    loads = [run.environment["load"] for run in results.runs if run.environment.get("load")]
    page = environment.from_string(template).render(
        results=results,
        metric=results.metrics[results.score],
        title=_title(results.arms),
        test_tasks=span([len(run.test[results.score]) for run in tested]),
        members=span([run.members for run in tested]),
        verdict=verdict(results),
        table=cells(arm_rows(results)),
        load=span(loads),
        some_arms=""
        if len(arms) == every
        else f"{len(arms)} of the {every} arms are shown: the baseline, the controls and those "
        "with the best test scores.",
        figures={drawing.name: drawing for drawing in draw_all(results)},
        classes=_classes(results, arms),
        few_classes=FEW_CLASSES,
        samples=[_sample(results, arms, *task) for task in enumerate(results.samples)],
        environment=_environment(results),
    )
    # Control characters, which HTML forbids.
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", page)


def _title(arms: tuple[str, ...]) -> str:
    if len(arms) > FEW_ARMS:
        return f"Comparison of {len(arms):,} arms"
    return f"{', '.join(arms[:-1])} and {arms[-1]}" if len(arms) > 1 else arms[0]


def _classes(results: Results, arms: Sequence[str]) -> list[list[str]]:
    """A line for each class with the accuracy of each arm, the heading first; empty without
    classes.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for arm in arms:
        for run in counted(results.of(arm)):
            for name, accuracy in run.by_class.items():
                found.setdefault(name, {}).setdefault(arm, []).append(accuracy)
    means = {
        name: {arm: float(np.mean(values)) for arm, values in by_arm.items()}
        for name, by_arm in found.items()
    }
    lines = [
        [shown(name), *(f"{by_arm[arm]:.1%}" if arm in by_arm else "–" for arm in arms)]
        for name, by_arm in sorted(
            means.items(), key=lambda item: item[1].get(results.baseline, 0.0)
        )
    ]
    return [["class", *arms], *lines] if lines else []


def _sample(results: Results, arms: Sequence[str], number: int, task: SampleTask) -> dict[str, Any]:
    """A sample task with what each arm predicts for its queries."""

    def named(label: int) -> str:
        known = 0 <= label < len(task.classes)
        return shown(task.classes[label], 20) if known else f"class {label}"

    def pictures(examples: Sequence[Example]) -> list[tuple[str, str]]:
        return [(example.picture, named(example.label)) for example in examples]

    answers = {}
    for arm in arms:
        predicted = [run.predicted for run in counted(results.of(arm)) if run.predicted]
        if predicted:
            guesses = predicted[0][number]
            answers[arm] = [
                (guesses[query.place] == query.label, named(guesses[query.place]))
                for query in task.queries
            ]
    return {
        "support": pictures(task.support),
        "queries": pictures(task.queries),
        "answers": answers,
    }


def _environment(results: Results) -> dict[str, str]:
    """What the runs ran on; where they differ, each value."""
    found: dict[str, dict[str, None]] = {}
    for run in results.runs:
        for key, value in run.environment.items():
            found.setdefault(key, {})[str(value)] = None
    return {key: shown("; ".join(values), 300) for key, values in found.items()}
