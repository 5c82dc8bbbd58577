"""The code in the documents and the examples does what they say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

import gradshare as gs
from gradshare.cli import cli
from gradshare.config import stored, train
from tests.tasks.builders import make_image

ROOT = Path(__file__).parent.parent

SHORT = ["--epochs=1", "--iterations-per-epoch=2", "--val-tasks=3", "--test-tasks=3"]


def blocks(document: str, language: str = "python") -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run(code: str, name: str, names: dict[str, Any]) -> None:
    exec(compile(code, name, "exec"), names)


def replaced(code: str, changes: Mapping[str, str]) -> str:
    """The code with other words, each of which it must have had."""
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    return code


# README


def test_the_readmes_quick_start_is_the_example_and_at_most_20_lines() -> None:
    quick_start = blocks("README.md")[0]
    assert quick_start in (ROOT / "examples" / "quick_start.py").read_text(encoding="utf-8")
    assert len([line for line in quick_start.splitlines() if line.strip()]) <= 20


def test_the_quick_start_runs_and_runs_again(
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The same lines on a dataset of seconds instead of minutes.
    changes = {
        '"glyphs", "data"': f'"tiny", {str(data_root)!r}',
        "ways=5, shots=1": "ways=3, shots=1, queries=4",
        "ways=5, image_size=28": "ways=3, filters=4, image_size=16",
        "epochs=4, iterations=30": "epochs=1, iterations=2, val_tasks=3",
        "tasks=200": "tasks=3",
    }
    code = replaced(blocks("README.md")[0], changes)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run(code, "README.md", {"__name__": "__main__"})
        assert re.search(r"^\d+% of 75 new letters are right$", capsys.readouterr().out, re.M)


def test_the_readmes_photographs_are_classified(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["crow", "lark", "owl"]
    for path in [f"new-birds/{name}/{n}.jpg" for name in names for n in (1, 2)]:
        make_image(Path(path), shade=len(path))
    for path in ("garden.jpg", "pond.jpg"):
        make_image(Path(path))
    train(gs.RunConfig(**tiny), "runs/birds/runs/gradient-sharing/seed-0")
    capsys.readouterr()
    run(blocks("README.md")[1], "README.md", {"gs": gs, "Path": Path})
    predicted = capsys.readouterr().out.strip("[]\n").replace("'", "").split()
    assert len(predicted) == 2
    assert set(predicted) <= set(names)


# Examples


def shortened(example: str, *, tasks: int = 5, **numbers: int) -> str:
    code = (ROOT / "examples" / example).read_text(encoding="utf-8")
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
    for iterations in ("1", "40"):
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


# docs/bring-your-own.md


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the code of the page defines, run in an empty folder, which is `home`."""
    names: dict[str, Any] = {"home": tmp_path_factory.mktemp("own")}
    with chdir(names["home"]):
        for block in blocks("docs/bring-your-own.md"):
            run(block, "docs/bring-your-own.md", names)
    return names


def test_the_documented_store_is_found_by_its_name_and_trained_on(
    own: dict[str, Any], tiny: dict[str, Any]
) -> None:
    mine = {**tiny, "dataset": "mine", "data_root": own["home"] / "data", "epochs": 1}
    assert train(gs.RunConfig(**mine), own["home"] / "runs" / "mine").history
    assert own["images"].batch([0]).support_x.shape == (1, 3, 1, 16, 16)


def test_the_documented_rule_learns_and_is_reported(own: dict[str, Any]) -> None:
    lines = gs.open_run(own["home"] / "runs" / "lines")
    first, last = lines.history[0], lines.history[-1]
    assert len(first.learned["rule.beta"]) == 2
    assert first.learned != last.learned
    assert lines.score == "mae"


def test_the_documented_callback_ends_the_training(own: dict[str, Any]) -> None:
    def after_an_epoch(mae: float) -> Any:
        record = SimpleNamespace(mean={"mae": mae}.__getitem__)
        return SimpleNamespace(kind="epoch", history=[record])

    assert own["stop_early"](after_an_epoch(0.001))
    assert not own["stop_early"](after_an_epoch(0.1))


