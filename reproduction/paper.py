"""The paper's Table 1, with its own figures beside ours, and its Figures 2 to 11.

A cell that was not run is empty. The paper's figures are shown beside runs of exactly their
settings. A second table has the other numbers of shots and inner rates of the paper's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import yaml

from gradshare import Interval
from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction import wording
from reproduction.conditions import Results
from reproduction.curves import Heading, Quantity, draw_curves
from reproduction.drawing import Drawing
from reproduction.pace import paper_speedup, speedup_to_reach
from reproduction.plan import ARM, HOME, PAPERS_IMAGES, Cell
from reproduction.records import Run
from reproduction.tables import markdown

SECTIONS: Final = {
    True: "The paper’s figures beside ours",
    False: "The rest of the grid, for which the paper prints no figures",
}
"""The titles of the tables, by whether the paper prints their settings."""

NAMES: Final = {ORIGINAL: "original", SHARING: "gradient sharing"}
CONTROL: Final = f"{RATE_CONTROL} (ours)"
COLUMNS: Final = (
    "method/tasks",
    *(f"{name} ({source})" for name in NAMES.values() for source in ("paper", "ours")),
    CONTROL,
    *("speed-up (paper)", "speed-up (ours)", "speed-up to 95 % (ours)"),
)

Setting = Sequence[Cell]
"""The cells that differ in nothing but the arm."""


PRINTED: Final[dict[str, Any]] = yaml.safe_load((HOME / "table1.yaml").read_text("utf-8"))
"""What the paper prints; see `table1.yaml`."""


def printed(labels: Mapping[str, str]) -> Mapping[str, Any] | None:
    """What the paper prints for a setting, by its labels; None if it prints nothing."""
    row: dict[str, Any]
    for row in PRINTED["rows"]:
        setting = PRINTED | row
        if all(label == setting[axis] for axis, label in labels.items() if axis != ARM):
            return row
    return None


def on_the_papers_images(results: Results) -> dict[Cell, Run]:
    """The runs on the whole of the paper's datasets: a part is another dataset."""
    return {
        cell: run
        for cell, run in results.items()
        if run.environment.get("images") in (None, PAPERS_IMAGES[cell.config.dataset])
    }


def table1(cells: Sequence[Cell], results: Results) -> str:
    """Table 1 as Markdown.

    Args:
        cells: of the plan of scale "paper"; a row of the table has those that differ in the arm.
        results: the finished ones.
    """
    settings: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        settings.setdefault(tuple(cell.common.values()), []).append(cell)
    page = "# Table 1\n"
    for is_printed, title in SECTIONS.items():
        found = [s for s in settings.values() if bool(printed(s[0].labels)) == is_printed]
        if not is_printed:
            found = [setting for setting in found if any(cell in results for cell in setting)]
        if found:
            page += f"\n## {title}\n{_tables(found, results)}"
    return page + "\n" + "".join(f"- {note}\n" for note in _notes(cells, results))


def _tables(settings: Sequence[Setting], results: Results) -> str:
    """A table for each dataset, number of shots and inner rate, the paper's own first."""
    settings = sorted(
        settings, key=lambda s: (s[0].config.inner_lr_scale, -cast(int, s[0].config.shots))
    )
    rows = [_row(setting, results) for setting in settings]
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    tables: dict[str, list[dict[str, str]]] = {}
    for (cell, *_), row in zip(settings, rows, strict=True):
        config = cell.config
        scale = config.inner_lr_scale
        rate = "" if scale == 1 else f", {scale:g}× the inner rate"
        name = f"{wording.DATASETS[config.dataset]}, {config.ways}-way {config.shots}-shot{rate}"
        tables.setdefault(name, []).append({column: row.get(column, "") for column in columns})
    return "".join(f"\n### {name}\n\n{markdown(table)}" for name, table in tables.items())


def _row(setting: Setting, results: Results) -> dict[str, str]:
    """What is known of a setting, by column."""
    config, paper = setting[0].config, printed(setting[0].labels)
    runs = {cell.labels[ARM]: results[cell] for cell in setting if cell in results}
    row = {"method/tasks": f"{wording.METHODS[config.method]}/{config.task_batch}"}
    for arm, name in NAMES.items():
        row[f"{name} (ours)"] = _tested(runs[arm]) if arm in runs else ""
        if paper is not None:
            row[f"{name} (paper)"] = wording.accuracy(Interval(paper[arm][0], paper[arm][1], 0))
    if RATE_CONTROL in runs:
        row[CONTROL] = _tested(runs[RATE_CONTROL])
    if paper is not None:
        row["speed-up (paper)"] = wording.speedup(paper["speedup"])
    row |= {"speed-up (ours)": "", "speed-up to 95 % (ours)": ""}
    if runs.keys() >= NAMES.keys():
        both = runs[ORIGINAL], runs[SHARING]
        row["speed-up (ours)"] = wording.speedup(paper_speedup(*both))
        row["speed-up to 95 % (ours)"] = wording.speedup(speedup_to_reach(*both, 95))
    return row


def _tested(run: Run) -> str:
    """The test accuracy, or that the run diverged or did not train."""
    test = "" if run.tested is None else wording.accuracy(run.tested)
    if run.trained:
        return test or wording.NOTHING
    return wording.bracketed(run.outcome, test)


def _notes(cells: Sequence[Cell], results: Results) -> list[str]:
    """What a reader of the tables has to know, sentence by sentence."""
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

METHODS: Final = tuple((name, label) for label, name in wording.METHODS.items())
TASKS: Final = (
    ("1-shot, 5 tasks", "shot-1", "batch-5"),
    ("1-shot, 1 task", "shot-1", "batch-1"),
    ("5-shot, 5 tasks", "shot-5", "batch-5"),
    ("5-shot, 1 task", "shot-5", "batch-1"),
)
EXAMPLES: Final = (
    ("CUB, MAML, 1-shot, 5 tasks", "cub", "maml", "shot-1", "batch-5"),
    ("mini-ImageNet, MAML++, 5-shot, 1 task", "mini-imagenet", "maml++", "shot-5", "batch-1"),
)
GRIDS: Final = {
    4: ("CUB", "cub", "rate-1x"),
    6: ("mini-ImageNet", "mini-imagenet", "rate-1x"),
    8: ("CUB, 10× the inner rate", "cub", "rate-10x"),
    10: ("mini-ImageNet, 10× the inner rate", "mini-imagenet", "rate-10x"),
}
"""The figures of a dataset and inner rate by number. That of m and λ is the next one."""


def draw_paper(results: Results) -> Iterator[Drawing]:
    """The paper's figures that have a curve to draw."""
    mini = ("mini-ImageNet", "mini-imagenet", "rate-1x")
    cases = ("a good and a pathological case", "rate-1x")
    every: list[tuple[int, Quantity, Heading, Sequence[Heading], Sequence[Heading]]] = [
        (2, "validation", mini, TASKS[:2], METHODS),
        (3, "sharing", cases, [("",)], EXAMPLES),
    ]
    for number, grid in GRIDS.items():
        every.append((number, "validation", grid, TASKS, METHODS))
        every.append((number + 1, "sharing", grid, TASKS, METHODS))
    for number, quantity, (title, *labels), rows, columns in every:
        own = {cell: run for cell, run in results.items() if {*labels} <= {*cell.labels.values()}}
        name, sentence = f"figure-{number}", f"Figure {number}. {title}."
        yield from draw_curves(name, sentence, own, rows, columns, quantity)
