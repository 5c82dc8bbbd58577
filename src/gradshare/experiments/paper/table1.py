"""Table 1 at the paper's scale: the paper's own figures beside ours, and what it does not have.

What was not run stays empty, and so does what the paper does not print: its figures stand beside
cells of exactly their settings and nowhere else. Below the paper's table stand, in the same form
and without its columns, the other numbers of shots and the other inner rates of its grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.experiments import wording
from gradshare.experiments.paper.formats import (
    LATEX_HEAD,
    comma_separated,
    latex_text,
    markdown,
)
from gradshare.experiments.paper.plan import Cell
from gradshare.experiments.results import Arm, Results
from gradshare.experiments.speedup import (
    SHARES,
    paired_difference,
    paper_speedup,
    speedup_to_reach,
)
from gradshare.experiments.table import BATCH_NORM, tested
from gradshare.training.statistics import Interval

PAPER: Final = "paper"
OURS: Final = "ours"

HEADINGS: Final = {
    ORIGINAL: "original",
    SHARING: "gradient sharing",
    RATE_CONTROL: "rate-control",
}
NAME: Final = "method/tasks"
SPEEDUP: Final = "speed-up"
SPEEDUP_TO_95: Final = "speed-up to 95 %"

SETTING: Final = ("dataset", "method", "batch", "shots", "rate")
"""The axes of the grid, but for the arm."""

Accuracy = tuple[float, float]
"""A test accuracy and half its 95 % interval, as fractions."""


# The paper's figures ------------------------------------------------------------------------------


class Printed(BaseModel):
    """The paper's figures for one method, task batch and dataset.

    Attributes:
        dataset: its label in the plan.
        method: likewise.
        batch: likewise.
        original: its test accuracy.
        sharing: that of gradient sharing; `gradient-sharing` in YAML.
        speedup: 0.66 for 66 %.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    method: str
    batch: str
    original: Accuracy
    sharing: Accuracy = Field(alias=SHARING)
    speedup: float

    def accuracy(self, arm: str) -> Accuracy | None:
        """An arm's test accuracy; None for one that the paper does not have."""
        return {ORIGINAL: self.original, SHARING: self.sharing}.get(arm)


class PrintedTable(BaseModel):
    """The paper's Table 1.

    Attributes:
        shots: of all its cells, by their label in the plan.
        rate: likewise.
        rows: its figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shots: str
    rate: str
    rows: list[Printed]


@cache
def printed_table() -> PrintedTable:
    """What the paper prints."""
    text = resources.files(__package__).joinpath("table1.yaml").read_text("utf-8")
    return PrintedTable.model_validate(yaml.safe_load(text))


def printed(labels: Mapping[str, str]) -> Printed | None:
    """What the paper prints for a setting, by its labels; None where it prints nothing."""
    table = printed_table()
    if (labels["shots"], labels["rate"]) != (table.shots, table.rate):
        return None
    here = (labels["dataset"], labels["method"], labels["batch"])
    return next((row for row in table.rows if (row.dataset, row.method, row.batch) == here), None)


PAPERS_IMAGES: Final = {"cub": 11_788, "mini-imagenet": 60_000}
"""How many images the paper's datasets have."""


def on_the_papers_images(results: Mapping[Cell, Results]) -> dict[Cell, Results]:
    """Those that were trained on the whole of the paper's datasets, as far as they say.

    A part of a dataset is another one, whose figures do not stand beside the paper's.
    """
    return {
        cell: one
        for cell, one in results.items()
        if one.environment.get("images") in (None, PAPERS_IMAGES[cell.config.dataset])
    }


# The table ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        heading: what they are.
        source: whose, `PAPER` or `OURS`; empty for the column of the rows' names.
    """

    heading: str
    source: str = ""


@dataclass(frozen=True)
class Block:
    """The rows of one dataset, number of shots and inner rate.

    Attributes:
        title: which.
        rows: a text for each column; empty for what was not run.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """Blocks with the same columns.

    Attributes:
        title: what they have in common.
        columns: of all blocks.
        blocks: in the paper's order.
    """

    title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]


@dataclass
class _Setting:
    """A row: all cells that differ in nothing but the arm."""

    config: Any
    printed: Printed | None
    runs: dict[str, Arm] = field(default_factory=dict)


def table1(cells: Sequence[Cell], results: Mapping[Cell, Results]) -> list[Table]:
    """The paper's Table 1, then its other numbers of shots and inner rates, those that were run.

    Args:
        cells: of the plan of scale "paper", whose rows the table has.
        results: of those that are finished.
    """
    settings = _settings(cells, results)
    papers = [one for one in settings if one.printed]
    others = [one for one in settings if not one.printed and one.runs]
    tables = []
    if papers:
        tables.append(_table("The paper’s figures beside ours", papers))
    if others:
        tables.append(_table("The rest of the grid, for which the paper prints no figures", others))
    return tables


