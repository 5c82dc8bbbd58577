"""Table 1: the paper's figures stand beside cells of their own settings, and what is not there
stays empty."""

from __future__ import annotations

import csv
import re
from io import StringIO
from pathlib import Path

from gradshare.config import ORIGINAL, SHARING
from reproduction.grid import results_by_cell, standing, standings
from reproduction.plan import pick
from reproduction.table1 import (
    PAPER,
    Block,
    Column,
    Table,
    csv_text,
    latex,
    notes,
    page,
    printed,
    printed_table,
    table1,
    table1_pages,
)
from reproduction.results import save_results
from reproduction.speedup import paired_difference
from gradshare.training.files import write_pages
from tests.reproduction.synthetic_cells import finished, paper_cell, paper_cells, result_of

CELLS = pick(paper_cells(), ["cub", "maml"])
USUAL = "cub/maml/batch-5/shot-5/rate-1x"
RESULTS = finished(
    {
        f"grid/{USUAL}/original": {"gain": 0.60, "pace": 7.0},
        f"grid/{USUAL}/gradient-sharing": {"gain": 0.62, "pace": 3.0},
        f"control/{USUAL}/rate-control": {"gain": 0.61, "pace": 3.0},
        "grid/cub/maml/batch-1/shot-5/rate-1x/original": {"outcome": "diverged", "epochs": 3},
        "grid/cub/maml/batch-1/shot-5/rate-1x/gradient-sharing": {"gain": 0.6},
        "grid/cub/maml/batch-5/shot-1/rate-10x/original": {"gain": 0.0, "noise": 0.0},
    }
)

MARKDOWN = """\
# Table 1

## The paper’s figures beside ours

### CUB, 5-way 5-shot

| method/tasks | original (paper) | original (ours) | gradient sharing (paper) | \
gradient sharing (ours) | rate-control (ours) | speed-up (paper) | speed-up (ours) | \
speed-up to 95 % (ours) |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| MAML/5 | 83.2 ± 1.4 % | 76.2 ± 0.8 % | 83.4 ± 1.4 % | 81.1 ± 0.9 % | 80.2 ± 0.9 % | 66 % | \
0 % | 143 % |
| MAML/1 | 82.6 ± 1.5 % | diverged | 82.7 ± 1.5 % | 78.2 ± 0.9 % |  | 44 % | – | – |

## The rest of the grid, for which the paper prints no figures

### CUB, 5-way 1-shot, 10× the inner rate

| method/tasks | original (ours) | gradient sharing (ours) | speed-up (ours) | \
speed-up to 95 % (ours) |
| --- | --- | --- | --- | --- |
| MAML/5 | not trained (19.8 ± 0.8 %) |  |  |  |

- one
- two
"""

LATEX = r"""% To be read into a document that has \usepackage{booktabs}.
\begin{table}
\centering
\footnotesize
\setlength{\tabcolsep}{4pt}
\setlength{\belowcaptionskip}{6pt}
\caption{The paper's figures beside ours. one two}
\begin{tabular}{lrrrrrrrr}
\toprule
 & \multicolumn{2}{c}{original} & \multicolumn{2}{c}{gradient sharing} & \multicolumn{1}{c}{rate-control} & \multicolumn{2}{c}{speed-up} & \multicolumn{1}{c}{speed-up to 95\,\%} \\
\cmidrule(lr){2-3}\cmidrule(lr){4-5}\cmidrule(lr){6-6}\cmidrule(lr){7-8}\cmidrule(lr){9-9}
method/tasks & paper & ours & paper & ours & ours & paper & ours & ours \\
\midrule
\multicolumn{9}{l}{CUB, 5-way 5-shot} \\
MAML/5 & 83.2 $\pm$ 1.4\,\% & 76.2 $\pm$ 0.8\,\% & 83.4 $\pm$ 1.4\,\% & 81.1 $\pm$ 0.9\,\% & 80.2 $\pm$ 0.9\,\% & 66\,\% & 0\,\% & 143\,\% \\
MAML/1 & 82.6 $\pm$ 1.5\,\% & diverged & 82.7 $\pm$ 1.5\,\% & 78.2 $\pm$ 0.9\,\% &  & 44\,\% & -- & -- \\
\bottomrule
\end{tabular}
\end{table}
\begin{table}
\centering
\footnotesize
\setlength{\tabcolsep}{4pt}
\setlength{\belowcaptionskip}{6pt}
\caption{The rest of the grid, for which the paper prints no figures.}
\begin{tabular}{lrrrr}
\toprule
 & \multicolumn{1}{c}{original} & \multicolumn{1}{c}{gradient sharing} & \multicolumn{1}{c}{speed-up} & \multicolumn{1}{c}{speed-up to 95\,\%} \\
\cmidrule(lr){2-2}\cmidrule(lr){3-3}\cmidrule(lr){4-4}\cmidrule(lr){5-5}
method/tasks & ours & ours & ours & ours \\
\midrule
\multicolumn{5}{l}{CUB, 5-way 1-shot, 10$\times$ the inner rate} \\
MAML/5 & not trained (19.8 $\pm$ 0.8\,\%) &  &  &  \\
\bottomrule
\end{tabular}
\end{table}
"""  # noqa: E501

