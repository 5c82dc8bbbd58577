"""The paper's figures: which there are, and what their panels have and say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from reproduction.drawing import STYLES, Drawing, save_all
from reproduction.figures import FIGURES, METHODS, TASKS, draw_figures
from reproduction.panels import Heading, Panels, draw_validation_panels
from reproduction.plan import Cell, Plan
from tests.reproduction.synthetic_cells import finished, paper_cells, result_of
from tests.reproduction.test_figures import data, lines

RUN = "maml/batch-5/shot-1/rate-1x"
USUAL: dict[str, dict[str, Any]] = {
    f"grid/mini-imagenet/{RUN}/original": {"pace": 9.0},
    f"grid/mini-imagenet/{RUN}/gradient-sharing": {"pace": 1.0},
}


def drawn(traits: dict[str, dict[str, Any]]) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in draw_figures(finished(traits))}


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def words(figure: Figure) -> list[str]:
    """What stands in each panel in the place of curves."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_only_figures_with_data_are_drawn_each_with_the_papers_panels() -> None:
    figures = drawn(USUAL)
    assert list(figures) == ["figure-2", "figure-6", "figure-7"]
    panels = {name: len(drawing.figure.axes) for name, drawing in figures.items()}
    assert panels == {"figure-2": 2 * 3, "figure-6": 4 * 3, "figure-7": 4 * 3}


def test_every_cell_is_in_the_figures_that_the_paper_has_it_in() -> None:
    numbers = {figure.number: figure for figure in FIGURES}
    assert list(numbers) == list(range(2, 12))
    for cell in paper_cells():
        own = set(cell.labels.values())
        panels = [
            figure.number
            for figure in FIGURES
            for row in figure.rows
            for column in figure.columns
            if figure.labels | row.labels | column.labels <= own
        ]
        first = {
            ("cub", "rate-1x"): 4,
            ("mini-imagenet", "rate-1x"): 6,
            ("cub", "rate-10x"): 8,
            ("mini-imagenet", "rate-10x"): 10,
        }[cell.labels["dataset"], cell.labels["rate"]]
        expected = {first, first + 1}
        if first == 6 and "shot-1" in own:
            expected.add(2)
        if first == 4 and {"maml", "shot-1", "batch-5"} <= own:
            expected.add(3)
        if first == 6 and {"maml++", "shot-5", "batch-1"} <= own:
            expected.add(3)
        assert sorted(panels) == sorted(expected), cell.name


def test_a_panel_has_its_cells_curves_and_the_papers_legend() -> None:
    results = finished(USUAL)
    figure = draw_figures(results)[1].figure
    first = figure.axes[0]
    for one in results.values():
        (run,) = one.arms
        (line,) = lines(first, STYLES[run.name].color, thick=False)
        assert data(line)[0].tolist() == [v.epoch for v in run.validation]
        np.testing.assert_allclose(data(line)[1], [100 * v.accuracy for v in run.validation])
    assert legend(first) == [
        "OG MaxVal 45.7 % Ep 20 Test 44.6 ± 0.9 %",
        "GS MaxVal 49.8 % Ep 12 Test 47.4 ± 0.9 %",
    ]
    assert first.get_title(loc="center") == "MAML"
    assert first.get_ylabel() == "validation accuracy (%)"
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch"] + [""] * 11


def test_what_was_not_run_is_visibly_empty() -> None:
    figure = drawn({f"grid/cub/{RUN}/original": {}})["figure-4"].figure
    headings = [row.title for row in TASKS]
    found = words(figure)
    assert found.count("not run") == 11
    assert [word for word in found if word != "not run"] == headings
    assert legend(figure.axes[0])[1] == "GS not run"
    assert all(not axes.lines for axes in figure.axes[1:])


def test_failures_stand_in_the_legend() -> None:
    figure = drawn(
        {
            f"grid/cub/{RUN}/original": {"outcome": "diverged", "epochs": 7},
            f"grid/cub/{RUN}/gradient-sharing": {"gain": 0.0, "noise": 0.0},
            f"control/cub/{RUN}/rate-control": {"outcome": "diverged", "epochs": 0},
        }
    )["figure-4"].figure
    first, second, third = legend(figure.axes[0])
    assert first == "OG diverged after epoch 7"
    assert second.startswith("GS did not train, Test 19.")
    assert third == "RC diverged at once"


