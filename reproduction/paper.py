"""The paper's Table 1, with its own figures beside ours, and its Figures 2 to 11.

A cell that was not run is empty. The paper's figures are shown beside runs of exactly their
settings. A second table has the other numbers of shots and inner rates of the paper's grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import yaml

from gradshare import Interval, RunConfig
from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction import wording
from reproduction.conditions import Results
from reproduction.curves import Heading, Quantity, draw_curves, heading
from reproduction.drawing import Drawing
from reproduction.pace import paper_speedup, speedup_to_reach
from reproduction.plan import ARM, HOME, PAPERS_IMAGES, Cell
from reproduction.records import Run
from reproduction.tables import markdown

HEADINGS: Final = {
    ORIGINAL: "original",
    SHARING: "gradient sharing",
    RATE_CONTROL: "rate-control",
}

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
            mean, half = paper[arm]
            row[f"{HEADINGS[arm]} (paper)"] = wording.accuracy(Interval(mean, half, 0))
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
        "Batch norm is transductive throughout: all queries of a task are normalised together, as "
        "in the paper: a prediction depends on the other queries.",
        "Speed-up: (epoch of the original − epoch of sharing) / epoch of sharing, of the earliest "
        "epochs of their highest validation accuracy, as in the paper. To 95 %: the same for the "
        "first epochs with 95 % of the original’s gain over chance, which hang less on noise.",
        f"Empty: not run. {wording.NOTHING}: not defined, since an arm did not train or never got "
        "there.",
    ]


# The figures --------------------------------------------------------------------------------------

METHODS: Final = tuple(heading(name, label) for label, name in wording.METHODS.items())
TASKS: Final = (
    heading("1-shot, 5 tasks", "shot-1", "batch-5"),
    heading("1-shot, 1 task", "shot-1", "batch-1"),
    heading("5-shot, 5 tasks", "shot-5", "batch-5"),
    heading("5-shot, 1 task", "shot-5", "batch-1"),
)
EXAMPLES: Final = (
    heading("CUB, MAML, 1-shot, 5 tasks", "cub", "maml", "shot-1", "batch-5"),
    heading(
        "mini-ImageNet, MAML++, 5-shot, 1 task", "mini-imagenet", "maml++", "shot-5", "batch-1"
    ),
)
GRIDS: Final = {
    4: ("CUB", "cub", "rate-1x"),
    6: ("mini-ImageNet", "mini-imagenet", "rate-1x"),
    8: ("CUB, 10× the inner rate", "cub", "rate-10x"),
    10: ("mini-ImageNet, 10× the inner rate", "mini-imagenet", "rate-10x"),
}
"""The figures of a dataset and inner rate by number. That of m and λ is the next one."""


def draw_paper(results: Results) -> list[Drawing]:
    """The paper's figures that have a curve to draw."""
    mini = heading("mini-ImageNet", "mini-imagenet", "rate-1x")
    cases = heading("a good and a pathological case", "rate-1x")
    every: list[tuple[int, Quantity, Heading, Sequence[Heading], Sequence[Heading]]] = [
        (2, "validation", mini, TASKS[:2], METHODS),
        (3, "sharing", cases, [heading("")], EXAMPLES),
    ]
    for number, grid in GRIDS.items():
        every.append((number, "validation", heading(*grid), TASKS, METHODS))
        every.append((number + 1, "sharing", heading(*grid), TASKS, METHODS))
    drawings = []
    for number, quantity, (title, labels), rows, columns in every:
        own = {cell: run for cell, run in results.items() if labels <= {*cell.labels.values()}}
        name, sentence = f"figure-{number}", f"Figure {number}. {title}."
        drawings += draw_curves(name, sentence, own, rows, columns, quantity)
    return drawings
