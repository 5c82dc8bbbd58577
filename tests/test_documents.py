"""The code in the documents and the examples does what they say."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import pytest
import torch
import yaml
from click.testing import CliRunner

import gradshare as gs
from gradshare.cli import cli
from gradshare.config import stored, train
from tests.tasks.builders import make_image

ROOT = Path(__file__).parent.parent

PAGES = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "reproduction/README.md", *PAGES]

SHORT = ["--epochs=1", "--iterations-per-epoch=2", "--val-tasks=3", "--test-tasks=3"]


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text(document), flags=re.DOTALL)


def run(code: str, name: str, names: dict[str, Any]) -> None:
    exec(compile(code, name, "exec"), names)


# Every Python block of every page

QUERIES = ("garden.jpg", "pond.jpg")

# Changes of the code of a page, so that it takes seconds instead of minutes.
QUICK_START = {
    '"glyphs", "data"': '"tiny", DATA',
    "ways=5, shots=1": "ways=3, shots=1, queries=4",
    "ways=5, image_size=28": "ways=3, filters=4, image_size=16",
    "epochs=4, iterations=30": "epochs=1, iterations=2, val_tasks=3",
    "tasks=200": "tasks=3",
}
FASTER = {
    "README.md": QUICK_START,
    "docs/index.md": QUICK_START,
    "docs/datasets.md": {'"glyphs", "data"': '"tiny", DATA'},
    "docs/features.md": {
        '"signs", "data"': '"tiny", DATA',
        '"mobilenet_v3_small.onnx"': f'"{ROOT}/tests/own_backbones.py:toy"',
        "ways=5, shots=5": "ways=3, shots=2, queries=3",
        "MLP(ways=5": "MLP(ways=3",
        '"epochs": 10, "iterations": 30': '"epochs": 1, "iterations": 2, "val_tasks": 3, '
        '"start_iterations": 5',
    },
    "docs/comparing.md": {
        "queries=15": "queries=3",
        "steps=5": "steps=2",
        "rates = 0.02, 0.05, 0.2": "rates = 0.05, 0.2",
        '"epochs": 10, "iterations": 100,': '"epochs": 1, "iterations": 2, "val_tasks": 3,',
        '"task_batch": 4': '"test_tasks": 3, "executor": ThreadPoolExecutor(1), "task_batch": 2',
        "seeds=3": "seeds=1",
        "seeds=4": "seeds=2",
        "epochs=10, iterations=100": "epochs=1, iterations=2, val_tasks=3, test_tasks=3, "
        "executor=ThreadPoolExecutor(1)",
    },
}


class Ran(NamedTuple):
    """What the Python blocks of a page defined and printed, and the folder they ran in."""

    names: dict[str, Any]
    printed: str
    home: Path


@pytest.fixture(scope="module")
def ran(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """Runs all Python blocks of a page in turn, in a folder of its own; each page once."""
    done: dict[str, Ran] = {}

    def run_page(document: str) -> Ran:
        if document not in done:
            home = tmp_path_factory.mktemp("page")
            code = blocks(document)
            for old, new in FASTER.get(document, {}).items():
                assert any(old in block for block in code), old
                code = [block.replace(old, new) for block in code]
            names = {"DATA": str(data_root), "ThreadPoolExecutor": ThreadPoolExecutor}
            with chdir(home), contextlib.redirect_stdout(io.StringIO()) as printed:
                Path("reproduction").symlink_to(ROOT / "reproduction")
                if document in ("docs/index.md", "docs/classifier.md"):
                    make_photographs_and_a_run(data_root)
                for block in code:
                    run(block, document, names)
            done[document] = Ran(names, printed.getvalue(), home)
        return done[document]

    return run_page


def make_photographs_and_a_run(data_root: Path) -> None:
    """What the classifier of the quick start reads."""
    for path in [f"new-birds/{name}/{n}.jpg" for name in ("crow", "lark", "owl") for n in (1, 2)]:
        make_image(Path(path), shade=len(path))
    for shade, path in enumerate(QUERIES):
        make_image(Path(path), shade=50 + 100 * shade, size=40)
    sizes = {"ways": 3, "queries": 4, "filters": 4, "epochs": 1, "iterations_per_epoch": 2}
    tests = {"val_tasks": 3, "test_tasks": 3, "device": "cpu"}
    config = gs.RunConfig(dataset="tiny", data_root=data_root, **sizes, **tests)
    train(config, "runs/birds/runs/gradient-sharing/seed-0")


@pytest.mark.usefixtures("few_calibration_tasks")
@pytest.mark.parametrize("document", [page for page in DOCUMENTS if blocks(page)])
def test_every_python_block_of_a_page_runs(document: str, ran: Callable[[str], Ran]) -> None:
    assert ran(document).names


def test_the_readmes_python_is_the_example_and_has_at_most_20_lines() -> None:
    (quick_start,) = blocks("README.md")
    assert quick_start in text("examples/quick_start.py")
    assert len([line for line in quick_start.splitlines() if line.strip()]) <= 20


def test_the_quick_start_says_how_many_letters_are_right(ran: Callable[[str], Ran]) -> None:
    assert re.search(r"^\d+% of 75 new letters are right$", ran("README.md").printed, re.M)


def test_the_photographs_of_the_quick_start_are_classified(ran: Callable[[str], Ran]) -> None:
    predicted = ran("docs/index.md").printed.splitlines()[-1].strip("[]").replace("'", "").split()
    assert len(predicted) == 2
    assert set(predicted) <= {"crow", "lark", "owl"}


def test_the_documented_program_predicts_without_torch(ran: Callable[[str], Ran]) -> None:
    page = ran("docs/classifier.md")
    *_, program = blocks("docs/classifier.md")
    assert len([line for line in program.splitlines() if line.strip()]) <= 25
    program += "import sys\nassert not {'torch', 'gradshare'} & {*sys.modules}\n"
    words = [sys.executable, "-c", program]
    found = subprocess.run(words, cwd=page.home, capture_output=True, text=True, check=True)
    expected = page.names["classifier"].predict([page.home / name for name in QUERIES])
    assert found.stdout == f"{expected.tolist()}\n"


def test_the_documented_store_is_found_by_its_name_and_trained_on(
    ran: Callable[[str], Ran], tiny: dict[str, Any], tmp_path: Path
) -> None:
    own = ran("docs/bring-your-own.md")
    mine = {**tiny, "dataset": "mine", "data_root": own.home / "data", "epochs": 1}
    assert train(gs.RunConfig(**mine), tmp_path / "mine").history
    assert own.names["images"].batch([0]).support_x.shape == (1, 3, 1, 16, 16)


def test_the_documented_rule_learns_and_is_reported(ran: Callable[[str], Ran]) -> None:
    lines = gs.open_run(ran("docs/bring-your-own.md").home / "runs" / "lines")
    first, last = lines.history[0], lines.history[-1]
    assert len(first.learned["rule.beta"]) == 2
    assert first.learned != last.learned
    assert lines.score == "mae"


def test_the_documented_callback_ends_the_training(ran: Callable[[str], Ran]) -> None:
    def after_an_epoch(mae: float) -> Any:
        record = SimpleNamespace(mean={"mae": mae}.__getitem__)
        return SimpleNamespace(kind="epoch", history=[record])

    stop_early = ran("docs/bring-your-own.md").names["stop_early"]
    assert stop_early(after_an_epoch(0.001))
    assert not stop_early(after_an_epoch(0.1))


def test_the_documented_reptile_goes_towards_the_mean_of_the_adapted_parameters(
    ran: Callable[[str], Ran],
) -> None:
    own = ran("docs/bring-your-own.md").names
    reptile = own["Reptile"](own["Net"](classes=3), steps=2)
    meta, carried = reptile.init()
    tasks = own["train"].batch(range(4))
    reptile.outer_step(meta, carried, tasks, iteration=0).objective.mean().backward()
    ends = reptile.adapt(meta, carried, tasks).params
    for name, end in ends.items():
        theta = meta[f"model.{name}"]
        torch.testing.assert_close(theta.grad, (theta - end.mean(0)).detach())


def test_the_documented_outer_loop_learns_every_tensor(ran: Callable[[str], Ran]) -> None:
    own = ran("docs/bring-your-own.md").names
    before, _ = own["learner"].init()
    assert before.keys() == own["meta"].keys()
    assert not any(torch.equal(before[name], t) for name, t in own["meta"].items())


def test_a_run_has_the_files_that_the_page_on_training_lists(ran: Callable[[str], Ran]) -> None:
    rows = re.findall(r"^\| (`.*`) \|", text("docs/fit.md"), re.M)
    listed = [name.replace("N", "*") for row in rows for name in re.findall(r"`(.*?)`", row)]
    assert "run.json" in listed
    listed.remove("config.yaml")  # of a run that the program started
    folder = ran("docs/fit.md").home / "runs" / "sinusoids"
    assert all(list(folder.glob(name)) for name in listed)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    accounted = {str(p.relative_to(folder)) for name in listed for p in folder.glob(name)}
    assert all(
        name in accounted or name.startswith("tensorboard/") for name in found - {".lock"}
    ), found - accounted


def test_the_documented_dataset_gives_the_documented_tasks(ran: Callable[[str], Ran]) -> None:
    assert "# support_x: float32 (4, 5, 1, 28, 28)" in text("docs/datasets.md")
    tasks = ran("docs/datasets.md").names["tasks"]
    assert tasks.support_x.dtype == torch.float32
    assert tasks.support_x.shape == (4, 5, 1, 16, 16)


def test_the_documented_comparison_has_a_control_and_takes_another_arm_and_seed(
    ran: Callable[[str], Ran],
) -> None:
    page = ran("docs/comparing.md")
    assert "There was no control" not in page.printed
    assert "('original', 'momentum', 'larger-steps') (0,)" in page.printed
    results = gs.load_results(page.home / "runs" / "momentum")
    assert (results.arms[-1], results.seeds) == ("half-rate", (0, 1))


# Commands


def commands() -> list[str]:
    """Every `gradshare …` of a console block."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, "console"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split("$ ", 1)[1] for line in lines if "$ gradshare " in line]
    return found


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_has_only_options_that_exist(command: str) -> None:
    _, *words = command.split(" #", maxsplit=1)[0].split()
    group: click.Command = cli
    while isinstance(group, click.Group):
        name, found, words = group.resolve_command(click.Context(group), words)
        assert name is not None
        assert found is not None
        group = found
    options = {name for param in group.params for name in (*param.opts, *param.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= options


def test_the_documented_command_and_yaml_are_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    (command,) = blocks("docs/bring-your-own.md", "console")
    gradshare, *words = command.removeprefix("$ ").replace("\\\n", " ").split()
    assert gradshare == "gradshare"
    result = CliRunner().invoke(cli, [*words, *SHORT], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (settings,) = blocks("docs/bring-your-own.md", "yaml")
    config = stored("runs/named")
    from_yaml = gs.RunConfig(**yaml.safe_load(settings))
    changed = {"epochs", "iterations_per_epoch", "val_tasks", "test_tasks", "data_root"}
    assert config.model_dump(exclude=changed) == from_yaml.model_dump(exclude=changed)
    assert gs.open_run("runs/named").learner is not None


@pytest.mark.usefixtures("in_this_process")
def test_the_documented_command_compares_its_arms_and_writes_the_listed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    block, *_ = blocks("docs/comparing.md", "console")
    compare, report = (line.split()[2:] for line in block.replace("\\\n", " ").splitlines())
    for words in ([*compare, *SHORT, "--seeds=1"], report):
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert gs.load_results("runs/beats").arms == ("original", "Momentum", "rate-control")
    listed = ["report.html", "results.json", "runs/ARM/seed-N/"]
    assert all(f"| `{name}` |" in text("docs/comparing.md") for name in listed)
    assert all(list(Path("runs/beats").glob(re.sub("ARM|N", "*", name))) for name in listed)


# Examples


def shortened(example: str, *, tasks: int = 5, **numbers: int) -> str:
    code = text(f"examples/{example}")
    for word, number in {"val_tasks": 3, "tasks": tasks, **numbers}.items():
        code = re.sub(rf"\b{word}=\d+", f"{word}={number}", code)
    return code


@pytest.mark.parametrize(
    ("example", "last"),
    [
        ("own_data.py", r"predicted \[\d, \d, \d, \d, \d\] of \(0, 1, 2, 3, 4\)"),
        ("regression.py", r"at 0.5, where 2 is right: -?\d+\.\d+"),
        ("new_rule.py", r"learned momentum: \[0\.\d+, 0\.\d+, 0\.\d+\]"),
        ("callbacks.py", r"ended after 2 epochs of at most 20"),
    ],
)
def test_an_example_runs(
    example: str,
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run(shortened(example, epochs=2, iterations=2), example, {"__name__": "__main__"})
    assert re.fullmatch(last, capsys.readouterr().out.splitlines()[-1])


def test_the_sinusoid_example_learns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = shortened("sinusoid.py", tasks=50).replace("epochs=1,", "epochs=1, val_tasks=3,")
    errors = []
    for iterations in ("1", "20"):
        monkeypatch.setattr(sys, "argv", ["sinusoid.py", "--iterations", iterations])
        run(code, "sinusoid.py", {"__name__": "__main__", "__doc__": ""})
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0].strip() for line in lines] == [
            "original",
            "gradient sharing",
            "rate-control",
        ]
        errors.append([float(line.split()[-3]) for line in lines])
    assert all(after < before for before, after in zip(*errors, strict=True))


def test_the_page_of_examples_includes_each_program_but_the_readmes() -> None:
    included = re.findall(r"^--8<--\n(.*)\n--8<--$", text("docs/examples.md"), re.M)
    programs = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert sorted(included) == sorted(programs - {"examples/quick_start.py"})


def test_the_page_of_the_api_has_each_public_name() -> None:
    page = re.findall(r"^::: gradshare\.([\w.]+)", text("docs/api.md"), re.M)
    assert {*gs.__all__} <= {name.rsplit(".", 1)[-1] for name in page} | {"testing"}


# What the documents refer to. `make docs` checks the links between the pages of the site.


@pytest.mark.parametrize(
    "document", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "reproduction/README.md"]
)
def test_a_link_to_a_file_leads_to_one(document: str) -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", text(document)):
        assert (ROOT / document).parent.joinpath(path).exists(), path


def test_every_promise_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (?!promise|---)(.*) \| (.*) \|$", text("docs/reliability.md"), re.M)
    assert len(rows) > 20
    for promise, tests in rows:
        files = re.findall(r"`(\S+\.py)`", tests)
        assert files, promise
        assert all((ROOT / "tests" / file).is_file() for file in files), tests


def test_every_interval_on_the_page_of_the_reproduction_is_in_its_tables() -> None:
    tables = text("reproduction/results/cpu/tables.md")
    printed = set(re.findall(r"[−+]?\d+\.\d+ ± \d+\.\d+", text("docs/reproduction.md")))
    assert len(printed) > 50
    not_in_tables = {"+2.6 ± 4.7", "0.9 ± 0.2", "1.0 ± 0.2"}  # sharing less other controls
    assert {interval for interval in printed if interval not in tables} == not_in_tables
