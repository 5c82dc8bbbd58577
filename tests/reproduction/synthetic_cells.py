"""What cells of the paper's plan might have come to, without training them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from reproduction.grid import command_of
from reproduction.plan import Cell, load_plan
from reproduction.results import Results
from tests.reproduction.synthetic_results import arm, comparison


@cache
def paper_cells() -> tuple[Cell, ...]:
    return tuple(load_plan("paper").cells())


def paper_cell(name: str) -> Cell:
    (cell,) = (cell for cell in paper_cells() if cell.name == name)
    return cell


def finished(traits: Mapping[str, dict[str, Any]]) -> dict[Cell, Results]:
    """Results of these cells, by name, of arms with these traits."""
    return {(cell := paper_cell(name)): result_of(cell, **its) for name, its in traits.items()}


def result_of(cell: Cell, **traits: Any) -> Results:
    run = arm(cell.config.arm, **{"epochs": 20, **traits})
    return comparison(
        [run],
        dataset=cell.config.dataset,
        method=cell.config.method,
        config=cell.config.model_dump(mode="json"),
        command=command_of("paper", cell),
    )