CSV_LINES = (
    "study,dataset,method,task_batch,shots,inner_lr_scale,arm,seed,batch_norm,outcome,epochs,"
    "best_epoch,val_accuracy,val_ci95,test_accuracy,test_ci95,test_tasks,ensemble,single_accuracy,"
    "single_ci95,minus_original,minus_original_ci95,speedup,speedup_to_80,speedup_to_90,"
    "speedup_to_95,seconds,paper_accuracy,paper_ci95,paper_speedup,command",
    "grid,cub,maml,5,5,10.0,gradient-sharing,0,transductive,,,,,,,,,,,,,,,,,,,,,,",
    "grid,cub,maml,1,5,1.0,original,0,transductive,diverged,3,3,0.3264591901190561,"
    "0.011523925570348127,,,,,,,,,,,,,94.19999999999999,0.826,0.015,,gradshare paper run "
    "--scale paper --only grid/cub/maml/batch-1/shot-5/rate-1x/original",
)


def rows(text: str) -> dict[str, dict[str, str]]:
    """The lines of a CSV file by their cell's study, task batch, shots, rate and arm."""
    names = ("study", "task_batch", "shots", "inner_lr_scale", "arm")
    return {" ".join(line[name] for name in names): line for line in csv.DictReader(StringIO(text))}


def test_markdown() -> None:
    assert page(table1(CELLS, RESULTS), ["one", "two"]) == MARKDOWN


def test_latex() -> None:
    assert latex(table1(CELLS, RESULTS), ["one", "two"]) == LATEX


def test_latex_takes_no_text_for_a_command() -> None:
    block = Block(r"\input{/etc} & 5_5 # $x^2$ {a} ~", (("−5 % – × ’",),))
    text = latex([Table("", (Column("n", PAPER),), (block,))], [])
    assert (
        r"\multicolumn{1}{l}{\textbackslash{}input\{/etc\} \& 5\_5 \# \$x\textasciicircum{}2\$ "
        r"\{a\} \textasciitilde{}} \\"
    ) in text
    assert "$-$5\\,\\% -- $\\times$ ' \\\\" in text


def test_csv_has_a_line_for_every_cell_and_raw_numbers() -> None:
    text = csv_text(CELLS, RESULTS)
    assert len(text.splitlines()) == 1 + len(CELLS)
    for line in CSV_LINES:
        assert line in text.splitlines()
    found = rows(text)
    original, sharing = (
        RESULTS[paper_cell(f"grid/{USUAL}/{arm}")].arms[0] for arm in (ORIGINAL, SHARING)
    )
    beside = found["grid 5 5 1.0 gradient-sharing"]
    assert sharing.test is not None
    assert float(beside["test_accuracy"]) == sharing.test.accuracy
    assert (beside["paper_accuracy"], beside["paper_ci95"]) == ("0.834", "0.014")
    assert (beside["speedup"], beside["paper_speedup"]) == ("0.0", "0.66")
    difference = paired_difference(sharing, original)
    assert difference is not None
    assert float(beside["minus_original"]) == difference.difference
    assert float(beside["minus_original_ci95"]) == difference.ci95
    control = found["control 5 5 1.0 rate-control"]
    assert control["speedup"] != ""
    assert control["paper_accuracy"] == ""
    assert found["grid 5 5 1.0 original"]["paper_speedup"] == ""


def test_a_cell_of_other_settings_never_stands_beside_the_papers_figures() -> None:
    """Every cell but those of 5-shot at the usual rate has an empty column of the paper's."""
    everything = {cell: result_of(cell, epochs=2) for cell in paper_cells()}
    with_figures = [cell for cell in everything if printed(cell.labels)]
    assert len(with_figures) == 2 * 3 * 2 * 3  # datasets, methods, task batches, arms
    assert {(c.config.shots, c.config.inner_lr_scale) for c in with_figures} == {(5, 1.0)}
    first, second = table1(paper_cells(), everything)
    assert [block.title for block in first.blocks] == [
        "CUB, 5-way 5-shot",
        "mini-ImageNet, 5-way 5-shot",
    ]
    assert [block.title for block in second.blocks] == [
        "CUB, 5-way 1-shot",
        "mini-ImageNet, 5-way 1-shot",
        "CUB, 5-way 5-shot, 10× the inner rate",
        "mini-ImageNet, 5-way 5-shot, 10× the inner rate",
        "CUB, 5-way 1-shot, 10× the inner rate",
        "mini-ImageNet, 5-way 1-shot, 10× the inner rate",
    ]
    assert PAPER not in {column.source for column in second.columns}


