"""The program as its users meet it: what it prints, writes and refuses."""

from __future__ import annotations

import errno
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradshare.cli import main, runs
from gradshare.cli.options import read_config
from gradshare.config import RunConfig
from gradshare.experiments.wording import accuracy, points
from gradshare.training.evaluation import measure_test
from gradshare.training.folder import RunFolder
from gradshare.training.setup import set_up
from gradshare.training.statistics import confidence95
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
    accuracy = f"{100 * arm['test']['accuracy']:.1f}"

    status, out, err = program("evaluate", str(run))
    assert (status, err) == (0, "")
    assert accuracy in out
    assert "transductive" in out
    assert "0.0 ± 0.0 points" in out  # from its own test, which it is again

    (run / "report.html").unlink()
    status, out, err = program("report", str(run))
    assert (status, err) == (0, "")
    assert (run / "report.html").exists()

    elsewhere = tmp_path / "out[lr=0.1][/b]"
    status, out, err = program("report", str(run), "--out", str(elsewhere))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"Report: {elsewhere / 'report.html'}"


def test_an_evaluation_computes_with_the_threads_that_it_is_given(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert program("train", "--out", str(run), *options({**tiny, "threads": 1}))[0] == 0
    before = torch.get_num_threads()
    try:
        for given, threads in (((), 1), (("--threads", "3"), 3)):
            status, _, err = program("evaluate", str(run), *given)
            assert (status, err) == (0, "")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_run_of_sharing_can_be_tested_without_what_was_shared(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    forget = ("--sharing-control", "forgotten")
    shared, control = tmp_path / "shared", tmp_path / "control"
    # Steps so long, and so much of ĝ in them, that it is missed.
    much = {**tiny, "inner_lr": 1.0, "fixed_lambda": 0.9}
    assert program("train", "--out", str(shared), *options(much))[0] == 0
    status, out, err = program("evaluate", str(shared), *forget, "--test-tasks", "3")
    assert (status, err) == (0, "")
    here = own_gradient_alone(shared, 3)
    assert here != own_gradient_alone(shared, 3, keep=True)
    own = json.loads((shared / "results.json").read_text(encoding="utf-8"))["arms"][0]
    there = own["test_accuracies"][:3]
    assert accuracy(confidence95(here)) in out
    assert points(confidence95([a - b for a, b in zip(here, there, strict=True)])) in out

    status, out, err = program("evaluate", str(shared), "--test-tasks", "9")
    assert "0.0 ± 0.0 points (first 8)" in out
    (shared / "results.json").write_text("{", encoding="utf-8")
    status, out, err = program("evaluate", str(shared), "--test-tasks", "3")
    assert (status, err) == (0, "")
    assert out.startswith("No difference from the run's own test: ")
    (shared / "results.json").unlink()
    status, out, err = program("evaluate", str(shared), *forget)
    assert (status, err) == (0, "")
    assert out.startswith(
        f"No difference from the run's own test: {shared / 'results.json'}: no such file; "
    )
    assert " points" not in out

    command = ("train", "--sharing-control", "rate-control", "--out", str(control))
    assert program(*command, *options(tiny))[0] == 0
    status, out, err = program("evaluate", str(control), *forget)
    assert (status, out) == (1, "")
    assert err == (
        f"error: --sharing-control forgotten takes ĝ away, which {control} (rate-control) has none "
        "of; leave it out, or name a run with gradient sharing\n"
    )


def own_gradient_alone(run: Path, tasks: int, *, keep: bool = False) -> list[float]:
    """Test accuracies of a run's ensemble when its ĝ is made zero by hand, unless it is kept."""
    folder = RunFolder(run)
    config = folder.config()
    setup = set_up(config)
    models = folder.best_models(folder.history(), config.ensemble, setup.learner.init())
    blank = [
        (learned, {n: t if "g_hat" not in n or keep else 0 * t for n, t in state.items()})
        for learned, state in models
    ]
    return list(measure_test(setup, blank, tasks, lambda _: None).ensemble)


def test_a_run_is_not_evaluated_on_other_images(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert program("train", "--out", str(run), *options(tiny))[0] == 0
    prepare_tiny(tmp_path / "other", train_classes=11)
    status, out, err = program("evaluate", str(run), "--data-root", str(tmp_path / "other"))
    assert (status, out) == (1, "")
    assert err.startswith(f"error: the run in {run} was started with images of SHA-256 ")
    assert err.endswith("or start another run\n")
    environment = json.loads((run / "results.json").read_text(encoding="utf-8"))["environment"]
    assert err.split("SHA-256 ")[1][:12] == environment["images_sha256"][:12]


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


def test_an_evaluation_that_runs_out_of_memory_says_what_to_do(
    program: Program, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    run = tmp_path / "run"
    assert program("train", "--out", str(run), *options(tiny))[0] == 0
    monkeypatch.setattr(runs, "measure_test", exhausted)
    status, out, err = program("evaluate", str(run))
    assert (status, out) == (1, "")
    assert err == (
        "error: memory ran out (CUDA out of memory. Tried to allocate 9 GiB); stop other programs "
        "that hold some, or evaluate on another machine or --device\n"
    )


def test_a_run_is_evaluated_in_another_mode_of_batch_norm(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert program("train", "--out", str(run), *options(tiny))[0] == 0
    found = {}
    for mode in ("transductive", "inductive"):
        config = RunFolder(run).config().model_copy(update={"batch_norm": mode})
        setup = set_up(config)
        models = RunFolder(run).best_models(
            RunFolder(run).history(), config.ensemble, setup.learner.init()
        )
        found[mode] = measure_test(setup, models, 8, lambda _: None).ensemble
        status, out, err = program("evaluate", str(run), "--batch-norm", mode)
        assert (status, err) == (0, "")
        (row,) = [line for line in out.splitlines() if "ensemble of 2" in line]
        assert accuracy(confidence95(found[mode])) in row
        assert mode in row
    assert found["transductive"] != found["inductive"]


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
    run.mkdir(parents=True)
    stored = RunConfig(**tiny)
    (run / "config.yaml").write_text(stored.to_yaml(), encoding="utf-8")
    status, printed, err = program(
        *(command, "--resume", "auto", "--out", str(out)),
        *options({**tiny, "dataset": "glyphs", "data_root": root}),
    )
    assert (status, printed, err) == (
        1,
        "",
        f"error: {run} holds a run with dataset {stored.dataset!r}, this one has 'glyphs'; "
        "continue it with its own settings, or choose another folder with --out\n",
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


def test_settings_from_a_file_are_overridden_by_options(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps({**tiny, "epochs": 2}), encoding="utf-8")  # JSON is YAML
    run = tmp_path / "run"
    status, _, err = program("train", "--config", str(file), "--epochs", "1", "--out", str(run))
    assert (status, err) == (0, "")
    stored = (run / "config.yaml").read_text(encoding="utf-8")
    assert "epochs: 1\n" in stored
    assert "queries: 4\n" in stored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task-batch", "0"], "--task-batch 0: must be greater than or equal to 1"),
        (["--dataset", "omniglott"], "did you mean 'omniglot'?"),
        (["--preset", "paper"], "--preset paper needs --dataset cub or mini-imagenet"),
        (
            ["--preset", "paper", "--dataset", "glyphs"],
            "--preset paper: the paper has no settings for dataset 'glyphs'; use --dataset cub or "
            "mini-imagenet",
        ),
        (
            ["--preset", "paper", "--dataset", "cub", "--task-batch", "4"],
            "--preset paper: the paper has task batches 5 and 1, not 4; use --task-batch 5 or 1",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, program: Program, data_root: Path, tmp_path: Path
) -> None:
    status, _, err = program(
        "train", "--out", str(tmp_path / "run"), "--data-root", str(data_root), *arguments
    )
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_mistyped_option_names_the_nearest(program: Program) -> None:
    status, _, err = program("train", "--out", "x", "--iner-lr", "0.1")
    assert status == 2
    assert "No such option '--iner-lr'" in err
    assert "--inner-lr" in err


def test_help_explains_every_field_with_its_default(program: Program) -> None:
    status, out, _ = program("train", "--help")
    assert status == 0
    for words in ("Inner loop and sharing", "--sharing / --no-sharing", "[default: --sharing]"):
        assert words in " ".join(out.split())
    assert "--inner-lr FLOAT" in out


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m gradshare train --help | head -1"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.startswith("Usage: ")
    assert result.stderr == ""


def test_the_paper_preset_is_appendix_a(program: Program, data_root: Path, tmp_path: Path) -> None:
    five = read_config(None, "paper", {"dataset": "mini-imagenet"})
    assert (five.epochs, five.iterations_per_epoch, five.task_batch) == (250, 1000, 5)
    assert (five.inner_steps, five.inner_lr, five.queries, five.image_size) == (5, 0.1, 15, 84)
    assert (five.val_tasks, five.test_tasks, five.ensemble) == (600, 600, 5)
    one = read_config(None, "paper", {"dataset": "cub", "task_batch": 1, "inner_lr_scale": 10.0})
    assert (one.epochs, one.inner_lr_scale) == (750, 10)


def test_a_dry_run_says_what_the_run_would_take(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = options({**tiny, "method": "maml++", "multi_step_loss": "4"})
    status, out, err = program("train", "--dry-run", *settings)
    assert (status, err) == (0, "")
    patterns = (
        r"layout +cpu: tasks all at once \(vmap\), graphs kept \(keep\), not compiled, .*",
        r"iterations 1 to 4 +\d+\.\d{3} s each",
        r"iterations 5 to 9 +\d+\.\d{3} s each",
        r"validation +\d+\.\d s after each epoch",
        r"test +\d+\.\d s",
        r"an epoch +\d+\.\d s, validation included",
        r"all 3 epochs and the test +\d+\.\d s",
        r"peak memory +(\d+\.\d MB measured, )?\d+\.\d MB estimated from the shapes",
        r"disk +\d+\.\d MB at most",
    )
    lines = out.splitlines()
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    folder = tmp_path / "run"
    assert program("train", "--dry-run", "--out", str(folder), *settings)[0] == 0
    assert not folder.exists()


def test_a_run_needs_a_folder(program: Program, tiny: dict[str, Any]) -> None:
    status, out, err = program("train", *options(tiny))
    assert (status, out) == (1, "")
    assert err == "error: --out is missing; name a new folder for everything that comes out\n"


def test_the_layout_is_printed_first_and_recorded(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    status, out, _ = program("train", "--out", str(folder), *options({**tiny, "tasks": "loop"}))
    assert status == 0
    first = out.splitlines()[0]
    assert first.startswith("Layout: cpu: tasks one at a time (loop), graphs kept (keep), not ")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert f"Layout: {results['environment']['layout']}" == first


def test_a_dry_run_is_of_one_process(program: Program, tiny: dict[str, Any]) -> None:
    status, out, err = program("train", "--dry-run", "--workers", "2", *options(tiny))
    assert (status, out) == (1, "")
    assert err == "error: --dry-run measures a run in one process; leave --workers out\n"


def test_a_dry_run_may_be_of_a_run_that_is_to_be_continued(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept.txt").write_text("kept")
    arguments = ["--resume", "auto", "--out", str(tmp_path / "run")]
    assert program("train", "--dry-run", *arguments, *options(tiny))[0] == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept.txt"]
