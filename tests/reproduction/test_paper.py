"""Table 1 and the paper's figures, of runs that nobody trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from reproduction.conditions import Results
from reproduction.paper import PRINTED, draw_paper, on_the_papers_images, printed, table1
from reproduction.plan import load_plan, pick
from tests.reproduction.plotted import digest
from tests.reproduction.toy import run

CELLS = load_plan("paper").cells()
CUB = pick(CELLS, ["cub"], ["meta-sgd", "maml++"])
USUAL = "cub/maml/batch-5/shot-5/rate-1x"

TABLE = """\
# Table 1

## The paper’s figures beside ours

### CUB, 5-way 5-shot

| method/tasks | original (paper) | original (ours) | gradient sharing (paper) | \
gradient sharing (ours) | rate-control (ours) | speed-up (paper) | speed-up (ours) | \
speed-up to 95 % (ours) |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| MAML/5 | 83.2 ± 1.4 % | 76.0 ± 2.5 % | 83.4 ± 1.4 % | 81.0 ± 2.5 % | 80.0 ± 2.5 % | 66 % | \
100 % | 50 % |
| MAML/1 | 82.6 ± 1.5 % | diverged | 82.7 ± 1.5 % | 78.0 ± 2.5 % |  | 44 % | – | – |

## The rest of the grid, for which the paper prints no figures

### CUB, 5-way 1-shot, 10× the inner rate

| method/tasks | original (ours) | gradient sharing (ours) | speed-up (ours) | \
speed-up to 95 % (ours) |
| --- | --- | --- | --- | --- |
| MAML/5 | not trained (20.0 ± 2.5 %) |  |  |  |

- 6 of 24 cells finished, one seed each.
- paper: as printed in its Table 1. ours: test accuracy of the ensemble of the 5 checkpoints with \
the highest validation accuracy ± 95 % interval over 600 test tasks.
"""


def finished(runs: dict[str, Any]) -> Results:
    return {cell: runs[cell.name] for cell in CELLS if cell.name in runs}


RESULTS = finished(
    {
        f"grid/{USUAL}/original": run((0.3, 0.5, 0.69, 0.7), test=0.76),
        f"grid/{USUAL}/gradient-sharing": run((0.3, 0.71, 0.6, 0.6), test=0.81),
        f"control/{USUAL}/rate-control": run((0.3, 0.7, 0.6, 0.6), test=0.80),
        "grid/cub/maml/batch-1/shot-5/rate-1x/original": run(test=None, outcome="diverged"),
        "grid/cub/maml/batch-1/shot-5/rate-1x/gradient-sharing": run(test=0.78),
        "grid/cub/maml/batch-5/shot-1/rate-10x/original": run(test=0.2, outcome="not trained"),
    }
)


def test_table_1_has_the_papers_figures_beside_ours_and_empty_cells_for_what_was_not_run() -> None:
    assert table1(CUB, RESULTS).startswith(TABLE)


def test_the_papers_figures_stand_beside_cells_of_their_own_settings_alone() -> None:
    beside = [cell for cell in CELLS if printed(cell.labels)]
    assert len(beside) == 2 * 3 * 2 * 3  # datasets, methods, task batches, arms
    assert {(c.config.shots, c.config.inner_lr_scale) for c in beside} == {(5, 1.0)}
    assert max(row["speedup"] for row in PRINTED["rows"]) == 1.34  # "up to 134 %"


def test_runs_on_a_part_of_a_dataset_are_left_out() -> None:
    whole, part = ({"gradshare": "0.2.0", "images": count} for count in (11_788, 9_000))
    first, second, *_ = CUB
    results = {first: run(environment=whole), second: run(environment=part)}
    assert list(on_the_papers_images(results)) == [first]


def test_the_papers_figures_have_a_panel_for_each_setting() -> None:
    learned = {"m": [[0.4, 0.6]] * 4, "lambda": [[0.5, 0.3]] * 4}
    cells = [cell for cell in CELLS if cell.study == "grid"]
    results = {c: run(learned=learned if "sharing" in c.labels["arm"] else {}) for c in cells}
    drawn = dict(draw_paper(results))
    assert list(drawn) == [f"figure-{number}" for number in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    counts = {name: len(figure.axes) for name, figure in drawn.items()}
    assert counts == {"figure-2": 6, "figure-3": 2} | {f"figure-{n}": 12 for n in range(4, 12)}
    # σ(m) is 0.5 and σ(λ) 0.4 in each epoch; the same two lines stand in each panel.
    lines = drawn["figure-3"].axes[0].lines
    values = set(np.concatenate([np.asarray(line.get_ydata()) for line in lines]).tolist())
    assert values == {0.5, 0.4}
    assert digest(drawn["figure-3"]) == digest(drawn["figure-5"])


def test_figures_without_a_run_are_not_drawn_and_panels_without_one_say_so() -> None:
    drawn = dict(draw_paper(RESULTS))
    assert list(drawn) == ["figure-4", "figure-8"]
    texts = [text.get_text() for axes in drawn["figure-8"].axes for text in axes.texts]
    assert texts == ["not run"] * 11
