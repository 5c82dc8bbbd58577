"""Tables and figures of studies, and the commands that make them."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.errors import RunError
from reproduction.drawing import save_all
from reproduction.conditions import (
    Condition,
    conditions,
    each_at_its_best,
    with_borrowed,
)
from reproduction.formats import latex, latex_text, markdown
from reproduction.plan import Cell, Study, load_plan
from reproduction.study_figures import draw_study
from reproduction.study_report import LEGEND, draw_studies, study_pages
from reproduction.study_tables import (
    accuracy_rows,
    best_rows,
    mechanism_rows,
    pace_rows,
    tables_of,
)
from reproduction.results import Arm, Results
from reproduction.table import Row
from gradshare.training.files import write_pages
from tests.reproduction.toy import PLAN, SEEDS, results_with
from tests.reproduction.synthetic_results import arm, comparison

ROWS = [{"what": "a|b & 50 %", "σ(λ)": "−1.2 ± 0.3"}, {"what": "", "σ(λ)": "–"}]

TWO = ("held", "half")

RATES = results_with(
    {
        f"rates/seed-{seed}/{rate}/{name}": arm(
            name, seed=seed, gain=gain, pace=4, tasks=40, epochs=12, noise=0.006 if gain else 0.0
        )
        for seed in range(3)
        for rate, name, gain in (
            ("rate-0.1", ORIGINAL, 0.25),
            ("rate-0.1", SHARING, 0.29),
            ("rate-0.1", RATE_CONTROL, 0.29),
            ("rate-1", ORIGINAL, 0.0),
            ("rate-1", SHARING, 0.2),
        )
    }
)


def test_rows_as_markdown_and_latex() -> None:
    assert markdown(ROWS) == (
        "| what | σ(λ) |\n| --- | --- |\n| a\\|b & 50 % | −1.2 ± 0.3 |\n|  | – |\n"
    )
    assert latex(ROWS, "50 % of λ_k").splitlines()[2:9] == [
        r"  \caption{50\,\% of $\lambda$\_k}",
        r"  \begin{tabular}{ll}",
        r"    \toprule",
        r"    what & $\sigma$($\lambda$) \\",
        r"    \midrule",
        r"    a|b \& 50\,\% & $-$1.2 $\pm$ 0.3 \\",
        r"     & -- \\",
    ]


def test_quotation_marks_are_those_of_latex() -> None:
    assert latex_text("“Never”: ≥ 50 %") == r"``Never'': $\geq$ 50\,\%"


def test_a_row_for_every_arm_of_every_condition() -> None:
    found = conditions(PLAN, RATES, "rates")
    accuracy, pace, mechanism = accuracy_rows(found), pace_rows(found, found), mechanism_rows(found)
    heads = [(row["rate"], row["arm"]) for row in accuracy]
    assert heads == [
        ("rate-0.1", ORIGINAL),
        ("rate-0.1", SHARING),
        ("rate-0.1", RATE_CONTROL),
        ("rate-1", ORIGINAL),
        ("rate-1", SHARING),
    ]
    for rows in (pace, mechanism):
        assert [(row["rate"], row["arm"]) for row in rows] == heads
    assert {row["seeds"] for row in accuracy} == {"3"}
    assert accuracy[0]["− original"] == "–"
    assert accuracy[1]["− original"] == "+3.2 ± 3.1 points (3.9)"
    assert accuracy[3]["outcome"] == "not trained"
    assert accuracy[3]["− rate-control"] == "–"
    # Where the original did not train there is no gain to have a share of.
    assert pace[4]["iterations to 80 / 90 / 95 %"] == "– / – / –"
    assert pace[0]["sooner, in iterations"] == "–"
    assert pace[1]["paper’s speed-up"] == "too short"
    assert pace[1]["sooner, in iterations"].count(" / ") == 2
    assert mechanism[0]["σ(λ) at the end"] == "–"
    assert mechanism[2]["σ(m) at the end"] == "–"
    assert re.fullmatch(r"\d+\.\d / \d+\.\d, gap \d+\.\d %", mechanism[1]["first third"])


def test_of_task_batches_it_is_told_how_the_differences_grow() -> None:
    study = PLAN.studies["batches"].model_copy(update={"sweep": "task_batch"})
    small, large = (
        Condition(
            "batches",
            {"batch": f"batch-{size}"},
            tuple(
                comparison(
                    [arm(SHARING, seed=s, test_shift=shift), arm(ORIGINAL, seed=s)],
                    config={"task_batch": size, "iterations_per_epoch": 50},
                )
                for s in (0, 1)
            ),
        )
        for size, shift in ((1, 0.02), (5, 0.06))
    )
    tables = dict(tables_of(study, [small, large]))
    caption = "How much larger these differences are than at batch-1, seed by seed and task by task"
    (row,) = tables[caption]
    assert (row["batch"], row["arm"], row["− rate-control"]) == ("batch-5", SHARING, "–")
    assert row["− original"] == "+4.00 ± 0.00 points (0.0)"
    # Of one task batch there is nothing to tell, and of other sweeps nobody asks it.
    assert caption not in dict(tables_of(study, [small]))
    swept = tables_of(PLAN.studies["rates"], conditions(PLAN, RATES, "rates"))
    assert not any("How much larger" in said for said, _ in swept)


def steps(name: str, seed: int, *, at: int) -> Arm:
    """A run that rises from 0.2 to 0.6 at once, at an epoch."""
    run = arm(name, seed=seed, epochs=12)
    points = tuple(
        point.model_copy(update={"accuracy": 0.6 if point.epoch >= at else 0.2})
        for point in run.validation
    )
    best = min(at, len(points))
    return run.model_copy(update={"validation": points, "best_epoch": best})


def sooner(*starts: tuple[int | None, int | None]) -> tuple[str, str]:
    """Both columns, of 80 %, for the epochs at which sharing and the original rise.

    Smoothed, each has 0.467 of 0.6 there, and 80 % of the gain, 0.52, two fifths of an epoch later.
    None: sharing never rises, the original was not run.
    """
    parts = []
    for seed, (mine, theirs) in enumerate(starts):
        runs = [steps(SHARING, seed, at=99 if mine is None else mine)]
        runs += [] if theirs is None else [steps(ORIGINAL, seed, at=theirs)]
        parts.append(comparison(runs, config={"iterations_per_epoch": 50}))
    condition = Condition("toy", {}, tuple(parts))
    row = pace_rows([condition], [condition])[0]
    assert row["arm"] == SHARING
    columns = ("iterations to 80 / 90 / 95 %", "sooner, in iterations")
    first, second = (row[column].split(" / ")[0] for column in columns)
    return first, second


def test_how_much_sooner_stands_with_its_interval() -> None:
    assert sooner((3, 5)) == ("170", "59 %")  # 5.4 epochs / 3.4 epochs
    # Two ratios, and on logarithms 12.7 times half their distance around their mean.
    first, second = math.log(5.4 / 3.4), math.log(8.4 / 2.4)
    mean, half = (first + second) / 2, 12.7062 * (second - first) / 2
    low, middle, high = (round(100 * math.expm1(mean + sign * half)) for sign in (-1, 0, 1))
    assert (low, middle) == (-98, 136)
    assert sooner((3, 5), (2, 8)) == ("145", f"136 % (−98 to {high})")
    assert sooner((3, 5), (3, 5), (3, None)) == ("170 (2 of 3)", "59 % (59 to 59, 2 of 3)")
    assert sooner((3, 5), (1, 5)) == ("≤ 110", "≥ 193 %")


def test_a_dash_is_what_cannot_be_told_and_never_what_was_not_reached() -> None:
    assert sooner((3, None)) == ("–", "–")
    assert sooner((None, 5)) == ("never", "never")
    assert sooner((None, 5), (None, None)) == ("never (1 of 2)", "never (1 of 2)")
    assert sooner((None, 5), (3, 5)) == ("1 of 2 got there", "1 of 2 got there")
    assert sooner((1, 1)) == ("≤ 50", "–")
    assert sooner((1, 5), (5, 1)) == ("≤ 160", "–")


def test_the_papers_speed_up_is_a_geometric_mean_with_its_interval() -> None:
    def peak(name: str, seed: int, at: int) -> Arm:
        run = steps(name, seed, at=2)
        points = tuple(
            run.validation[0].model_copy(
                update={"epoch": epoch, "accuracy": 0.7 if abs(epoch - at) < 2 else 0.6}
            )
            for epoch in range(1, 41)
        )
        points = (points[0].model_copy(update={"accuracy": 0.2}), *points[1:])
        return run.model_copy(update={"validation": points, "best_epoch": at - 1})

    parts = [
        comparison([peak(SHARING, seed, mine), peak(ORIGINAL, seed, theirs)])
        for seed, (mine, theirs) in enumerate([(6, 11), (11, 6)])
    ]
    condition = Condition("toy", {}, tuple(parts))
    (row,) = (row for row in pace_rows([condition], [condition]) if row["arm"] == SHARING)
    high = round(100 * math.expm1(12.7062 * math.log(2)))
    assert row["paper’s speed-up"] == f"0 % (−100 to {high})"  # the arithmetic mean has 25 %


def test_the_last_validation_says_of_how_many_seeds() -> None:
    lost = comparison([arm(SHARING, seed=1, epochs=0, outcome="diverged")])
    sound = steps(SHARING, 2, at=3)
    (row,) = accuracy_rows([Condition("toy", {}, (lost, comparison([sound])))])
    assert row["last validation"] == "60.0 % (1 of 2)"


def test_the_legend_says_what_the_marks_mean() -> None:
    for words in (
        "41 % sooner is 29 % fewer iterations and −25 % a third more",
        "“Never”: the arm did not get there in any seed",
        "“2 of 3 got there”: not in every seed, and then no mean is taken",
        "at least three runs of the arm, and as many of the original",
    ):
        assert words in LEGEND


def rows_at_best(study: Study, results: Mapping[Cell, Results]) -> list[Row]:
    found = conditions(PLAN, results, "rates")
    return best_rows(study, found, *each_at_its_best(found))


def test_each_arm_is_compared_at_the_rate_that_validation_chose() -> None:
    rows = rows_at_best(PLAN.studies["rates"], RATES)
    assert [(row["arm"], row["at"]) for row in rows] == [
        (ORIGINAL, "rate-0.1"),
        (SHARING, "rate-0.1"),
        (RATE_CONTROL, "rate-0.1, best of 1 of 2 settings"),
    ]
    high = {
        cell: found
        for cell, found in RATES.items()
        if cell.labels["arm"] != SHARING or cell.labels["rate"] == "rate-1"
    }
    by_arm = {row["arm"]: row for row in rows_at_best(PLAN.studies["rates"], high)}
    assert {name: row["at"] for name, row in by_arm.items()} == {
        ORIGINAL: "rate-0.1",
        SHARING: "rate-1, best of 1 of 2 settings",
        RATE_CONTROL: "rate-0.1, best of 1 of 2 settings",
    }
    assert by_arm[SHARING]["− original"].startswith("−")
    assert {row["seeds"] for row in by_arm.values()} == {"3"}


def test_a_setting_that_is_not_planned_for_an_arm_is_not_missed() -> None:
    sweep = PLAN.studies["rates"].model_copy(update={"leave_out": [["rate-1", RATE_CONTROL]]})
    rows = rows_at_best(sweep, RATES)
    assert [row["at"] for row in rows] == ["rate-0.1"] * 3


def test_a_sweep_is_drawn_against_its_setting() -> None:
    found = conditions(PLAN, RATES, "rates")
    (drawing,) = draw_study("rates", PLAN.studies["rates"], found, RATES)
    (axes,) = drawing.figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "inner rate"
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        ORIGINAL,
        SHARING,
        RATE_CONTROL,
        "chance 20.0 %",
        "a run that did not train",
    ]
    assert "Means over 3 seeds" in drawing.note.get_text()
    crosses = [np.asarray(line.get_xdata()) for line in axes.lines if line.get_marker() == "x"]
    assert [len(places) for places in crosses if len(places)] == [3]
    assert drawing.description.startswith("Test accuracy against inner rate: original: ")
    assert " at 0.1, " in drawing.description


def test_few_arms_are_drawn_as_curves() -> None:
    more = results_with(
        {f"controls/seed-{s}/{name}": arm(SHARING, seed=s) for s in (0, 1) for name in TWO}
    )
    drawn = draw_study(
        "controls", PLAN.studies["controls"], conditions(PLAN, more, "controls"), more
    )
    assert [drawing.name for drawing in drawn] == [
        "controls-validation",
        "controls-sharing",
        "controls-inner_loop",
    ]
    for drawing in drawn:
        said = " ".join(drawing.note.get_text().split())
        assert said.startswith("Which part is it? (toy images). MAML on glyphs.")
        assert max(map(len, drawing.note.get_text().splitlines())) <= 110
        assert drawing.description.startswith("Which part is it? (toy images). ")
    assert "over 2 seeds" in " ".join(drawn[0].note.get_text().split())


def test_curves_of_a_study_say_of_which_condition() -> None:
    results = results_with(
        {f"batches/seed-0/batch-1/{name}": arm(name, seed=0) for name in (ORIGINAL, SHARING)}
    )
    drawn = draw_study(
        "batches", PLAN.studies["batches"], conditions(PLAN, results, "batches"), results
    )
    assert drawn[0].name == "batches-batch-1-validation"
    for drawing in drawn:
        assert drawing.note.get_text().startswith("Other batches. batch-1. MAML on glyphs.")


def test_many_arms_are_put_beside_each_other() -> None:
    names = (ORIGINAL, RATE_CONTROL, "one", "two", "three", "four")
    study = Study.model_validate(
        {"title": "Which?", "axes": {"seed": SEEDS, "arm": {name: {} for name in names}}}
    )
    results = tuple(
        comparison([arm(name, seed=seed, test_shift=0.05 * (name == "two")) for name in names])
        for seed in (0, 1)
    )
    (drawing,) = draw_study("many", study, [Condition("many", {}, results)], {})
    left, right = drawing.figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == list(names)
    assert [axes.get_title(loc="left") for axes in (left, right)] == [
        "against original",
        "against rate-control",
    ]
    places = [
        float(np.asarray(container.lines[0].get_xdata())[0])
        for container in left.containers
        if isinstance(container, ErrorbarContainer)
    ]
    assert len(places) == len(names) - 1
    assert places.index(max(places)) == 2
    assert "Which? Means over 2 seeds" in drawing.note.get_text()


def test_many_comparisons_are_panels_of_one_figure() -> None:
    plan = load_plan("cpu")
    results = {
        cell: comparison(
            [arm(cell.config.arm, epochs=12)], config=cell.config.model_dump(mode="json")
        )
        for cell in plan.cells()
        if cell.study == "early"
        and (cell.labels["rate"] == "rate-1x" or "/maml/batch-5/" in cell.name)
    }
    found = conditions(plan, results, "early")
    drawn = draw_study("early", plan.studies["early"], found, results)
    assert [drawing.name for drawing in drawn] == ["early-validation", "early-sharing"]
    for drawing in drawn:
        assert len(drawing.figure.axes) == 3 * 4
    titles = [axes.get_title() for axes in drawn[0].figure.axes[:3]]
    assert titles == ["MAML", "Meta-SGD", "MAML++"]


def test_what_is_finished_is_written_and_what_is_not_is_said(tmp_path: Path) -> None:
    finished = RATES | results_with({"controls/seed-0/held": arm(SHARING, seed=0, tasks=40)})
    results = with_borrowed(PLAN, finished)
    paths = write_pages(tmp_path, study_pages(PLAN, PLAN.cells(), results))
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        "tables.md",
        "tables.tex",
        "cells.csv",
    }
    rows = list(csv.DictReader((tmp_path / "cells.csv").read_text("utf-8").splitlines()))
    assert len(rows) == 16
    held = next(row for row in rows if row["cell"] == "controls/seed-0/held")
    assert held["arm"] == "gradient-sharing-lambda-0.5"
    test = results[next(c for c in results if c.name == held["cell"])].arms[0].test
    assert test is not None
    assert float(held["test_accuracy"]) == test.accuracy
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    tex = (tmp_path / "tables.tex").read_text(encoding="utf-8")
    assert tex.isascii()
    assert tex.startswith("% To be read into a document that has \\usepackage{booktabs}.\n")
    assert (
        "## Accuracy against the rate\n\nStudy `rates`. So far 15 of 18 runs are finished." in text
    )
    assert "## Which part is it?\n\nStudy `controls`. Toy images. So far 1 of 6 runs" in text
    assert "none of these figures belongs in a column of the paper’s Table 1" in text
    assert "batches" not in text
    figures = save_all(draw_studies(PLAN, with_borrowed(PLAN, RATES)), tmp_path / "figures")
    assert [path.name for path in figures] == [
        "contrast.png",
        "contrast.svg",
        "rates.png",
        "rates.svg",
    ]
    assert all(path.stat().st_size for path in figures)


def test_a_part_of_a_dataset_is_said_wherever_its_results_stand() -> None:
    plan = load_plan("cpu")
    assert not any("images" in study.note for study in plan.studies.values())
    cells = [cell for cell in plan.cells() if cell.study == "mini-1-shot"]

    def page(images: int | None) -> str:
        recorded = {} if images is None else {"images": images}
        results = {
            cell: comparison(
                [arm(cell.config.arm, seed=cell.config.seed, epochs=12)],
                config=cell.config.model_dump(mode="json"),
                environment=recorded,
            )
            for cell in cells
        }
        return study_pages(plan, plan.cells(), results)["tables.md"]

    assert "Study `mini-1-shot`. 30,000 of the 60,000 images of mini-ImageNet.\n" in page(30_000)
    for whole in (60_000, None):
        assert "Study `mini-1-shot`.\n" in page(whole)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("", encoding="utf-8")
    with pytest.raises(RunError) as error:
        save_all(draw_studies(PLAN, RATES), tmp_path / "figures")
    assert str(error.value) == (
        f"{tmp_path / 'figures'}: the folder cannot be made: File exists; choose another "
        "output folder"
    )
