"""The program as its users meet it: what it prints, writes and refuses."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradshare.cli import main
from gradshare.config import RunConfig, train

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs `gradshare` with arguments; its status, output and error output."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradshare", *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def options(settings: dict[str, Any]) -> list[str]:
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def test_train_evaluate_and_report(program: Program, tiny: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    status, out, err = program("train", "--no-sharing", "--out", str(run), *options(tiny))
    assert (status, err) == (0, "")
    assert "original" in out
    assert f"Report: {run / 'report.html'}" in out
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    (arm,) = results["arms"]
    assert arm["name"] == "original"
    assert results["command"].startswith("gradshare train --no-sharing --out ")
    tested = f"accuracy {100 * arm['test']['accuracy']:.1f} ± "
    assert f"Test: {tested}" in out

    status, out, err = program("evaluate", str(run))
    assert (status, err) == (0, "")
    assert out.startswith(f"Ensemble: {tested}")
    assert "(8 tasks, ensemble of 2, transductive batch norm)\nBest checkpoint: accuracy " in out
    assert out.endswith("\nDifference from the run's own test: 0.0 ± 0.0 points\n")

    (run / "report.html").unlink()
    status, out, err = program("report", str(run))
    assert (status, err) == (0, "")
    assert (run / "report.html").exists()

    elsewhere = tmp_path / "out[lr=0.1][/b]"
    status, out, err = program("report", str(run), "--out", str(elsewhere))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"Report: {elsewhere / 'report.html'}"


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--data-root", "{}", "--out", "run"),
        ("data", "show", "glyphs", "--data-root", "{}"),
        ("evaluate", "{}"),
        ("report", "{}"),
    ],
)
def test_a_folder_that_may_not_be_looked_into_is_named(
    program: Program, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    look = Path.stat

    def stat(path: Path, **options: Any) -> Any:  # root may look into everything
        if path.is_relative_to(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.chdir(tmp_path)
    status, out, err = program(*(word.format(closed) for word in command))
    assert (status, out) == (1, "")
    assert re.fullmatch(
        rf"error: {re.escape(str(closed))}\S* cannot be used: Permission denied; give yourself "
        "permission to it and to the folders that it is in, or name another\n",
        err,
    )


def test_a_report_over_several_runs_needs_a_folder(program: Program, tmp_path: Path) -> None:
    status, out, err = program("report", str(tmp_path / "one"), str(tmp_path / "other"))
    assert (status, out) == (1, "")
    assert err == "error: a report over several runs needs --out FOLDER to be written to\n"


def test_compare_with_control_over_two_seeds(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "comparison"
    command = ("compare", "--control", "--seeds", "2", "--out", str(folder), *options(tiny))
    status, out, err = program(*command)
    assert (status, err) == (0, "")
    assert out.startswith("Training MAML on tiny (3-way 1-shot, task batch 2, 2 inner steps")
    assert (folder / "report.html").exists()
    for seed in (0, 1):
        home = folder / f"seed-{seed}"
        results = json.loads((home / "results.json").read_text(encoding="utf-8"))
        assert results["format_version"] == 1
        assert results["speedup_to_reach"].keys() == {"80", "90", "95"}
        arms = {arm["name"]: arm for arm in results["arms"]}
        assert list(arms) == ["original", "gradient-sharing", "rate-control"]
        for arm in arms.values():
            assert arm["seed"] == seed
            assert [v["epoch"] for v in arm["validation"]] == [1, 2, 3]
            assert arm["test"]["tasks"] == 8
            assert arm["test"]["ensemble"] == 2
            assert arm["test_single"]["ensemble"] == 1
            assert len(arm["inner_loop"]) == 3
        assert arms["original"]["sharing"] == []
        assert arms["rate-control"]["sharing"][0]["m"] is None
        assert 0 < arms["gradient-sharing"]["sharing"][0]["m"] < 1
        assert len(results["paired"]) == 3

    status, out, err = program("report", str(folder), "--out", str(tmp_path / "again"))
    assert (status, err) == (0, "")
    assert (tmp_path / "again" / "report.html").exists()

    status, _, err = program(*command)
    assert status == 1
    assert err.startswith(f"error: the output folder {folder} already holds ")


def test_a_comparison_has_its_own_arms_whatever_arm_its_settings_are_of(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Of a stored run it takes all but the arm, one that holds λ too."""
    stored = tmp_path / "config.yaml"
    stored.write_text(RunConfig(**{**tiny, "epochs": 1, "fixed_lambda": 0.5}).to_yaml())
    folder = tmp_path / "comparison"
    status, _, err = program("compare", "--config", str(stored), "--out", str(folder))
    assert (status, err) == (0, "")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in results["arms"]] == ["original", "gradient-sharing"]
    assert results["arms"][1]["sharing"][0]["lambda"] is not None


def test_a_comparison_is_not_continued_with_its_runs_elsewhere(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    for there, seeds, message in (
        (
            "gradient-sharing",
            "2",
            "of one seed ('gradient-sharing'); choose another --out for --seeds 2, or continue it "
            "without --seeds",
        ),
        (
            "seed-0",
            "1",
            "of several seeds ('seed-0'); choose another --out, or continue it with its --seeds",
        ),
    ):
        out = tmp_path / seeds
        (out / there).mkdir(parents=True)
        status, _, err = program(
            *("compare", "--resume", "auto", "--seeds", seeds, "--out", str(out), *options(tiny))
        )
        assert (status, err) == (1, f"error: {out} holds a comparison {message}\n")
        assert [path.name for path in out.iterdir()] == [there]


@pytest.mark.parametrize("command", ["train", "compare"])
def test_other_settings_are_refused_before_a_dataset_is_prepared(
    command: str, program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    out, root = tmp_path / "out", tmp_path / "root"
    run = out if command == "train" else out / "gradient-sharing"
    train(RunConfig(**{**tiny, "epochs": 1}), run)
    status, printed, err = program(
        *(command, "--resume", "auto", "--out", str(out)),
        *options({**tiny, "epochs": 1, "dataset": "glyphs", "data_root": root}),
    )
    assert (status, printed, err) == (
        1,
        "",
        f"error: {run} holds a run with dataset 'tiny', this one has 'glyphs'; continue it with "
        "its own settings, or choose another folder (--out)\n",
    )
    assert not root.exists()


def test_a_diverging_arm_is_a_result(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "comparison"
    status, out, err = program(
        "compare", "--out", str(folder), *options({**tiny, "outer_lr": 1e30})
    )
    assert (status, err) == (0, "")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [arm["outcome"] for arm in results["arms"]] == ["diverged", "diverged"]
    assert all(arm["message"].startswith("epoch 1, iteration ") for arm in results["arms"])
    assert results["speedup"] is None
    assert "diverged" in out
