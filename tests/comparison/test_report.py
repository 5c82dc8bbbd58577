from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradshare.cli.compare import report_command
from gradshare.comparison.figures import MOST_ARMS
from gradshare.comparison.plan import shown
from gradshare.comparison.report import write_report
from gradshare.comparison.results import FILENAME, Results, load_results, save_results
from gradshare.comparison.summary import arm_rows, as_text, verdict
from gradshare.errors import RunError
from tests.comparison.builders import (
    PICTURE,
    SAMPLE,
    arm_run,
    classification,
    regression,
    results_of,
)

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = (
    "[/x]",
    "<b>bold</b>",
    "x" * 60,
    "比較のための腕",
    "🦊 👩‍👩‍👧",
    "_under",
    "$x_1$",
    "{{ 7 * 7 }}",
    "&amp;",
    '" onload="alert(1)',
)


class Page(HTMLParser):
    """A page's text, tags, tables as rows of cells, and terms with what they are."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.terms: list[list[str]] = []
        self.headings: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "dt":
            self.terms.append(["", ""])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        within = self.open[-1] if self.open else ""
        if within != "style":
            self.words.append(data)
        if within in ("th", "td"):
            self.rows[-1][-1] += data
        elif within in ("dt", "dd"):
            self.terms[-1][within == "dd"] += data
        elif within == "h2":
            self.headings.append(data)


def page_of(results: Results, folder: Path) -> Page:
    return Page(write_report(results, folder).read_text(encoding="utf-8"))


def three_arms(**changes: Any) -> Results:
    return classification(
        "original", "sharing", "control", seeds=3, controls=["control"], **changes
    )


def test_the_page_says_all_that_the_results_hold(tmp_path: Path) -> None:
    results = three_arms(
        settings={"epochs": 4, "outer_lr": 0.001, "first_order": False, "shots": None},
        commands=("python compare.py --out 'a b'", "second"),
        notes=("sharing starts with another weight than original",),
    )
    page = page_of(results, tmp_path)
    said = verdict(results)
    for sentence in (said.headline, *said.sentences, *said.caveats, *results.notes):
        assert sentence in page.text
    assert page.headings == [
        "The arms",
        "Notes",
        "Learning curves",
        "Differences by task",
        "What the rules learned",
        "Settings",
        "Environment",
        "To reproduce",
    ]
    facts = [*results.settings.items(), *results.runs[0].environment.items()]
    assert page.terms == [[key, str(value)] for key, value in facts]
    assert "python compare.py --out 'a b'\nsecond" in "".join(page.words)
    assert "seeds 0, 1, 2 · 30 test tasks · score: accuracy (higher is better)" in page.text
    assert "the ensemble of the 5 best checkpoints" in page.text
    assert "95 % of the way from chance to the baseline’s best" in page.text


def test_a_test_on_another_dataset_is_said_beside_each_figure(tmp_path: Path) -> None:
    results = three_arms(tested_on="birds", yardsticks={"class mean": {"accuracy": [1.0, 1.0]}})
    page, text = page_of(results, tmp_path), as_text(results)
    assert page.rows[2][0] == "test accuracy on birds"
    assert "30 test tasks on birds · score: accuracy" in page.text
    for said in (page.text, text):
        assert "“original” on birds" in said
        assert "in accuracy on birds: " in said
        assert "has a test accuracy on birds of 100.0 ± 0.0 %: better than each arm" in said
    _, (differences, _) = figures_of(page)
    assert "test tasks on birds, sorted by the difference" in differences
    alone = classification("original", tested_on="birds")
    assert "“original” has a test accuracy on birds of" in as_text(alone)
    many = classification(*(f"arm {place}" for place in range(6)), tested_on="birds")
    assert "Of 5 arms compared with “arm 0” on birds: " in as_text(many)


def test_a_few_arms_are_the_columns_of_the_table_and_many_its_rows(tmp_path: Path) -> None:
    results = three_arms()
    rows = arm_rows(results)
    turned = [[column, *(row[column] for row in rows)] for column in rows[0]]
    assert page_of(results, tmp_path).rows[: len(turned)] == turned
    results = classification(*(f"arm {place}" for place in range(6)))
    rows = arm_rows(results)
    expected = [list(rows[0]), *(list(row.values()) for row in rows)]
    assert page_of(results, tmp_path).rows[: len(expected)] == expected


def test_yardsticks_are_in_the_table_and_explained(tmp_path: Path) -> None:
    page = page_of(three_arms(yardsticks={"class mean": {"accuracy": [0.25, 0.75]}}), tmp_path)
    assert page.rows[0][-1] == "class mean"
    assert any("50.0 ± 49.0 %" in cell for row in page.rows for cell in row)
    assert "Yardsticks are fitted to the support set of each test task alone" in page.text
    assert "Yardstick" not in page_of(three_arms(), tmp_path).text


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(three_arms(samples=(SAMPLE,)), tmp_path)
    assert "http" not in page.html
    assert "@import" not in page.html
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert "url(" not in page.html
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_tags_are_closed_in_order(tmp_path: Path) -> None:
    assert page_of(three_arms(samples=(SAMPLE,)), tmp_path).open == []


def figures_of(page: Page) -> list[tuple[str, str]]:
    """The SVG of each figure, and its description for a reader who cannot see it."""
    head = "data:image/svg+xml;base64,"
    found = [attributes for tag, attributes in page.tags if tag == "img"]
    return [
        (b64decode((image["src"] or "").removeprefix(head)).decode(), image["alt"] or "")
        for image in found
        if image["alt"]
    ]


def test_each_figure_is_described_for_a_reader_who_cannot_see_it(tmp_path: Path) -> None:
    (curves, first), (differences, second) = figures_of(page_of(three_arms(), tmp_path))
    assert "validation accuracy after each epoch" in first
    assert "difference from original on each test task" in second
    assert "<svg" in curves
    assert "<svg" in differences


def test_the_report_of_a_regression_has_no_accuracy_percent_or_chance(tmp_path: Path) -> None:
    results = regression("original", "sharing", "control", seeds=3, controls=["control"])
    page = page_of(results, tmp_path)
    others = page_of(three_arms(), tmp_path).text
    # But for 95 %: of confidence, and of the baseline's gain.
    for pattern in ("accuracy", "chance", r"\bpoints", "(?<!95 )%"):
        assert re.search(pattern, others)
        assert not re.search(pattern, page.text)
    assert "percent" not in page.text
    assert "score: error (lower is better)" in page.text
    drawn = "".join(svg for svg, _ in figures_of(page))
    assert ">validation error (mm)<" in drawn
    assert "%" not in re.sub("<style.*?</style>|style=.*?>", "", drawn, flags=re.DOTALL)


def test_a_single_arm_is_shown_without_differences(tmp_path: Path) -> None:
    page = page_of(classification("only"), tmp_path)
    assert page.headings == [
        "The arms",
        "Learning curves",
        "Settings",
        "Environment",
        "To reproduce",
    ]
    assert "minus that of" not in page.text


def test_arms_that_came_to_nothing_are_shown(tmp_path: Path) -> None:
    results = results_of(
        arm_run("base", validation=[], outcome="diverged"),
        arm_run("new", validation=[], outcome="diverged"),
    )
    page = page_of(results, tmp_path)
    assert verdict(results).headline in page.text
    assert "Learning curves" not in page.headings
    assert "test tasks ·" not in page.text


def test_values_of_the_environment_that_differ_are_listed_once_each(tmp_path: Path) -> None:
    runs = [
        arm_run("a", seed, validation=[0.4], environment={"torch": "2.13", "processor": name})
        for seed, name in enumerate(["AMD", "Intel", "AMD"])
    ]
    assert ["processor", "AMD; Intel"] in page_of(results_of(*runs), tmp_path).terms


def test_the_load_of_the_machine_is_said_beside_the_times(tmp_path: Path) -> None:
    run = arm_run("a", validation=[0.4], environment={"load": 3.5})
    assert (
        "the load average of the machine was 3.5 as the runs started"
        in page_of(results_of(run), tmp_path).text
    )
    assert "load" not in page_of(classification("a"), tmp_path).text


@pytest.mark.parametrize("columns", ["0", "20"])
def test_a_narrow_terminal_hides_nothing_of_a_comparison(tmp_path: Path, columns: str) -> None:
    save_results(three_arms(), tmp_path / FILENAME)
    shown = CliRunner().invoke(report_command, [str(tmp_path)], env={"COLUMNS": columns})
    assert shown.output == f"{as_text(three_arms())}\n\nReport: {tmp_path / 'report.html'}\n"


def test_text_of_users_is_never_markup(tmp_path: Path) -> None:
    results = classification(
        "$a_1$",
        *HOSTILE,
        controls=["<b>bold</b>"],
        settings={"<i>key</i>": "<i>value</i>\x1b"},
        commands=("run <i>\x00\ud800",),
        notes=("<i>note</i> {{ 7 * 7 }}" * 50,),
    )
    page = page_of(results, tmp_path)
    assert page.open == []
    assert not {"b", "i"} & {tag for tag, _ in page.tags}
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert [row[0] for row in page.rows[1 : 2 + len(HOSTILE)]] == ["$a_1$", *HOSTILE]
    assert all("&lt;b&gt;bold" in svg for svg, _ in figures_of(page))
    assert "49" not in re.findall(r"\d+", " ".join(page.words[:20]))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ud800]", page.html)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.text(st.characters(), min_size=1, max_size=60).map(shown),
        min_size=2,
        max_size=3,
        unique=True,
    )
)
def test_any_names_give_a_whole_page(tmp_path: Path, names: list[str]) -> None:
    page = page_of(classification(*names, tasks=3), tmp_path)
    assert page.open == []
    assert page.rows[0] == ["arm", *names]


def test_thousands_of_arms_have_a_table_and_figures_of_a_few(tmp_path: Path) -> None:
    results = classification(*(f"arm {place}" for place in range(300)), tasks=3)
    page = page_of(results, tmp_path)
    assert [row[0] for row in page.rows[1:301]] == list(results.arms)
    assert f"{MOST_ARMS} of the 300 arms are shown" in page.text
    assert "The table has the differences of all arms." in page.text


def classes_and_samples() -> Results:
    runs = [
        arm_run(
            arm,
            seed,
            validation=[0.4],
            test=[0.5, 0.7],
            by_class={"cat": cat, "dog": 0.7, "<b>": 0.9},
        )
        for arm, cat in (("base", 0.25), ("new", 1.0))
        for seed in range(2)
    ]
    return results_of(*runs, samples=(SAMPLE,))


def test_the_accuracy_by_class_is_a_table_with_the_hardest_class_first(tmp_path: Path) -> None:
    page = page_of(classes_and_samples(), tmp_path)
    assert "Accuracy by class" in page.headings
    start = page.rows.index(["class", "base", "new"])
    assert page.rows[start + 1 : start + 4] == [
        ["cat", "25.0 %", "100.0 %"],
        ["dog", "70.0 %", "70.0 %"],
        ["<b>", "90.0 %", "90.0 %"],
    ]


def test_of_many_classes_the_hardest_are_shown(tmp_path: Path) -> None:
    accuracies = {f"class {place}": place / 30 for place in range(30)}
    run = arm_run("a", validation=[0.4], test=[0.5], by_class=accuracies)
    page = page_of(results_of(run), tmp_path)
    assert "10 easier classes are in results.json" in page.text
    assert ["class 19", "63.3 %"] in page.rows
    assert "class 20" not in page.text


def test_sample_tasks_show_their_examples_and_what_each_arm_predicts(tmp_path: Path) -> None:
    page = page_of(classes_and_samples(), tmp_path)
    rows = [row for row in page.rows if row[0] in ("test task 0: support", "queries")]
    assert rows == [["test task 0: support", "cat", "dog"], ["queries", "cat", "dog"]]
    assert ["base", "✓", "✗ cat"] in page.rows
    assert ["new", "✓", "✓"] in page.rows
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert pictures.count(PICTURE) == 4


def test_what_rules_learned_is_a_table_by_inner_step_the_mean_over_seeds(tmp_path: Path) -> None:
    reports: list[Any] = [
        [{"gate": (0.5, 0.7)}, {"gate": (0.2, 0.6), "empty": ()}],
        [{"gate": (0.5, 0.7)}, {"gate": (0.4, 0.8)}],
    ]
    runs = [
        arm_run("new", seed, validation=[0.3, 0.4], learned=learned)
        for seed, learned in enumerate(reports)
    ]
    page = page_of(results_of(arm_run("base", validation=[0.3, 0.4]), *runs), tmp_path)
    start = page.rows.index(["quantity", "base", "new"])
    assert page.rows[start + 1 :] == [["gate", "–", "0.3, 0.7"], ["empty", "–", "–"]]


def test_results_that_were_read_from_their_file_give_the_same_page(tmp_path: Path) -> None:
    results = three_arms()
    save_results(results, tmp_path / FILENAME)
    first = write_report(results, tmp_path / "one").read_bytes()
    assert write_report(load_results(tmp_path), tmp_path / "two").read_bytes() == first


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file.report.*choose another output folder"):
        write_report(classification("a"), tmp_path / "file" / "report")
