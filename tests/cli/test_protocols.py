"""Ranges of ways and shots, and tests on another dataset, as users of the program meet them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradshare as gs
from gradshare.config import RunConfig, build, open_run, stored
from gradshare.errors import ConfigError, DataError
from gradshare.tasks.source import other_dataset
from tests.cli.test_evaluate import other_images
from tests.cli.test_runs import Program, options, program

__all__ = ["program"]  # a fixture

Settings = dict[str, Any]
RANGES = {"ways": "2-4", "shots": "1-3"}


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A data root with "tiny" and other datasets."""
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    other_images(root, "dark", change=lambda x: x // 2)
    other_images(root, "coloured", change=lambda x: np.repeat(x, 3, axis=1))
    other_images(root, "large", size=20, change=lambda x: np.pad(x, [(0, 0)] * 2 + [(2, 2)] * 2))
    return root


def test_a_run_on_ranges_is_trained_resumed_and_tested_on_ranges(
    program: Program, tiny: Settings, tmp_path: Path
) -> None:
    settings = {**tiny, **RANGES, "method": "unicorn-maml", "augment": "crop", "epochs": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_words = ("train", *options(settings), "--out")
    assert program(*train_words, str(whole))[0] == 0
    assert program(*train_words, str(parts), "--epochs", "1")[0] == 0
    # The file of the first run has its ranges in another form.
    resumed = ["train", "--config", str(whole / "config.yaml"), "--out", str(parts)]
    status, _, err = program(*resumed, "--resume", "auto")
    assert (status, err) == (0, "")
    ours, theirs = open_run(parts), open_run(whole)
    assert ours.test == theirs.test
    for found, expected in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (stored(whole).ways, stored(whole).shots) == ((2, 4), (1, 3))
    config = build(stored(whole).model_copy(update={"ways": (3, 5), "shots": 2}))
    assert config.test is not None
    found_lines = program("evaluate", str(whole), "--ways", "3-5", "--shots", "2")[1].splitlines()
    assert found_lines[0] == f"Ensemble: {theirs.evaluate(config.test, tasks=8, ensemble=2)}"
    for words, message in (
        (["--ways", "3-x"], "--ways '3-x': give a whole number from 2 to 2147483647, or a range "),
        (["--calibration"], "--calibration is for tasks of one size, and these vary in ways or "),
        (["--calibration", "--ways", "3"], "--calibration is for tasks of one size, and these "),
    ):
        status, _, err = program("evaluate", str(whole), *words)
        assert status == 1
        assert err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            "train has tasks of 2 to 4 classes, and the head of this method is for one number of "
            "classes; give one number of ways, or a method for any: unicorn-maml, proto-maml or "
            "protonet",
        ),
        (
            {"method": "protonet", "ways": "2-6"},
            "6-way tasks need 6 classes, split 'val' of tiny has 5; lower ways, or give it more "
            "classes",
        ),
        (
            {"method": "proto-maml", "workers": 2},
            "2 processes cannot share gradients between tasks of 2 to 4 classes; use one process, "
            "one number of ways, or no sharing",
        ),
    ],
)
def test_a_range_that_cannot_be_trained_is_refused_before_anything_is_written(
    changes: Settings, message: str, program: Program, tiny: Settings, tmp_path: Path
) -> None:
    words = options({**tiny, **RANGES, **changes})
    status, out, err = program("train", *words, "--out", str(tmp_path / "run"))
    assert (status, out, err) == (1, "", f"error: {message}\n")
    assert not (tmp_path / "run").exists()


def say_that_splits_were_drawn(root: Path, name: str) -> None:
    index = root / name / "16" / "index.json"
    record = json.loads(index.read_text("utf-8"))
    index.write_text(json.dumps({**record, "source": {"splits": "drawn with seed 7"}}), "utf-8")


