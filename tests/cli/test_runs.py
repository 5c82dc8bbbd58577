"""The program as its users meet it: what it prints, writes and refuses."""

from __future__ import annotations

import errno
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gradshare as gs
from gradshare.cli import main
from gradshare.config import RunConfig, build, open_run, train
from tests.conftest import prepare_tiny

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


def test_a_run_is_trained_and_evaluated(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "out[lr=0.1][/b]"
    status, out, err = program("train", "--no-sharing", "--out", str(run), *options(tiny))
    assert (status, err) == (0, "")
    test, path = out.splitlines()[-2:]
    assert re.fullmatch(
        r"Test: accuracy [\d.]+ ± [\d.]+ %, loss .* \(8 tasks, ensemble of 2.*", test
    )
    assert path == f"Run: {run}"

    status, out, err = program("evaluate", str(run))
    assert (status, err) == (0, "")
    ensemble, best, difference = out.splitlines()
    assert ensemble == test.replace("Test", "Ensemble")
    assert best.startswith("Best checkpoint: accuracy ")
    assert difference == "Difference from the run's own test: 0.0 ± 0.0 points"


def test_splits_that_were_drawn_are_said_beside_each_figure(
    program: Program, tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare_tiny(tmp_path, source={"splits": "drawn with seed 7"})
    said = "The splits of tiny were drawn with seed 7.\n"
    words = options({**tiny, "data_root": tmp_path})
    status, out, err = program("train", "--no-sharing", "--dry-run", *words)
    assert (status, err) == (0, "")
    assert out.startswith(f"{said}layout ")
    status, out, err = program("train", "--no-sharing", "--out", str(tmp_path / "run"), *words)
    assert (status, caplog.messages) == (0, [said.strip()])
    assert f" batch norm). {said}Run: " in out
    status, out, err = program("evaluate", str(tmp_path / "run"))
    assert (status, err) == (0, "")
    assert out.count(f" batch norm). {said}") == 2
    run = open_run(tmp_path / "run")
    assert run.source is not None
    assert str(run.evaluate(run.source, tasks=2)).endswith(f"). {said.strip()}")
    caplog.clear()
    parts = build(RunConfig(**{**tiny, "data_root": tmp_path, "sharing": False}))
    few: dict[str, Any] = {"epochs": 1, "iterations": 1, "val_tasks": 2, "progress": False}
    gs.fit(parts.learner, parts.train, parts.validation, out=tmp_path / "python", **few)
    assert caplog.messages == [said.strip()]


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


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("could not create a primitive\nand where"), "could not create a primitive"),
        (ImportError("libx.so: failed to map segment from shared object"), "libx.so: failed to"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
    ],
)
def test_memory_that_runs_out_anywhere_is_one_sentence(
    error: Exception, cause: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("gradshare.cli.compare.load_results", fail)
    status, out, err = program("report", "comparison")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: memory ran out ({cause}")
    assert err.endswith("); free some, or allow the program more\n")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("in_this_process")
def test_compare_with_control_over_two_seeds(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    prepare_tiny(tmp_path, source={"splits": "drawn with seed 0"})
    tiny |= {"data_root": str(tmp_path)}
    # Of a stored run it takes all but the arm, one whose λ is fixed too.
    stored = tmp_path / "config.yaml"
    stored.write_text(RunConfig(**tiny, fixed_lambda=0.5).to_yaml())
    folder = tmp_path / "comparison"
    words = ("--control", "--seeds", "2", "--epochs", "1")
    command = ("compare", *words, "--config", str(stored), "--out", str(folder))
    status, out, err = program(*command)
    assert (status, err) == (
        0,
        "warning: no arm has fixed_lambda 0.5, as the file says; the arms are original, "
        "gradient-sharing, rate-control\n",
    )
    assert out.startswith(
        "original, gradient-sharing, rate-control: 6 runs, 1 × 3 iterations each, on tiny; "
    )
    assert "\nThe splits of tiny were drawn with seed 0.\n" in out
    assert out.endswith(f"\n\nReport: {folder / 'report.html'}\n")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (results["baseline"], results["controls"]) == ("original", ["rate-control"])
    # No setting that is another in each arm, or that none of them reads.
    unread = {"sharing", "fixed_lambda", "multi_step_loss", "workers", "rule", "model_option"}
    settings = results["settings"].keys()
    assert {"epochs", "filters", "gradient-sharing: sharing_norm"} <= settings - unread
    assert not unread & settings
    root = tiny["data_root"]
    assert results["commands"] == [
        "gradshare data prepare tiny --format folder --from FOLDER --image-size 16 "
        f"--data-root {root}",
        shlex.join(["gradshare", *command, "--data-root", root]),
    ]

    (folder / "report.html").unlink()
    status, again, err = program("report", str(folder))
    assert (status, err) == (0, "")
    assert (folder / "report.html").exists()
    assert out.endswith(again)

    status, _, err = program(*command)
    assert status == 1
    assert f"\nerror: the output folder {folder} already holds " in err


def test_control_characters_of_names_do_not_reach_the_terminal(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    odd = str(tmp_path / "odd\x1b]0;title\x07")
    for words in (["train", "extra", odd], ["report", odd], ["train", "--config", odd]):
        _, _, err = program(*words)
        assert "odd\\x1b]0;title\\x07" in err
        assert not {"\x1b", "\x07"} & {*err}
    status, out, err = program("train", "--out", odd, *options({**tiny, "epochs": 1}))
    assert (status, err) == (0, "")
    assert out.endswith("odd\\x1b]0;title\\x07\n")


def test_a_comparison_has_one_process_a_run(program: Program, tiny: dict[str, Any]) -> None:
    status, out, err = program("compare", "--workers", "2", "--out", "x", *options(tiny))
    assert (status, out) == (1, "")
    assert err == (
        "error: --workers 2: `gradshare compare` trains each run in one process; leave it out, and "
        "give --cpus\n"
    )


def test_other_settings_are_refused_before_a_dataset_is_prepared(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    out, root = tmp_path / "out", tmp_path / "root"
    train(RunConfig(**{**tiny, "epochs": 1}), out)
    status, printed, err = program(
        *("train", "--resume", "auto", "--out", str(out)),
        *options({**tiny, "epochs": 1, "dataset": "glyphs", "data_root": root}),
    )
    assert (status, printed, err) == (
        1,
        "",
        f"error: {out} holds a run with dataset 'tiny', this one has 'glyphs'; continue it with "
        "its own settings, or choose another folder (--out)\n",
    )
    assert not root.exists()