def test_what_was_not_run_stays_empty_beside_the_papers_figures() -> None:
    (table,) = table1(paper_cells(), {})
    ours = [place for place, column in enumerate(table.columns) if column.source == "ours"]
    for block in table.blocks:
        assert len(block.rows) == 6
        for row in block.rows:
            assert all((row[place] == "") is (place in ours) for place in range(len(row)))


def test_a_run_of_other_settings_stands_in_no_table(tmp_path: Path) -> None:
    cell = paper_cell(f"grid/{USUAL}/original")
    results = result_of(cell)
    other = results.model_copy(update={"config": {**results.config, "image_size": 28}})
    save_results(other, tmp_path / cell.name / "results.json")
    found = standing(cell, tmp_path)
    assert found.fault == (
        f"{tmp_path / cell.name} holds a run with image_size 28, the plan has 84"
    )
    assert results_by_cell([found]) == {}


def test_a_run_with_other_test_tasks_stands_in_no_table(tmp_path: Path) -> None:
    cell = paper_cell(f"grid/{USUAL}/original")
    file = tmp_path / cell.name / "results.json"
    results = result_of(cell, tasks=300)
    (run,) = results.arms
    for damaged in (run, run.model_copy(update={"test": None})):
        save_results(results.model_copy(update={"arms": (damaged,)}), file)
        found = standing(cell, tmp_path)
        assert found.state == "unreadable"
        assert found.fault == (
            f"{file} holds a run with the accuracies of 300 test tasks, the plan has 600"
        )
    save_results(result_of(cell, epochs=0, outcome="diverged"), file)
    assert standing(cell, tmp_path).state == "done"  # nothing was tested


def test_runs_of_other_images_are_not_read_beside_the_rest(tmp_path: Path) -> None:
    digests = ("a" * 64, "b" * 64, None, "b" * 64)
    cells = [cell for cell in CELLS if cell.config.dataset == "cub"][: len(digests)]
    for cell, digest in zip(cells, digests, strict=True):
        results = result_of(cell)
        recorded = {} if digest is None else {"images_sha256": digest}
        environment = {**results.environment, **recorded}
        results = results.model_copy(update={"environment": environment})
        save_results(results, tmp_path / cell.name / "results.json")
    found = standings(cells, tmp_path)
    assert [one.state for one in found] == ["unreadable", "done", "done", "done"]
    assert found[0].fault == (
        f"{tmp_path / cells[0].name / 'results.json'} is of other images of cub (SHA-256 "
        f"aaaaaaaaaaaa…) than {cells[1].name} (bbbbbbbbbbbb…), and so of other test tasks"
    )
    assert set(results_by_cell(found)) == set(cells[1:])
    # Of equally many the first are taken to be right, and each is sound alone.
    assert [one.state for one in standings(cells[:2], tmp_path)] == ["done", "unreadable"]
    assert standings(cells[:1], tmp_path)[0].state == "done"


def test_finished_cells_are_found_in_their_folders(tmp_path: Path) -> None:
    for cell, results in RESULTS.items():
        save_results(results, tmp_path / cell.name / "results.json")
    assert results_by_cell(standings(CELLS, tmp_path)) == RESULTS


def test_the_papers_table_is_whole_and_has_its_extremes() -> None:
    lines = printed_table().rows
    assert len({(line.dataset, line.method, line.batch) for line in lines}) == 2 * 3 * 2
    assert max(line.speedup for line in lines) == 1.34  # "up to 134%", its abstract says
    axes = {axis: {cell.labels[axis] for cell in paper_cells()} for axis in ("shots", "rate")}
    assert printed_table().shots in axes["shots"]
    assert printed_table().rate in axes["rate"]


def test_the_notes_say_what_the_numbers_are() -> None:
    said = " ".join(notes(CELLS, RESULTS))
    assert "6 of 24 cells finished, one seed each." in said
    assert "ensemble of the 5 checkpoints" in said
    assert "over 600 test tasks" in said
    assert "Batch norm is transductive throughout: all queries of a task are normalised" in said


def test_the_files_are_what_is_printed(tmp_path: Path) -> None:
    paths = write_pages(tmp_path, table1_pages(CELLS, RESULTS))
    assert [path.name for path in paths] == ["table1.md", "table1.tex", "table1.csv"]
    said = notes(CELLS, RESULTS)
    tables = table1(CELLS, RESULTS)
    texts = [path.read_text(encoding="utf-8") for path in paths]
    assert texts == [page(tables, said), latex(tables, said), csv_text(CELLS, RESULTS)]
    # Braces and environments of the LaTeX are closed.
    tex = re.sub(r"\\[{}%]", "", texts[1])
    assert tex.count("{") == tex.count("}")
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