def test_the_documented_reptile_goes_towards_the_mean_of_the_adapted_parameters(
    own: dict[str, Any],
) -> None:
    reptile = own["Reptile"](own["Net"](classes=3), steps=2)
    meta, carried = reptile.init()
    tasks = own["train"].batch(range(4))
    reptile.outer_step(meta, carried, tasks, iteration=0).objective.mean().backward()
    ends = reptile.adapt(meta, carried, tasks).params
    for name, end in ends.items():
        theta = meta[f"model.{name}"]
        torch.testing.assert_close(theta.grad, (theta - end.mean(0)).detach())


def test_the_documented_outer_loop_learns_every_tensor(own: dict[str, Any]) -> None:
    before, _ = own["learner"].init()
    assert before.keys() == own["meta"].keys()
    assert not any(torch.equal(before[name], t) for name, t in own["meta"].items())


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


# docs/fit.md, docs/datasets.md, docs/configuration.md


def test_a_run_has_the_files_that_the_page_on_fit_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("docs/fit.md"):
        run(block, "docs/fit.md", names)
    assert "peak memory" in capsys.readouterr().out
    text = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \|", text, re.M)
    listed = [name.replace("N", "*") for row in rows for name in re.findall(r"`(.*?)`", row)]
    assert "run.json" in listed
    listed.remove("config.yaml")  # of a run that the program started
    folder = Path("runs/sinusoids")
    assert all(list(folder.glob(name)) for name in listed)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    accounted = {str(p.relative_to(folder)) for name in listed for p in folder.glob(name)}
    assert all(
        name in accounted or name.startswith("tensorboard/") for name in found - {".lock"}
    ), found - accounted


def test_the_documented_dataset_gives_the_documented_tasks(data_root: Path) -> None:
    (code,) = blocks("docs/datasets.md")
    names: dict[str, Any] = {}
    run(replaced(code, {'"glyphs", "data"': f'"tiny", {str(data_root)!r}'}), "datasets.md", names)
    assert "# support_x: float32 (4, 5, 1, 28, 28)" in code
    tasks = names["tasks"]
    assert tasks.support_x.dtype == torch.float32
    assert tasks.support_x.shape == (4, 5, 1, 16, 16)


def test_the_documented_results_are_those_of_the_run(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    words = ["train", "--config", "tiny.yaml", "--out", "runs/first"]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    for block in blocks("docs/configuration.md"):
        run(block, "docs/configuration.md", {})
    validation, gates, tested = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(validation) == tiny["epochs"]
    assert len(gates) == stored("runs/first").inner_steps
    opened = gs.open_run("runs/first")
    assert opened.test is not None
    assert tested == opened.test.ensemble["accuracy"][:3]


# docs/comparing.md


def test_the_documented_comparison_runs_and_takes_another_arm_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second, third = blocks("docs/comparing.md")
    # Runs of a moment in this process, and fewer seeds.
    changes = {
        '"epochs": 10, "iterations": 100,': '"epochs": 1, "iterations": 2, "val_tasks": 3,',
        '"task_batch": 4': '"test_tasks": 3, "executor": ThreadPoolExecutor(1), "task_batch": 2',
        "seeds=3": "seeds=1",
    }
    names = {"__name__": "__main__", "ThreadPoolExecutor": ThreadPoolExecutor}
    run(replaced(first, changes), "docs/comparing.md", names)
    assert "There was no control" not in capsys.readouterr().out
    run(second, "docs/comparing.md", names)
    assert "('original', 'momentum', 'larger-steps') (0,)" in capsys.readouterr().out
    run(replaced(third, {"seeds=4": "seeds=2"}), "docs/comparing.md", names)
    results = gs.load_results("runs/momentum")
    assert (results.arms[-1], results.seeds) == ("half-rate", (0, 1))


def test_the_documented_command_compares_its_arms_and_writes_what_the_readme_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    (block,) = blocks("docs/comparing.md", "console")
    compare, report = (line.split()[2:] for line in block.replace("\\\n", " ").splitlines())
    for words in ([*compare, *SHORT, "--seeds=1"], report):
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert gs.load_results("runs/beats").arms == ("original", "Momentum", "rate-control")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `runs/birds/(.*?)` \|", readme, re.M)
    assert len(listed) == 3
    assert all(list(Path("runs/beats").glob(re.sub("ARM|N", "*", name))) for name in listed)


# All documents

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(document: Path) -> set[str]:
    """What a heading's link is on GitHub."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        target = document.parent / path if path else document
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_every_test_that_the_promises_name_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.endswith("| held by |")]
    assert all("`tests/" in row for row in promises)