def notes(cells: Sequence[Cell], results: Mapping[Cell, Results]) -> list[str]:
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


def _settings(cells: Sequence[Cell], results: Mapping[Cell, Results]) -> list[_Setting]:
    """In the order of the cells."""
    found: dict[tuple[str, ...], _Setting] = {}
    for cell in cells:
        key = tuple(cell.labels[axis] for axis in SETTING)
        setting = found.setdefault(key, _Setting(cell.config, printed(cell.labels)))
        if cell in results:
            (run,) = results[cell].arms
            setting.runs[run.name] = run
    return list(found.values())


def _table(title: str, settings: Sequence[_Setting]) -> Table:
    has_paper = any(one.printed for one in settings)
    has_control = any(RATE_CONTROL in one.runs for one in settings)
    sources = (PAPER, OURS) if has_paper else (OURS,)
    columns = (
        Column(NAME),
        *(Column(HEADINGS[arm], source) for arm in (ORIGINAL, SHARING) for source in sources),
        *([Column(HEADINGS[RATE_CONTROL], OURS)] if has_control else []),
        *(Column(SPEEDUP, source) for source in sources),
        Column(SPEEDUP_TO_95, OURS),
    )
    blocks: dict[str, list[tuple[str, ...]]] = {}
    for one in sorted(settings, key=_place):  # stable: datasets and methods stay in their order
        figures = _figures(one)
        row = tuple(figures.get(column, "") for column in columns)
        blocks.setdefault(_block_title(one.config), []).append(row)
    return Table(title, columns, tuple(Block(name, tuple(rows)) for name, rows in blocks.items()))


def _place(setting: _Setting) -> tuple[float, int]:
    """The paper's rate and number of shots come first."""
    return setting.config.inner_lr_scale, -setting.config.shots


def _block_title(config: Any) -> str:
    rate = "" if config.inner_lr_scale == 1 else f", {config.inner_lr_scale:g}× the inner rate"
    return f"{wording.dataset(config.dataset)}, {config.ways}-way {config.shots}-shot{rate}"


def _figures(setting: _Setting) -> dict[Column, str]:
    """What is known of a row, by column."""
    config, runs, paper = setting.config, setting.runs, setting.printed
    figures = {Column(NAME): f"{wording.method(config.method)}/{config.task_batch}"}
    for arm, run in runs.items():
        figures[Column(HEADINGS[arm], OURS)] = tested(run)
    if ORIGINAL in runs and SHARING in runs:
        original, sharing = runs[ORIGINAL], runs[SHARING]
        to_95 = speedup_to_reach(original, sharing)["95"]
        figures[Column(SPEEDUP, OURS)] = wording.speedup(paper_speedup(original, sharing))
        figures[Column(SPEEDUP_TO_95, OURS)] = wording.speedup(to_95)
    if paper is not None:
        for arm, accuracy in ((ORIGINAL, paper.original), (SHARING, paper.sharing)):
            figures[Column(HEADINGS[arm], PAPER)] = wording.accuracy(Interval(*accuracy, 0))
        figures[Column(SPEEDUP, PAPER)] = wording.speedup(paper.speedup)
    return figures


# Its files ----------------------------------------------------------------------------------------


def page(tables: Iterable[Table], notes: Iterable[str]) -> str:
    """Markdown: a heading for each table, a table for each block, and the notes."""
    text = "# Table 1\n"
    for table in tables:
        text += f"\n## {table.title}\n"
        names = [f"{c.heading} ({c.source})" if c.source else c.heading for c in table.columns]
        for block in table.blocks:
            rows = [dict(zip(names, row, strict=True)) for row in block.rows]
            text += f"\n### {block.title}\n\n{markdown(rows)}"
    return text + "\n" + "".join(f"- {note}\n" for note in notes)