def test_epochs_of_different_lengths_are_aligned() -> None:
    figure = drawn(
        {
            f"grid/cub/{RUN}/original": {"epochs": 150, "pace": 40.0},
            f"grid/cub/{RUN}/gradient-sharing": {"epochs": 9},
        }
    )["figure-4"].figure
    first, second = legend(figure.axes[0])
    assert re.search(r"Ep \d{3} Test", first)
    assert re.search(r"Ep \N{FIGURE SPACE}{2}\d Test", second)


def test_m_and_lambda_have_their_panels() -> None:
    results = finished(
        {
            f"grid/cub/{RUN}/original": {},
            f"grid/cub/{RUN}/gradient-sharing": {},
            f"control/cub/{RUN}/rate-control": {},
        }
    )
    figures = {drawing.name: drawing for drawing in draw_figures(results)}
    assert list(figures) == ["figure-3", "figure-4", "figure-5"]
    assert [len(figures[name].figure.axes) for name in ("figure-3", "figure-5")] == [2, 12]
    for name in ("figure-3", "figure-5"):
        axes = figures[name].figure.axes[0]
        sharing = list(results.values())[1].arms[0]
        gate, momentum = lines(axes, STYLES[SHARING].color, thick=False)
        np.testing.assert_allclose(data(gate)[1], [p.lambda_ or 0 for p in sharing.sharing])
        np.testing.assert_allclose(data(momentum)[1], [p.m or 0 for p in sharing.sharing])
        assert gate.get_linestyle() != momentum.get_linestyle()
        assert len(lines(axes, STYLES[RATE_CONTROL].color, thick=False)) == 1
        assert lines(axes, STYLES[ORIGINAL].color, thick=False) == []
        assert legend(axes) == ["GS σ(λ) 0.19", "GS σ(m) 0.32", "RC σ(λ) 0.19"]
        assert axes.get_ylim() == (0, 1)
    assert words(figures["figure-3"].figure).count("not run") == 1


def test_long_curves_are_running_means_and_the_note_says_so() -> None:
    name = f"grid/cub/{RUN}/original"
    long = drawn({name: {"epochs": 250, "pace": 40.0}})["figure-4"]
    short = drawn({name: {"epochs": 150, "pace": 40.0}})["figure-4"]
    color = STYLES[ORIGINAL].color
    assert len(lines(long.figure.axes[0], color, thick=False)) == 2
    assert len(lines(short.figure.axes[0], color, thick=False)) == 1
    assert "running means" in long.note.get_text()
    assert "running means" not in short.note.get_text()


def test_seeds_of_a_panel_are_averaged() -> None:
    plan = Plan.model_validate(
        {
            "settings": {},
            "studies": {
                "toy": {
                    "title": "toy",
                    "axes": {
                        "seed": {f"seed-{seed}": {"seed": seed} for seed in (0, 1)},
                        "method": {"maml": {}},
                        "arm": {"original": {"sharing": False}},
                    },
                }
            },
        }
    )
    results = {cell: result_of(cell, seed=cell.config.seed) for cell in plan.cells()}
    row = Heading("any", frozenset())
    drawing = draw_validation_panels(Panels("toy", "Toy", results, [row], METHODS[:1], [ORIGINAL]))
    (axes,) = drawing.figure.axes
    assert len(lines(axes, STYLES[ORIGINAL].color, thick=False)) == 2 + 1
    (text,) = legend(axes)
    assert text.startswith("OG MaxVal 48.")
    assert "over 2 seeds" in " ".join(drawing.note.get_text().split())


def test_figures_are_written_as_png_and_svg_the_same_every_time(tmp_path: Path) -> None:
    one = save_all(draw_figures(finished(USUAL))[:1], tmp_path / "new" / "one")
    two = save_all(draw_figures(finished(USUAL))[:1], tmp_path / "two")
    assert [path.name for path in one] == ["figure-2.png", "figure-2.svg"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert "OG MaxVal 45.7 % Ep 20 Test 44.6 ± 0.9 %" in one[1].read_text(encoding="utf-8")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: str(figure.number))
def test_no_two_panels_of_a_figure_share_a_cell(figure: Any) -> None:
    cells: list[Cell] = []
    for row in figure.rows:
        for column in figure.columns:
            labels = figure.labels | row.labels | column.labels
            cells += [cell for cell in paper_cells() if labels <= set(cell.labels.values())]
    assert cells
    assert len(set(cells)) == len(cells)
