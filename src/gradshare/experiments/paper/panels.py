"""Cells of a plan drawn as a grid of small panels, as in the paper's appendix.

A panel has the cells with all labels of its row and of its column, every arm and seed of them.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.experiments import wording
from gradshare.experiments.curves import (
    SMOOTHED_FROM,
    Curve,
    Weight,
    validation_curve,
    weight_curve,
)
from gradshare.experiments.drawing import (
    DASHES,
    INK,
    LEVEL_LINE,
    PALE,
    ArmStyle,
    Drawing,
    arm_styles,
    draw_runs,
    epoch_axis,
    sample,
    shown,
    style,
)
from gradshare.experiments.figures import START, ending, interval_note, test_note
from gradshare.experiments.paper.plan import Cell
from gradshare.experiments.results import Arm, Results
from gradshare.experiments.seeds import achieved, runs_by_arm

WIDTH: Final = 7.2
"""Inches, of a page between its margins."""

PANEL_HEIGHT: Final = 1.5

LEGEND_LINE: Final = 8.2
"""Points."""

SHORT: Final[Mapping[str, str]] = {ORIGINAL: "OG", SHARING: "GS", RATE_CONTROL: "RC"}
"""Arms in legends: the paper's abbreviations, and one for the control that it does not have."""

IN_WORDS: Final[Mapping[str, str]] = {
    ORIGINAL: "original",
    SHARING: "gradient sharing",
    RATE_CONTROL: "rate-control, which learns λ but shares nothing",
}

PANEL_STYLE: Final[Any] = {
    "font.size": 7.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "center",
    "axes.labelsize": 7.0,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "legend.fontsize": 6.0,
    "legend.handlelength": 1.7,
    "lines.linewidth": 1.15,
    "lines.markersize": 3.4,
}

Runs = Mapping[str, Sequence[Arm]]
"""The runs of a panel by arm, one a seed; an arm that was not run has none."""

Entry = tuple[Artist, str]
"""Of a legend."""


@dataclass(frozen=True)
class Heading:
    """A row or a column of panels.

    Attributes:
        title: as it is written there.
        labels: that its cells have in common.
    """

    title: str
    labels: frozenset[str]


@dataclass(frozen=True)
class Panels:
    """What a grid of panels is of.

    Attributes:
        name: of the drawing's files.
        title: what all panels have in common.
        results: of the finished cells.
        rows: of panels.
        columns: of panels.
        arms: which of them to draw, in this order; a panel says which of them it lacks.
    """

    name: str
    title: str
    results: Mapping[Cell, Results]
    rows: Sequence[Heading]
    columns: Sequence[Heading]
    arms: Sequence[str]

    def runs(self, row: Heading, column: Heading) -> Runs:
        """Those of one panel."""
        labels = row.labels | column.labels
        here = [one for cell, one in self.results.items() if labels <= set(cell.labels.values())]
        found = runs_by_arm(here)
        return {arm: found.get(arm, ()) for arm in self.arms}

    def epochs(self, row: Heading, column: Heading) -> int:
        """How long the longest run of a panel was to be; 0 if none was run."""
        labels = row.labels | column.labels
        here = [cell for cell in self.results if labels <= set(cell.labels.values())]
        return max((cell.config.epochs for cell in here), default=0)

    def all_runs(self) -> list[Sequence[Arm]]:
        """Those of each panel's arms."""
        return [runs for _, runs in self.curves()]

    def curves(self) -> list[tuple[str, Sequence[Arm]]]:
        """The same, with the arm as legends call it."""
        panels = itertools.product(self.rows, self.columns)
        found = (arm for panel in panels for arm in self.runs(*panel).items())
        return [(_short(arm), runs) for arm, runs in found if runs]


def draw_validation_panels(panels: Panels) -> Drawing:
    """Validation accuracy over epochs with 95 % bands, as the paper's Figures 2, 4, 6, 8 and 10."""
    drawn = panels.curves()
    longest = max(run.epochs for _, runs in drawn for run in runs)
    tested = test_note(runs for _, runs in drawn)
    notes = [note for note in (interval_note(drawn), tested, "Dotted: chance.") if note]
    if longest >= SMOOTHED_FROM:
        notes.append(
            f"Curves of {SMOOTHED_FROM} and more epochs are running means over about a fiftieth "
            "of them; pale: as measured."
        )
    return _draw(
        panels, _validation_panel, "validation accuracy (%)", notes, legend_columns=1, share_y="row"
    )


def draw_sharing_panels(panels: Panels) -> Drawing:
    """Mean σ(m_k) and σ(λ_k) over epochs, as the paper's Figures 3, 5, 7, 9 and 11.

    The arms are those that learn λ or m.
    """
    notes = ["In the legends: the value at the last epoch. Dotted: the start, σ(0)."]
    return _draw(
        panels, _sharing_panel, "mean over inner steps", notes, legend_columns=2, share_y="all"
    )