def test_a_run_is_tested_on_another_dataset_and_says_so(
    program: Program, tiny: Settings, root: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    say_that_splits_were_drawn(root, "dark")
    settings = {**tiny, "data_root": root, "test_dataset": "dark"}
    status, out, _ = program("train", *options(settings), "--out", str(run))
    assert status == 0
    test = out.splitlines()[-2]
    assert test.startswith("Test: accuracy ")
    assert "(8 tasks, ensemble of 2, on dark, " in test
    assert test.endswith("). The splits of dark were drawn with seed 7.")
    parts = build(stored(run))
    ours, other = parts.train, parts.test
    assert isinstance(ours, gs.ImageTasks) and isinstance(other, gs.ImageTasks)
    assert other.dataset == "dark"
    assert other.normalization == ours.normalization
    lines = program("evaluate", str(run))[1].splitlines()
    assert lines[0].removeprefix("Ensemble: ") == test.removeprefix("Test: ")
    assert lines[2] == "Difference from the run's own test: 0.0 ± 0.0 points"
    shutil.rmtree(root / "dark")  # the run is used without it
    assert open_run(run).learner is not None
    status, out, _ = program("evaluate", str(run), "--dataset", "tiny")
    assert (status, "on dark" in out) == (0, False)


def test_only_the_test_classes_of_another_dataset_must_be_enough(
    program: Program, tiny: Settings, root: Path, tmp_path: Path
) -> None:
    settings = {**tiny, "data_root": root, "ways": 4, "test_dataset": "dark"}  # 3 to train on
    run = tmp_path / "run"
    assert program("train", *options({**settings, "epochs": 1}), "--out", str(run))[0] == 0
    other_images(root, "few", test=3)
    status, _, err = program("evaluate", str(run), "--dataset", "few")
    assert (status, err) == (
        1,
        "error: 4-way tasks need 4 classes, split 'test' of few has 3; lower ways, or give it more "
        "classes\n",
    )
    assert program("evaluate", str(run), "--dataset", "few", "--ways", "3")[0] == 0


def test_a_comparison_that_is_tested_on_another_dataset_says_so_wherever_it_shows_a_figure(
    program: Program, tiny: Settings, root: Path, tmp_path: Path, in_this_process: None
) -> None:
    say_that_splits_were_drawn(root, "dark")
    settings = {**tiny, "data_root": root, "test_dataset": "dark"}
    words = ["compare", *options(settings), "--methods", "maml,protonet"]
    status, out, err = program(*words, "--out", str(tmp_path / "out"))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "iterations each, on tiny, tested on dark; everything goes to " in lines[0]
    for start in ("test accuracy on dark ", "test loss on dark "):
        assert any(line.startswith(start) for line in lines)
    assert "The splits of dark were drawn with seed 7." in lines
    results = gs.load_results(tmp_path / "out")
    assert results.tested_on == "dark"
    assert [command.split()[:4] for command in results.commands[:2]] == [
        ["gradshare", "data", "prepare", name] for name in ("tiny", "dark")
    ]
    assert (results.settings["dataset"], results.settings["test_dataset"]) == ("tiny", "dark")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "8 test tasks on dark · " in page
    assert page.count("test accuracy on dark") >= 1
    rows = results.table()
    assert {(row["split"], row["dataset"]) for row in rows if row["task"] is not None} == {
        ("test", "dark")
    }
    again = ["--test-dataset", "tiny", "--out", str(tmp_path / "out"), "--resume", "auto"]
    assert program(*words, *again) == (
        1,
        "",
        f"error: {tmp_path / 'out' / 'runs' / 'maml' / 'seed-0'} holds a run with test_dataset "
        "'dark', this one has 'tiny'; continue it with its own settings, or choose another folder "
        "(--out)\n",
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"test_dataset": "coloured"},
            ConfigError,
            "--test-dataset coloured has images of 3 channels, and the run takes 1; name another",
        ),
        (
            {"test_dataset": "large"},
            DataError,
            r"dataset 'large' is prepared in \S+ at 20, not at 16; .*",
        ),
        ({"test_dataset": "drak"}, DataError, "there is no dataset 'drak'; did you mean 'dark'.*"),
        (
            {"test_dataset": "tests.own:signals"},
            ConfigError,
            r"--test-dataset tests.own:signals is for two prepared datasets; a function of your "
            r"own returns its test tasks itself: gradshare.Splits\(train, validation, test\)",
        ),
        (
            {"dataset": "tests.own:signals", "test_dataset": "dark", "model": "tests.own:Net"},
            ConfigError,
            r"--test-dataset dark is for two prepared datasets; .*",
        ),
    ],
)
def test_a_dataset_that_a_run_cannot_be_tested_on_is_refused(
    changes: Settings, error: type[Exception], message: str, tiny: Settings, root: Path
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        build(RunConfig(**{**tiny, "data_root": root, **changes}))


def test_features_of_another_dataset_are_standardised_as_in_training(root: Path) -> None:
    for out, name, seed in (
        ("tiny-rows", "tiny", 0),
        ("dark-rows", "dark", 0),
        ("seven", "dark", 7),
    ):
        backbone = gs.Backbone("tests.own_backbones:toy", options={"seed": seed})
        gs.write_features(gs.open_dataset(name, root), backbone, root / out / "features")
    settings = {"ways": 4, "queries": 4, "data_root": root, "dataset": "tiny-rows"}
    parts = build(RunConfig(**settings, test_dataset="dark-rows"))
    assert parts.test is not None
    assert other_dataset(parts.train, parts.test) == "dark-rows"
    own = build(RunConfig(**{**settings, "ways": 3, "dataset": "dark-rows"})).test
    assert own is not None
    batch = own.batch([0])
    found, expected = (s.prepare(batch).support_x for s in (parts.test, parts.train))  # type: ignore[attr-defined]
    assert torch.equal(found, expected)
    assert not torch.equal(found, own.prepare(batch).support_x)  # type: ignore[attr-defined]
    for other, message in (
        ("dark", "--test-dataset dark holds images, and the run takes features"),
        (
            "seven",
            "the features in seven are of the backbone tests.own_backbones:toy, and those in "
            "tiny-rows of another (tests.own_backbones:toy) or of other preprocessing; make both "
            "alike with `gradshare data features`",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            build(RunConfig(**settings, test_dataset=other))
        assert str(error.value) == message
