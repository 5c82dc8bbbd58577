"""`report.html`: one file that says what a comparison came to, and shows it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from gradshare.comparison.figures import MOST_ARMS, Drawing, draw_all, shown
from gradshare.comparison.results import Results
from gradshare.comparison.table import Row, arm_rows
from gradshare.comparison.verdict import verdict
from gradshare.training.files import make_folder, write_atomically

FILENAME: Final = "report.html"

FEW_ARMS: Final = 5
"""Up to this number the arms are the columns of the table, which is narrower then."""


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
    write_atomically(path, _page(_with_short_names(results)).encode("utf-8", "replace"))
    return path


def _page(results: Results) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = lambda text: shown(text, 300)
    template = files("gradshare.comparison").joinpath("report.html.j2").read_text("utf-8")
    tested = [run for run in results.runs if run.test]
    drawings = draw_all(results)
    page = environment.from_string(template).render(
        results=results,
        metric=results.metrics[results.score],
        title=_title(results.arms),
        test_tasks=_span([len(run.test[results.score]) for run in tested]),
        members=_span([run.members for run in tested]),
        verdict=verdict(results),
        table=_table(arm_rows(results)),
        most_arms=MOST_ARMS,
        figures={drawing.name: (_inline(drawing), drawing.caption) for drawing in drawings},
        environment=_environment(results),
    )
    # Control characters, which HTML forbids.
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", page)


def _with_short_names(results: Results) -> Results:
    """The same results with names of arms that a table and a figure have room for."""
    taken: dict[str, str] = {}
    for place, arm in enumerate(results.arms, 1):
        name = shown(arm)
        while name in taken:
            name = f"{name} ({place})"
        taken[name] = arm
    names = {arm: name for name, arm in taken.items()}
    runs = [run.model_copy(update={"arm": names[run.arm]}) for run in results.runs]
    return results.model_copy(
        update={
            "baseline": names[results.baseline],
            "controls": tuple(names[arm] for arm in results.controls),
            "runs": tuple(runs),
        }
    )


def _title(arms: tuple[str, ...]) -> str:
    if len(arms) > FEW_ARMS:
        return f"Comparison of {len(arms):,} arms"
    return f"{', '.join(arms[:-1])} and {arms[-1]}" if len(arms) > 1 else arms[0]


def _table(rows: list[Row]) -> list[list[str]]:
    """Lines of cells, the heading first."""
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    return [list(column) for column in zip(*table, strict=True)] if len(rows) <= FEW_ARMS else table


def _span(numbers: list[int]) -> str:
    """Such as "5", or "3 to 5"; empty for no numbers."""
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _environment(results: Results) -> dict[str, str]:
    """What the runs ran on; where they differ, each value."""
    found: dict[str, dict[str, None]] = {}
    for run in results.runs:
        for key, value in run.environment.items():
            found.setdefault(key, {})[str(value)] = None
    return {key: shown("; ".join(values), 300) for key, values in found.items()}


def _inline(drawing: Drawing) -> Markup:
    """A figure's SVG as part of the page."""
    head, _, body = drawing.svg().partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    label = escape(drawing.description)
    return Markup(f'<svg {box[0] if box else ""} role="img" aria-label="{label}">{body}')
