"""The paper's Figures 2 to 11."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reproduction import wording
from reproduction.conditions import Results
from reproduction.drawing import Drawing
from reproduction.figures import Heading, Quantity, draw_curves, heading

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
