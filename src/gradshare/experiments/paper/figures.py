"""The paper's Figures 2 to 11, as far as their cells were run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.experiments.drawing import Drawing
from gradshare.experiments.paper.panels import (
    Heading,
    Panels,
    draw_sharing_panels,
    draw_validation_panels,
)
from gradshare.experiments.paper.plan import Cell
from gradshare.experiments.results import Results


def _heading(title: str, *labels: str) -> Heading:
    return Heading(title, frozenset(labels))


Quantity = Literal["validation", "sharing"]
QUANTITIES: Final[Mapping[Quantity, str]] = {
    "validation": "Validation accuracy",
    "sharing": "σ(m) and σ(λ)",
}

METHODS: Final = (
    _heading("MAML", "maml"),
    _heading("Meta-SGD", "meta-sgd"),
    _heading("MAML++", "maml++"),
)
TASKS: Final = (
    _heading("1-shot, 5 tasks", "shot-1", "batch-5"),
    _heading("1-shot, 1 task", "shot-1", "batch-1"),
    _heading("5-shot, 5 tasks", "shot-5", "batch-5"),
    _heading("5-shot, 1 task", "shot-5", "batch-1"),
)


@dataclass(frozen=True)
class PaperFigure:
    """One of the paper's figures.

    Attributes:
        number: in the paper.
        quantity: what is drawn over epochs: validation accuracy, or σ(m) and σ(λ).
        title: what its panels have in common, in words.
        labels: what its cells have in common.
        rows: of its panels.
        columns: of its panels.
    """

    number: int
    quantity: Quantity
    title: str
    labels: frozenset[str]
    rows: tuple[Heading, ...] = TASKS
    columns: tuple[Heading, ...] = METHODS


def _pair(number: int, title: str, *labels: str) -> tuple[PaperFigure, PaperFigure]:
    """The figure of a dataset and inner rate, and the one of m and λ that follows it."""
    return (
        PaperFigure(number, "validation", title, frozenset(labels)),
        PaperFigure(number + 1, "sharing", title, frozenset(labels)),
    )


FIGURES: Final = (
    PaperFigure(
        2, "validation", "mini-ImageNet", frozenset({"mini-imagenet", "rate-1x"}), rows=TASKS[:2]
    ),
    PaperFigure(
        3,
        "sharing",
        "a good and a pathological case",
        frozenset({"rate-1x"}),
        rows=(_heading(""),),
        columns=(
            _heading("CUB, MAML, 1-shot, 5 tasks", "cub", "maml", "shot-1", "batch-5"),
            _heading(
                "mini-ImageNet, MAML++, 5-shot, 1 task",
                *("mini-imagenet", "maml++", "shot-5", "batch-1"),
            ),
        ),
    ),
    *_pair(4, "CUB", "cub", "rate-1x"),
    *_pair(6, "mini-ImageNet", "mini-imagenet", "rate-1x"),
    *_pair(8, "CUB, 10× the inner rate", "cub", "rate-10x"),
    *_pair(10, "mini-ImageNet, 10× the inner rate", "mini-imagenet", "rate-10x"),
)


def draw_figures(results: Mapping[Cell, Results]) -> list[Drawing]:
    """Those of the paper's figures that have a curve to draw.

    The control, which the paper does not have, stands in them if it was run for any panel.

    Args:
        results: of the finished cells of the plan of scale "paper".
    """
    drawings = []
    for figure in FIGURES:
        own = {cell: one for cell, one in results.items() if _belongs(cell, figure)}
        runs = [run for one in own.values() for run in one.arms]
        arms = [ORIGINAL, SHARING] if figure.quantity == "validation" else [SHARING]
        if any(run.name == RATE_CONTROL for run in runs):
            arms.append(RATE_CONTROL)
        title = f"Figure {figure.number}. {QUANTITIES[figure.quantity]}: {figure.title}"
        name = f"figure-{figure.number}"
        panels = Panels(name, title, own, figure.rows, figure.columns, arms)
        if figure.quantity == "validation" and any(run.validation for run in runs):
            drawings.append(draw_validation_panels(panels))
        if figure.quantity == "sharing" and any(run.sharing for run in runs):
            drawings.append(draw_sharing_panels(panels))
    return drawings


def _belongs(cell: Cell, figure: PaperFigure) -> bool:
    """Whether a cell is in one of a figure's panels."""
    words = set(cell.labels.values())
    return any(
        figure.labels | row.labels | column.labels <= words
        for row in figure.rows
        for column in figure.columns
    )
