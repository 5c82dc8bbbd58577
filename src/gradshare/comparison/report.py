"""`report.html`: one file that says what a comparison came to, and shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np
from jinja2 import Environment, StrictUndefined

from gradshare.comparison.differences import counted
from gradshare.comparison.figures import draw_all, drawn
from gradshare.comparison.plan import shown
from gradshare.comparison.results import Results
from gradshare.comparison.table import FEW_ARMS, NOTHING, arm_rows, cells, span
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
    some = f"{len(arms)} of the {every} arms are shown: the baseline, the controls and the best."
    classes = _classes(results, arms)
    page = environment.from_string(template).render(
        results=results,
        metric=results.metrics[results.score],
        title=", ".join(results.arms[:FEW_ARMS]) + " …" * (len(results.arms) > FEW_ARMS),
        test_tasks=span([len(run.test[results.score]) for run in tested]),
        members=span([run.members for run in tested]),
        verdict=verdict(results),
        table=cells(arm_rows(results)),
        load=span([load for run in results.runs if (load := run.environment.get("load"))]),
        some_arms=some if len(arms) < every else "",
        figures={drawing.name: drawing for drawing in draw_all(results)},
        drawn=arms,
        learned=_learned(results, arms),
        classes=classes[: 1 + FEW_CLASSES],
        hidden_classes=len(classes[1 + FEW_CLASSES :]),
        environment=_environment(results),
    )
    # Control characters, which HTML forbids.
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", page)


def _classes(results: Results, arms: Sequence[str]) -> list[list[str]]:
    """A line for each class with the accuracy of each arm, the hardest class and the heading
    first. Empty without classes.
    """
    means: dict[str, dict[str, float]] = {}
    for arm in arms:
        runs = counted(results.of(arm))
        for name in dict.fromkeys(name for run in runs for name in run.by_class):
            accuracies = [run.by_class[name] for run in runs if name in run.by_class]
            means.setdefault(name, {})[arm] = float(np.mean(accuracies))
    lines = [
        [shown(name), *(f"{by_arm[arm]:.1%}" if arm in by_arm else NOTHING for arm in arms)]
        for name, by_arm in sorted(means.items(), key=lambda item: np.mean([*item[1].values()]))
    ]
    return [["class", *arms], *lines] if lines else []


def _learned(results: Results, arms: Sequence[str]) -> list[list[str]]:
    """A line for each quantity that rules report, with its values by inner step after the last
    epoch for each arm, the mean over seeds; the heading first. Empty without such quantities.
    """
    found: dict[str, dict[str, str]] = {}
    for arm in arms:
        last = [run.history[-1].learned for run in results.of(arm) if run.history]
        for name in dict.fromkeys(name for learned in last for name in learned):
            rows = [learned[name] for learned in last if learned.get(name)]
            steps = [f"{np.mean(values):.3g}" for values in zip(*rows, strict=False)]
            found.setdefault(name, {})[arm] = ", ".join(steps)
    lines = [[shown(name), *(by.get(arm) or NOTHING for arm in arms)] for name, by in found.items()]
    return [["quantity", *arms], *lines] if lines else []


def _environment(results: Results) -> dict[str, str]:
    """What the runs ran on; where they differ, each value."""
    found: dict[str, dict[str, None]] = {}
    for run in results.runs:
        for key, value in run.environment.items():
            found.setdefault(key, {})[str(value)] = None
    return {key: shown("; ".join(values), 300) for key, values in found.items()}