def _draw(
    panels: Panels,
    draw_panel: Callable[[Axes, Runs, int], list[Entry]],
    label: str,
    notes: Sequence[str],
    *,
    legend_columns: int,
    share_y: Literal["row", "all"],
) -> Drawing:
    rows, columns = panels.rows, panels.columns
    descriptions = []
    lines = 1
    lowest: dict[str, Axes] = {}
    with style(), mpl.rc_context(PANEL_STYLE):
        width = min(WIDTH, 0.8 + 3.2 * len(columns))
        figure = Figure(figsize=(width, width), layout="constrained")
        grid = figure.subplots(len(rows), len(columns), sharey=share_y, squeeze=False)
        for (row, left), (column, top) in itertools.product(enumerate(rows), enumerate(columns)):
            axes = grid[row, column]
            axes.tick_params(labelsize=6.5, length=2.5, width=0.6)
            runs, epochs = panels.runs(left, top), panels.epochs(left, top)
            legend = "not run"
            if any(runs.values()):
                entries = draw_panel(axes, runs, epochs)
                lines = max(lines, -(-len(entries) // legend_columns))
                _legend(axes, entries, legend_columns)
                epoch_axis(axes, epochs, ticks=5)
                axes.set_xlim(right=epochs + 0.02 * (epochs - 1))
                if top.title in lowest:
                    lowest[top.title].set_xlabel("")
                lowest[top.title] = axes
                legend = "; ".join(text for _, text in entries)
            else:
                _leave_empty(axes, legend)
            descriptions.append(f"{left.title} {top.title}: {legend}".strip())
        for axes, left in zip(grid[:, 0], rows, strict=True):
            axes.set_ylabel(label)
            _row_heading(axes, left.title)
        for axes, top in zip(grid[0], columns, strict=True):
            axes.set_title(top.title, pad=LEGEND_LINE * lines + 5)
        figure.suptitle(panels.title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
        short = [f"{SHORT[arm]}: {IN_WORDS[arm]}" for arm in panels.arms if arm in SHORT]
        text = " ".join([f"{'; '.join(short)}.", *notes] if short else notes)
        wrapped = textwrap.fill(text, round(17.5 * width))
        note = figure.supxlabel(wrapped, fontsize=6.5, color=PALE, x=0.01, ha="left")
        figure.set_figheight(0.9 + (PANEL_HEIGHT + lines * LEGEND_LINE / 72) * len(rows))
    return Drawing(panels.name, figure, f"{panels.title}. {'. '.join(descriptions)}.", note)


def _validation_panel(axes: Axes, runs: Runs, epochs: int) -> list[Entry]:
    styles = arm_styles(runs)
    digits = max(len(achieved(of_arm).epochs) for of_arm in runs.values() if of_arm)
    entries: list[Entry] = []
    for order, (arm, of_arm) in enumerate(runs.items()):
        if of_arm:
            draw_runs(
                axes, of_arm, validation_curve, styles[arm], order, len(runs), epochs, noisy=True
            )
            entries.append((sample(styles[arm]), f"{_short(arm)} {_achieved(of_arm, digits)}"))
        else:
            entries.append((_blank(), f"{_short(arm)} not run"))
    for chance in sorted({run.chance for of_arm in runs.values() for run in of_arm}):
        axes.axhline(100 * chance, **LEVEL_LINE)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    return entries


def _achieved(runs: Sequence[Arm], digits: int) -> str:
    """The paper's legend: MaxVal 48.1 % Ep 133 Test 67.7 ± 1.8 %; or how it failed.

    Args:
        runs: of one arm.
        digits: of the longest epoch in this legend, so that what follows them is aligned.
    """
    came_to = achieved(runs)
    words = [f"{failure}," for failure in came_to.failures]
    if came_to.validation is not None and any(run.trained for run in runs):
        epochs = came_to.epochs.rjust(digits, "\N{FIGURE SPACE}")
        words.append(f"MaxVal {wording.percent(came_to.validation.mean)} Ep {epochs}")
    if came_to.test is not None:
        words.append(f"Test {wording.accuracy(came_to.test)}")
    return " ".join(words).rstrip(",")


def _sharing_panel(axes: Axes, runs: Runs, epochs: int) -> list[Entry]:
    styles = arm_styles(runs)
    entries: list[Entry] = []
    for order, (arm, of_arm) in enumerate(runs.items()):
        found = 0
        for weight, symbol, look in _weights(styles[arm]):
            drawn = [run for run in of_arm if weight_curve(run, weight).epochs.size]
            if drawn:
                found += 1

                def curve_of(run: Arm, weight: Weight = weight) -> Curve:
                    return weight_curve(run, weight)

                draw_runs(axes, drawn, curve_of, look, order, len(runs), epochs, noisy=False)
                entries.append((sample(look), f"{_short(arm)} {symbol} {ending(drawn, weight)}"))
        if not found:
            entries.append((_blank(), f"{_short(arm)} {_why_no_weights(of_arm)}"))
    axes.axhline(START, **LEVEL_LINE)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    return entries


def _weights(look: ArmStyle) -> tuple[tuple[Weight, str, ArmStyle], ...]:
    """The two parameters, how they are written, and how an arm's are drawn."""
    return (
        ("lambda_", "σ(λ)", look),
        ("m", "σ(m)", ArmStyle(look.color, DASHES, "D")),
    )


def _why_no_weights(runs: Sequence[Arm]) -> str:
    return ", ".join(achieved(runs).failures) or "without λ and m" if runs else "not run"


# Around the curves --------------------------------------------------------------------------------


def _short(arm: str) -> str:
    return SHORT.get(arm, shown(arm))


def _blank() -> Line2D:
    """In a legend, for what has no curve."""
    return Line2D([], [], linestyle="none")


def _legend(axes: Axes, entries: Sequence[Entry], columns: int) -> None:
    """Above the panel, where it covers no curve."""
    axes.legend(
        [handle for handle, _ in entries],
        [text for _, text in entries],
        ncols=columns,
        columnspacing=1.0,
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.985),
        borderpad=0.2,
        borderaxespad=0.0,
        labelspacing=0.25,
        handletextpad=0.4,
    )


def _leave_empty(axes: Axes, text: str) -> None:
    """A panel without a single run."""
    axes.set_facecolor("#f6f8fa")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=PALE)


def _row_heading(axes: Axes, title: str) -> None:
    """Left of the label of the row's axis."""
    axes.annotate(
        title,
        (0, 0.5),
        xytext=(-4, 0),
        xycoords=axes.yaxis.label,
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="center",
        fontsize=8.5,
        fontweight="bold",
        color=INK,
    )
