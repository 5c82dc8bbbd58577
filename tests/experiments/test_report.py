from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.errors import RunError
from gradshare.experiments.report import write_report
from gradshare.experiments.results import Results
from gradshare.experiments.table import arm_rows, comparison_rows
from gradshare.experiments.verdict import verdict
from tests.experiments.synthetic_results import COMMAND, CONFIG, ENVIRONMENT, arm, comparison, usual

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects a page's text, tags and attributes, its tables as rows of cells, the terms of its
    lists with what they are, and whether its tags are closed in order.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.terms: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = plain(" ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "dt":
            self.terms.append([""])
        elif tag == "dd":
            self.terms[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += plain(data)
        elif self.open and self.open[-1] in ("dt", "dd"):
            self.terms[-1][-1] += plain(data)


def plain(text: str) -> str:
    """A text with spaces and hyphens that lines may break at."""
    return " ".join(text.replace("\N{NON-BREAKING HYPHEN}", "-").split())


def assert_rows_are_on(page: Page, results: list[Results]) -> None:
    """The tables of the page are these rows under these columns, none of which is elsewhere."""
    expected = []
    for rows, left_out in (
        (comparison_rows(results), "batch norm"),
        # A column that says "trained" in every row is left out.
        (arm_rows(results), "outcome" if every_run_trained(results) else None),
    ):
        columns = [column for column in rows[0] if column != left_out]
        expected.append([columns, *([row[column] for column in columns] for row in rows)])
    assert page.tables == expected


def every_run_trained(results: list[Results]) -> bool:
    return all(run.outcome == "trained" for one in results for run in one.arms)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([usual()], tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written)


def test_the_folder_holds_the_page_and_the_figures(written: Path) -> None:
    folder = written.parent
    assert written.name == "report.html"
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        f"{name}.{suffix}"
        for name in ("inner_loop", "sharing", "validation")
        for suffix in ("png", "svg")
    ]


def test_the_page_needs_nothing_from_elsewhere(written: Path, page: Page) -> None:
    text = written.read_text()
    assert "http" not in text
    assert "@import" not in text
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)", text)


def test_the_page_is_well_formed(page: Page) -> None:
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", str(page.tags))
    hrefs = [(a.get("href") or "#")[1:] for _, a in page.tags if "href" in a]
    assert set(used) | set(hrefs) <= set(ids)


def test_every_number_is_on_the_page(page: Page) -> None:
    said = verdict([usual()])
    for sentence in (said.headline, *said.sentences, *said.caveats):
        assert sentence.replace("`", "") in page.text
    assert_rows_are_on(page, [usual()])
    facts = [
        [key, {"True": "yes", "None": "none"}.get(str(value), str(value))]
        for key, value in (*CONFIG.items(), *ENVIRONMENT.items())
    ]
    assert sorted(page.terms) == sorted(facts)
    assert COMMAND in page.text


def test_settings_are_grouped_as_in_the_help(page: Page) -> None:
    text = page.text[page.text.index("Settings") :]
    groups = ["Data", "Tasks", "Inner loop and sharing", "Outer loop", "Evaluation", "Machine and"]
    assert sorted(groups, key=text.index) == groups
    assert "Batch norm is transductive: all queries of a task are normalised together" in page.text


def test_settings_that_the_method_does_not_read_are_left_out(tmp_path: Path) -> None:
    shown = {}
    for method in ("maml", "maml++"):
        config = {**CONFIG, "method": method, "per_step_rates": True}
        results = comparison([arm(ORIGINAL, epochs=1)], method=method, config=config)
        shown[method] = "per_step_rates" in Page(write_report([results], tmp_path / method)).text
    assert shown == {"maml": False, "maml++": True}


def test_figures_can_be_told_without_seeing_them(page: Page) -> None:
    labels = [attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"]
    assert len(labels) == 3
    assert all(label and len(label) > 40 for label in labels)


def test_figures_follow_the_pages_colours(written: Path) -> None:
    text = written.read_text()
    body = text[text.index("<main>") :]
    for variable in ("--ink", "--paper", "--grid", "--original", "--sharing", "--control"):
        assert f"var({variable})" in body
    assert "#1f2328" not in body


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    results = comparison(
        [arm(evil, epochs=2), arm("original", epochs=2)],
        dataset=f"{evil} & co",
        method=evil,
        command=f"gradshare {evil}",
        config={**CONFIG, evil: evil, "list": [evil, 1]},
        environment={evil: {"a": evil}},
    )
    page = Page(write_report([results], tmp_path))
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.open == []
    assert page.text.count('alert("x")') >= 6


def test_several_seeds_are_one_report(tmp_path: Path) -> None:
    results = [usual(seed, epochs=12) for seed in (3, 1)]
    page = Page(write_report(results, tmp_path))
    assert "seeds 1, 3" in page.text
    assert "mean of 2" in page.text
    assert "in the row of means, over seeds and test tasks together" in page.text
    assert_rows_are_on(page, results)


def test_the_outcome_of_runs_is_told_where_it_is_not_the_same(tmp_path: Path) -> None:
    results = [comparison([arm(ORIGINAL), arm(SHARING, epochs=4, outcome="diverged")])]
    page = Page(write_report(results, tmp_path))
    assert_rows_are_on(page, results)
    assert "outcome" in page.tables[1][0]


@pytest.mark.parametrize(
    "results",
    [
        comparison([arm(ORIGINAL, epochs=3)]),
        comparison([arm(SHARING, epochs=0, outcome="diverged", message="loss nan")]),
        usual(epochs=1),
        comparison([arm(ORIGINAL, epochs=1, tasks=1), arm(SHARING, epochs=1, tasks=1)]),
        comparison([arm(RATE_CONTROL, epochs=2)], config={}, environment={}),
    ],
    ids=["one arm", "nothing", "one epoch", "one task", "no settings"],
)
def test_whatever_the_results_there_is_a_report(results: Results, tmp_path: Path) -> None:
    page = Page(write_report([results], tmp_path / "new" / "folder"))
    assert page.open == []
    assert verdict([results]).headline in page.text
    for stray in ("None", "nan ", "undefined"):
        assert stray not in page.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        RunError, match=r"file/figures: the folder cannot be made: .*choose another"
    ):
        write_report([usual(epochs=1)], tmp_path / "file")


def test_the_report_is_reproducible(tmp_path: Path) -> None:
    one, two = (
        write_report([comparison([arm(SHARING, epochs=2)])], tmp_path / name)
        for name in ("one", "two")
    )
    assert one.read_bytes() == two.read_bytes()


def test_a_report_is_written_though_one_seed_diverged_at_once(tmp_path: Path) -> None:
    broken = comparison(
        [
            arm(ORIGINAL, seed=2),
            arm(SHARING, seed=2, epochs=0, outcome="diverged"),
            arm(RATE_CONTROL, seed=2),
        ]
    )
    page = write_report([usual(seed=1), broken], tmp_path).read_text(encoding="utf-8")
    assert "diverged" in page


def test_a_report_is_written_though_every_arm_diverged_at_once(tmp_path: Path) -> None:
    broken = comparison(
        [arm(name, epochs=0, outcome="diverged") for name in (ORIGINAL, SHARING, RATE_CONTROL)]
    )
    page = write_report([broken], tmp_path).read_text(encoding="utf-8")
    assert "diverged" in page
