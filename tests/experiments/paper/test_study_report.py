"""Tables and figures of studies, and the commands that make them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gradshare.errors import RunError
from gradshare.experiments.drawing import save_all
from gradshare.experiments.paper.conditions import conditions
from gradshare.experiments.paper.formats import comma_separated, latex, markdown
from gradshare.experiments.paper.study_figures import draw_study
from gradshare.experiments.paper.study_report import draw_studies, write_study_tables
from gradshare.experiments.paper.study_tables import accuracy_rows, mechanism_rows, pace_rows
from gradshare.experiments.results import ORIGINAL, RATE_CONTROL, SHARING
from tests.experiments.paper.toy import PLAN, results_with
from tests.experiments.synthetic_results import arm

ROWS = [{"what": "a|b & 50 %", "σ(λ)": "−1.2 ± 0.3"}, {"what": "", "σ(λ)": "–"}]

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


def test_rows_as_markdown_latex_and_csv() -> None:
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
    assert list(csv.DictReader(comma_separated(ROWS).splitlines())) == ROWS


def test_a_row_for_every_arm_of_every_condition() -> None:
    found = conditions(PLAN, RATES, "rates")
    accuracy, pace, mechanism = accuracy_rows(found), pace_rows(found), mechanism_rows(found)
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
    assert accuracy[1]["− original"] == "+3.2 ± 2.8 points (3.5)"
    assert accuracy[3]["outcome"] == "not trained"
    assert accuracy[3]["− rate-control"] == "–"
    # Where the original did not train there is no gain to have a share of.
    assert pace[4]["iterations to 80 / 90 / 95 %"] == "– / – / –"
    assert pace[0]["sooner, in iterations"] == "–"
    assert pace[1]["paper’s speed-up"] != "–"
    assert mechanism[0]["σ(λ) at the end"] == "–"
    assert mechanism[2]["σ(m) at the end"] == "–"
    assert mechanism[1]["over-fitting, first third"].startswith("+")


def test_a_sweep_is_drawn_against_its_setting() -> None:
    found = conditions(PLAN, RATES, "rates")
    (drawing,) = draw_study("rates", PLAN.studies["rates"], found)
    (axes,) = drawing.figure.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "inner rate"
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        ORIGINAL,
        SHARING,
        RATE_CONTROL,
        "chance",
        "a run that did not train",
    ]
    assert "3 seeds" in drawing.note.get_text()
    assert drawing.description.startswith("Test accuracy against inner rate: original: ")
    assert " at 0.1, " in drawing.description


def test_many_arms_are_put_beside_each_other() -> None:
    names = ("held", "half")
    more = results_with(
        {
            f"controls/seed-{seed}/{name}": arm(SHARING, seed=seed)
            for seed in (0, 1)
            for name in names
        }
    )
    study = PLAN.studies["controls"]
    few = draw_study("controls", study, conditions(PLAN, more, "controls"))
    assert [d.name for d in few] == [
        "controls-validation",
        "controls-sharing",
        "controls-inner_loop",
    ]


def test_what_is_finished_is_written_and_what_is_not_is_said(tmp_path: Path) -> None:
    results = RATES | results_with({"controls/seed-0/held": arm(SHARING, seed=0)})
    paths = write_study_tables(PLAN, results, tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        "tables.md",
        "tables.tex",
        *(
            f"tables/{study}-{table}.csv"
            for study in ("rates", "controls")
            for table in ("accuracy", "pace", "mechanism")
        ),
    }
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert (
        "## Accuracy against the rate\n\nStudy `rates`. So far 15 of 18 runs are finished." in text
    )
    assert "## Which part is it?\n\nStudy `controls`. Toy images. So far 1 of 6 runs" in text
    assert "none of these figures belongs in a column of the paper’s Table 1" in text
    assert "batches" not in text
    figures = save_all(draw_studies(PLAN, RATES), tmp_path / "figures")
    assert [path.name for path in figures] == ["rates.png", "rates.svg"]
    assert all(path.stat().st_size for path in figures)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("", encoding="utf-8")
    with pytest.raises(RunError) as error:
        save_all(draw_studies(PLAN, RATES), tmp_path / "figures")
    assert str(error.value) == (
        f"{tmp_path / 'figures'}: the folder cannot be made: File exists; choose another "
        "output folder"
    )
