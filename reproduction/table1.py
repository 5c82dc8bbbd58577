"""Table 1 at the paper's scale: the paper's own figures beside ours.

What was not run stays empty. The paper's figures stand beside cells of exactly their settings.
Below the paper's table stand the other numbers of shots and inner rates of its grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import yaml

from gradshare import Interval, RunConfig
from reproduction import wording
from reproduction.conditions import ORIGINAL, RATE_CONTROL, SHARING, Results
from reproduction.pace import paper_speedup, speedup_to_reach
from reproduction.plan import ARM, HOME, Cell
from reproduction.records import Run
from reproduction.tables import markdown

HEADINGS: Final = {
    ORIGINAL: "original",
    SHARING: "gradient sharing",
    RATE_CONTROL: "rate-control",
}

BATCH_NORM: Final = {
    "transductive": "all queries of a task are normalised together, as in the paper: a prediction "
    "depends on the other queries",
    "inductive": "queries are normalised with the support set’s statistics: a prediction depends "
    "on no other query",
}

PAPERS_IMAGES: Final = {"cub": 11_788, "mini-imagenet": 60_000}
"""How many images the paper's datasets have."""

TITLES: Final = {
    True: "The paper’s figures beside ours",
    False: "The rest of the grid, for which the paper prints no figures",
}
"""Of the tables of settings that the paper prints, and that it does not."""


@cache
def printed_table() -> dict[str, Any]:
    """What the paper prints; see `table1.yaml`."""
    table: dict[str, Any] = yaml.safe_load((HOME / "table1.yaml").read_text("utf-8"))
    return table


def printed(labels: Mapping[str, str]) -> Mapping[str, Any] | None:
    """What the paper prints for a setting, by its labels; None if it prints nothing."""
    table = printed_table()
    if any(labels[axis] != table[axis] for axis in ("shots", "rate")):
        return None
    axes = ("dataset", "method", "batch")
    return next((row for row in table["rows"] if all(row[a] == labels[a] for a in axes)), None)


def on_the_papers_images(results: Results) -> dict[Cell, Run]:
    """The runs on the whole of the paper's datasets: a part is another dataset."""
    return {
        cell: run
        for cell, run in results.items()
        if run.environment.get("images") in (None, PAPERS_IMAGES[cell.config.dataset])
    }


@dataclass
class _Setting:
    """A row: all cells that differ in nothing but the arm."""

    config: RunConfig
    printed: Mapping[str, Any] | None
    runs: dict[str, Run] = field(default_factory=dict)


def table1(cells: Sequence[Cell], results: Results) -> str:
    """Table 1 as Markdown.

    Args:
        cells: of the plan of scale "paper", whose rows the table has.
        results: the finished ones.
    """
    settings: dict[tuple[str, ...], _Setting] = {}
    for cell in cells:
        setting = settings.setdefault(_place(cell), _Setting(cell.config, printed(cell.labels)))
        if cell in results:
            setting.runs[cell.labels[ARM]] = results[cell]
    page = "# Table 1\n"
    for is_printed, title in TITLES.items():
        rows = [s for s in settings.values() if bool(s.printed) == is_printed]
        if is_printed or any(setting.runs for setting in rows):
            page += _table(title, [s for s in rows if is_printed or s.runs])
    page += "\n" + "".join(f"- {note}\n" for note in _notes(cells, results))
    return page


def _place(cell: Cell) -> tuple[str, ...]:
    return tuple(label for axis, label in cell.labels.items() if axis != ARM)


def _table(title: str, settings: Sequence[_Setting]) -> str:
    rows = [_row(setting) for setting in settings]
    columns = dict.fromkeys(name for name in _columns() if any(name in row for row in rows))
    blocks: dict[str, list[dict[str, str]]] = {}
    order = sorted(
        zip(settings, rows, strict=True),  # the paper's rate and number of shots first
        key=lambda one: (one[0].config.inner_lr_scale, -one[0].config.shots),
    )
    for setting, row in order:
        config = setting.config
        scale = config.inner_lr_scale
        rate = "" if scale == 1 else f", {scale:g}× the inner rate"
        name = f"{wording.DATASETS[config.dataset]}, {config.ways}-way {config.shots}-shot{rate}"
        blocks.setdefault(name, []).append({column: row.get(column, "") for column in columns})
    text = f"\n## {title}\n"
    return text + "".join(f"\n### {name}\n\n{markdown(block)}" for name, block in blocks.items())


def _columns() -> list[str]:
    """The headings of all columns."""
    both = [f"{HEADINGS[a]} ({s})" for a in (ORIGINAL, SHARING) for s in ("paper", "ours")]
    speedups = ["speed-up (paper)", "speed-up (ours)", "speed-up to 95 % (ours)"]
    return ["method/tasks", *both, f"{HEADINGS[RATE_CONTROL]} (ours)", *speedups]


def _row(setting: _Setting) -> dict[str, str]:
    """What is known of a setting, by column."""
    config, runs, paper = setting.config, setting.runs, setting.printed
    row = {"method/tasks": f"{wording.METHODS[config.method]}/{config.task_batch}"}
    row |= {f"{HEADINGS[arm]} (ours)": "" for arm in (ORIGINAL, SHARING)}
    row |= {f"{HEADINGS[arm]} (ours)": _tested(run) for arm, run in runs.items()}
    row |= {"speed-up (ours)": "", "speed-up to 95 % (ours)": ""}
    if ORIGINAL in runs and SHARING in runs:
        both = runs[ORIGINAL], runs[SHARING]
        row["speed-up (ours)"] = wording.speedup(paper_speedup(*both))
        row["speed-up to 95 % (ours)"] = wording.speedup(speedup_to_reach(*both, 95))
    if paper is not None:
        for arm in (ORIGINAL, SHARING):
            row[f"{HEADINGS[arm]} (paper)"] = wording.accuracy(
                Interval(paper[arm][0], paper[arm][1], 0)
            )
        row["speed-up (paper)"] = wording.speedup(paper["speedup"])
    return row


def _tested(run: Run) -> str:
    """The test accuracy, or that the run diverged or did not train."""
    test = None if run.tested is None else wording.accuracy(run.tested)
    if run.trained:
        return test or wording.NOTHING
    return wording.bracketed(run.outcome, test or "")


def _notes(cells: Sequence[Cell], results: Results) -> list[str]:
    """What has to be known to read the tables, sentence by sentence."""
    config = cells[0].config
    return [
        f"{len(results)} of {wording.counted(len(cells), 'cell')} finished, one seed each.",
        "paper: as printed in its Table 1. ours: test accuracy of the ensemble of the "
        f"{config.ensemble} checkpoints with the highest validation accuracy ± 95 % interval over "
        f"{config.test_tasks} test tasks.",
        f"Batch norm is {config.batch_norm} throughout: {BATCH_NORM[config.batch_norm]}.",
        "Speed-up: (epoch of the original − epoch of sharing) / epoch of sharing, of the earliest "
        "epochs of their highest validation accuracy, as in the paper. To 95 %: the same for the "
        "first epochs with 95 % of the original’s gain over chance, which hang less on noise.",
        f"Empty: not run. {wording.NOTHING}: not defined, since an arm did not train or never got "
        "there.",
    ]
