"""`report.html`: one file that says what a comparison came to, and shows it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, StrictUndefined

from gradshare.comparison.figures import draw_all, drawn
from gradshare.comparison.plan import shown
from gradshare.comparison.results import Results, Values
from gradshare.comparison.summary import FEW_ARMS, arm_rows, cells, counted, span, verdict
from gradshare.tasks.pictures import data_uri
from gradshare.training.files import make_folder, write_atomically

FILENAME: Final = "report.html"
FEW_CLASSES: Final = 20


def write_report(results: Results, folder: Path) -> Path:
    """Write `report.html` into a folder, which is made if it is not there, and return its path."""
    make_folder(folder)
    path = folder / FILENAME
    write_atomically(path, _page(results).encode("utf-8", "replace"))
    return path


def _page(results: Results) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = lambda text: shown(text, 300)
    environment.filters["svg_uri"] = functools.partial(data_uri, "svg+xml")
    template = files("gradshare.comparison").joinpath("report.html.j2").read_text("utf-8")
    tested = [run for run in results.runs if run.test]
    arms, every = drawn(results), len(results.arms)
    some = f"{len(arms)} of the {every} arms are shown: the baseline, the controls and the best."
    classes = _means(
        arms,
        lambda arm: [
            {name: 100 * share for name, share in run.by_class.items()}
            for run in counted(results.of(arm))
        ],
    )
    hardest = sorted(classes, key=lambda name: np.mean([*classes[name].values()]))
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
        figures=draw_all(results),
        drawn=arms,
        learned=_means(
            arms, lambda arm: [run.history[-1].learned for run in results.of(arm) if run.history]
        ),
        classes={name: classes[name] for name in hardest[:FEW_CLASSES]},
        easier=len(hardest[FEW_CLASSES:]),
        environment=_environment(results),
    )
    # Control characters, which HTML forbids.
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", page)


def _means(
    arms: Sequence[str], values: Callable[[str], list[Mapping[str, Any]]]
) -> dict[str, dict[str, Values]]:
    """The means over seeds, by name and arm.

    Args:
        values: of an arm: for each seed one or several numbers by name.
    """
    found: dict[str, dict[str, Values]] = {}
    for arm in arms:
        seeds = values(arm)
        for name in dict.fromkeys(name for seed in seeds for name in seed):
            rows = [np.atleast_1d(seed[name]) for seed in seeds if np.size(seed.get(name, ()))]
            found.setdefault(name, {})[arm] = np.mean(rows, axis=0) if rows else np.array([])
    return found


def _environment(results: Results) -> dict[str, str]:
    """What the runs ran on; where they differ, each value."""
    found: dict[str, dict[str, None]] = {}
    for run in results.runs:
        for key, value in run.environment.items():
            found.setdefault(key, {})[str(value)] = None
    return {key: shown("; ".join(values), 300) for key, values in found.items()}