def latex(tables: Iterable[Table], notes: Iterable[str]) -> str:
    """A `table` environment for each table, to be read into a document with booktabs.

    The notes are the caption of the first.
    """
    caption = " ".join(notes)
    lines = [LATEX_HEAD]
    for table in tables:
        count = len(table.columns)
        above, rules = _latex_heads(table.columns)
        lines += [
            r"\begin{table}",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            r"\setlength{\belowcaptionskip}{6pt}",
            rf"\caption{{{latex_text(f'{table.title}. {caption}'.strip())}}}",
            rf"\begin{{tabular}}{{l{'r' * (count - 1)}}}",
            r"\toprule",
            f"{above} \\\\",
            rules,
            f"{' & '.join(latex_text(c.source or c.heading) for c in table.columns)} \\\\",
        ]
        for block in table.blocks:
            lines += [r"\midrule", rf"\multicolumn{{{count}}}{{l}}{{{latex_text(block.title)}}} \\"]
            lines += [f"{' & '.join(map(latex_text, row))} \\\\" for row in block.rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        caption = ""
    return "\n".join([*lines, ""])


def _latex_heads(columns: Sequence[Column]) -> tuple[str, str]:
    """The line of headings that span their columns, and the rules below them."""
    heads, rules = [""], []
    place = 2
    for heading in dict.fromkeys(column.heading for column in columns[1:]):
        count = sum(column.heading == heading for column in columns)
        heads.append(rf"\multicolumn{{{count}}}{{c}}{{{latex_text(heading)}}}")
        rules.append(rf"\cmidrule(lr){{{place}-{place + count - 1}}}")
        place += count
    return " & ".join(heads), "".join(rules)


def table1_pages(cells: Sequence[Cell], results: Mapping[Cell, Results]) -> dict[str, str]:
    """Table 1 by the names of files: Markdown, LaTeX and CSV."""
    tables, words = table1(cells, results), notes(cells, results)
    return {
        "table1.md": page(tables, words),
        "table1.tex": latex(tables, words),
        "table1.csv": csv_text(cells, results),
    }


def csv_text(cells: Sequence[Cell], results: Mapping[Cell, Results]) -> str:
    """One row a cell: its place in the grid, its raw numbers and the paper's.

    Accuracies, intervals and speed-ups are fractions; a cell without an outcome was not run. What
    is compared with the original is each of the other arms.
    """
    originals = {
        tuple(cell.labels[axis] for axis in SETTING): one.arms[0]
        for cell, one in results.items()
        if one.arms[0].name == ORIGINAL
    }
    rows = []
    for cell in cells:
        row = _place_in_grid(cell) | _printed_numbers(cell)
        if cell in results:
            (run,) = results[cell].arms
            row |= _numbers(run) | {"command": results[cell].command}
            original = originals.get(tuple(cell.labels[axis] for axis in SETTING))
            if original is not None and run.name != ORIGINAL:
                row |= _beside_original(run, original)
        rows.append(row)
    return comma_separated([{name: row.get(name) for name in CSV_COLUMNS} for row in rows])


CSV_COLUMNS: Final = (
    *("study", "dataset", "method", "task_batch", "shots", "inner_lr_scale", "arm", "seed"),
    *("batch_norm", "outcome", "epochs", "best_epoch", "val_accuracy", "val_ci95"),
    *("test_accuracy", "test_ci95", "test_tasks", "ensemble", "single_accuracy", "single_ci95"),
    *("minus_original", "minus_original_ci95", "speedup"),
    *(f"speedup_to_{share}" for share in SHARES),
    *("seconds", "paper_accuracy", "paper_ci95", "paper_speedup", "command"),
)


def _place_in_grid(cell: Cell) -> dict[str, Any]:
    config = cell.config
    names = ("dataset", "method", "task_batch", "shots", "inner_lr_scale", "arm", "seed")
    return {
        "study": cell.study,
        **{name: getattr(config, name) for name in names},
        "batch_norm": config.batch_norm,
    }


def _printed_numbers(cell: Cell) -> dict[str, Any]:
    paper = printed(cell.labels)
    accuracy = None if paper is None else paper.accuracy(cell.config.arm)
    if paper is None or accuracy is None:
        return {}
    numbers: dict[str, Any] = dict(zip(("paper_accuracy", "paper_ci95"), accuracy, strict=True))
    return numbers | ({"paper_speedup": paper.speedup} if cell.config.arm == SHARING else {})


def _numbers(run: Arm) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "outcome": run.outcome,
        "epochs": run.epochs,
        "best_epoch": run.best_epoch,
        "seconds": run.seconds,
    }
    if run.best is not None:
        numbers |= {"val_accuracy": run.best.accuracy, "val_ci95": run.best.ci95}
    if run.test is not None:
        test = run.test
        numbers |= {"test_accuracy": test.accuracy, "test_ci95": test.ci95}
        numbers |= {"test_tasks": test.tasks, "ensemble": test.ensemble}
    if run.test_single is not None:
        single = run.test_single
        numbers |= {"single_accuracy": single.accuracy, "single_ci95": single.ci95}
    return numbers


def _beside_original(run: Arm, original: Arm) -> dict[str, Any]:
    difference = paired_difference(run, original)
    numbers: dict[str, Any] = {"speedup": paper_speedup(original, run)}
    for share, ratio in speedup_to_reach(original, run).items():
        numbers[f"speedup_to_{share}"] = ratio
    if difference is not None:
        numbers["minus_original"] = difference.difference
        numbers["minus_original_ci95"] = difference.ci95
    return numbers
