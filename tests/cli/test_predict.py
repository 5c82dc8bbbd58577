"""`gradshare predict` and `gradshare check` as their users meet them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradshare import FewShotClassifier
from gradshare.config import RunConfig, train
from tests.cli.test_runs import Program, program
from tests.conftest import tiny_classes

__all__ = ["program"]  # a fixture

pytestmark = pytest.mark.usefixtures("few_calibration_tasks")


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = RunConfig(
        dataset="tiny",
        data_root=data_root,
        ways=3,
        queries=4,
        filters=4,
        inner_steps=2,
        epochs=1,
        iterations_per_epoch=4,
        task_batch=2,
        val_tasks=20,
        test_tasks=2,
        ensemble=1,
        batch_norm="inductive",
        device="cpu",
        threads=1,
    )
    return train(config, tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Class folders of images, two of each recording: crow/walk0-0.png, crow/walk0-1.png, …"""
    for name, found in zip(("crow", "lark", "owl"), tiny_classes("test", 3, 8), strict=True):
        folder = tmp_path / "birds" / name
        folder.mkdir(parents=True)
        for number, image in enumerate(found.images):
            pixels = np.asarray(image)[0]
            Image.fromarray(pixels).resize((20, 24)).save(
                folder / f"walk{number // 2}-{number % 2}.png"
            )
    return tmp_path / "birds"


def lines_of(program: Program, *arguments: object) -> list[str]:
    status, out, err = program(*map(str, arguments))
    assert (status, err) == (0, "")
    return out.splitlines()


def error_of(program: Program, *arguments: object) -> str:
    status, out, err = program(*map(str, arguments))
    assert (status, out) == (1, "")
    return err


def test_images_are_predicted_and_written_as_a_table(
    program: Program, run: Path, birds: Path, tmp_path: Path
) -> None:
    files = sorted((birds / "owl").iterdir())
    table, records = tmp_path / "table.csv", tmp_path / "table.json"
    arguments = ("predict", run, "--support", birds, "--out", table, "--out", records)
    shown = lines_of(program, *arguments, "--coverage", 0.9, "--query", *files)
    paths = sorted(birds.glob("*/*.png"))
    classifier = FewShotClassifier(run, device="cpu")
    classifier.fit(paths, [path.parent.name for path in paths])
    proba = classifier.predict_proba(files)
    assert [line.split()[:3] for line in shown] == [
        [str(path), classifier.classes_[p.argmax()], f"{p.max():.1%}"]
        for path, p in zip(files, proba, strict=True)
    ]
    found = json.loads(records.read_text(encoding="utf-8"))
    assert [row["file"] for row in found] == list(map(str, files))
    assert [list(row["probabilities"]) for row in found] == [["crow", "lark", "owl"]] * 8
    assert np.allclose([list(row["probabilities"].values()) for row in found], proba)
    assert [row["set"] for row in found] == classifier.predict_set(files)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "class", "crow", "lark", "owl", "set"]
    assert np.allclose(np.array([row[2:5] for row in rows[1:]], float), proba)
    assert [row[5] for row in rows[1:]] == [", ".join(row["set"]) for row in found]
    # A folder's images, and those in its folders.
    assert lines_of(program, "predict", run, "--support", birds, "--query", birds / "owl") == [
        line[: line.index("%") + 1] for line in shown
    ]
    assert len(lines_of(program, "predict", run, "--support", birds, "--query", birds)) == 24


def test_a_class_may_have_the_name_of_a_column(
    program: Program, run: Path, birds: Path, tmp_path: Path
) -> None:
    (birds / "owl").rename(birds / "file")
    query, table = min((birds / "lark").iterdir()), tmp_path / "new folder" / "table.csv"
    lines_of(program, "predict", run, query, "--support", birds, "--out", table)
    header = table.read_text(encoding="utf-8").splitlines()[0]
    assert header == "file,class,class crow,class file,class lark"


def test_predictions_are_printed_before_a_file_that_cannot_be_written(
    program: Program, run: Path, birds: Path, tmp_path: Path
) -> None:
    query, blocking = min((birds / "owl").iterdir()), tmp_path / "a file"
    blocking.touch()
    table = blocking / "table.csv"
    arguments = ("predict", run, query, "--support", birds, "--out", table)
    status, out, err = program(*map(str, arguments))
    assert status == 1
    assert out.startswith(f"{query}  ")
    assert f"error: {blocking} cannot be used: File exists" in err


def test_what_looks_like_no_class_is_none_of_these(
    program: Program, run: Path, birds: Path
) -> None:
    shown = lines_of(
        program, "predict", run, "--support", birds, "--query", birds, "--reject", 0.99
    )
    assert any("none of these" in line for line in shown)


def test_a_classifier_of_a_folder_is_exported_once(
    program: Program, run: Path, birds: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new folder" / "birds.onnx"
    arguments = ("export", run, "--support", birds, "--out", file)
    shown = lines_of(program, *arguments)
    assert shown == [f"{file} answers as the run does, for crow, lark, owl"]
    assert "birds.onnx exists; name a new file" in error_of(program, *arguments)


def test_without_the_runs_dataset_probabilities_are_not_calibrated(
    program: Program, run: Path, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshare.config.runs.prepared", lambda _: {})
    command = ("predict", str(run), "--support", str(birds), str(birds / "owl"))
    status, out, err = program(*command)
    assert (status, len(out.splitlines())) == (0, 8)
    warning = (
        f"warning: the dataset of {run} is not on this machine, so the probabilities are not "
        "calibrated\n"
    )
    assert err == warning
    file = tmp_path / "birds.onnx"
    status, _, err = program("export", str(run), "--support", str(birds), "--out", str(file))
    assert (status, err, file.is_file()) == (0, warning, True)
    assert "its dataset is not on this machine" in error_of(program, *command, "--coverage", "0.9")


def test_the_accuracy_to_expect_is_printed(program: Program, run: Path, birds: Path) -> None:
    shown = lines_of(program, "check", run, birds)
    assert shown[0].startswith("Accuracy to expect: ")
    assert shown[1] == "24 examples of 3 classes, each predicted by 4 of 5 parts of the others"
    names = ["this run", "nearest class mean on pixels", "logistic regression on pixels"]
    assert [line.strip().rsplit("  ", 2)[0].strip() for line in shown[2:5]] == names
    assert shown[5].endswith(".")
    shown = lines_of(program, "check", run, birds, "--group", r"(\w+/walk\d)-", "--folds", 3)
    assert shown[1].startswith("24 examples of 3 classes in 12 groups, each predicted by 2 of 3")


def test_mistakes_are_named(program: Program, run: Path, birds: Path, tmp_path: Path) -> None:
    def predicted(*arguments: object, support: Path = birds) -> str:
        return error_of(program, "predict", run, "--support", support, *arguments)

    assert "--query is missing; name an image or a folder of images" in predicted()
    assert "wren.png cannot be read" in predicted("--query", tmp_path / "wren.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "._crow.png").touch()  # as macOS leaves them
    assert "has no images (" in predicted("--query", empty)
    assert "has 0 class folders; give a folder with" in predicted(birds / "owl", support=empty)
    assert "has another ending than .csv or .json" in predicted(birds, "--out", tmp_path / "a.txt")
    (tmp_path / "a.csv").touch()
    assert "a.csv exists; name a new file" in predicted(birds, "--out", tmp_path / "a.csv")
    for pattern, message in (("(", "is no regular expression"), ("hike", "is not found in crow/")):
        assert message in error_of(program, "check", run, birds, "--group", pattern)
    for name in ("nowhere", "a.csv"):
        message = error_of(program, "check", run, tmp_path / name)
        assert f"{name} is not a folder; give one with a folder of images for each class" in message
    # The ending is looked at before the support set.
    export = ("export", run, "--support", empty, "--out", tmp_path / "a.zip")
    assert "a.zip has another ending than .onnx or .pt2" in error_of(program, *export)
    (birds / "crow" / "torn.png").write_bytes(b"\x89PNG")
    assert "torn.png is not a readable image" in error_of(program, "check", run, birds)
    assert "holds no run" in error_of(program, "check", tmp_path, birds)


@pytest.mark.parametrize("command", ["evaluate", "predict", "serve", "export", "check"])
def test_what_is_no_run_is_named_with_what_to_give(
    command: str, program: Program, run: Path, birds: Path, tmp_path: Path
) -> None:
    more: dict[str, list[Any]] = {
        "predict": [birds, "--support", birds],
        "check": [birds],
        "export": ["--support", birds, "--out", tmp_path / "new.onnx"],
    }
    file, empty, comparison = (tmp_path / name for name in ("notes.txt", "empty", "comparison"))
    file.touch()
    empty.mkdir()
    for seed in range(7):
        (comparison / "runs" / "original").mkdir(parents=True, exist_ok=True)
        (comparison / "runs" / "original" / f"seed-{seed}").symlink_to(run)
    below = ", ".join(f"runs/original/seed-{seed}" for seed in range(5))
    for place, said in (
        ("nowhere", "nowhere is not a folder; give the folder of a run"),
        (file, f"{file} is not a folder; give the folder of a run"),
        (empty, f"{empty} holds no run (no run.json); give the folder of a run"),
        (
            comparison,
            f"{comparison} holds no run (no run.json); give one of those below it: {below} and 2 "
            "more",
        ),
    ):
        assert error_of(program, command, place, *more.get(command, [])) == f"error: {said}\n"


def test_arrays_are_checked_too(program: Program, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dataset": "tests.own:signals", "model": "tests.own:Net"}
    sizes = {"ways": 3, "queries": 2, "val_tasks": 4, "test_tasks": 2, "ensemble": 1}
    config = RunConfig(
        **settings, **sizes, epochs=1, iterations_per_epoch=2, task_batch=2, device="cpu"
    )
    run = train(config, tmp_path / "run").path
    x = np.random.default_rng(0).normal(size=(12, 2, 12))
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(12) % 3, groups=np.arange(12) // 2)
    shown = lines_of(program, "check", run, tmp_path / "own.npz", "--folds", 2)
    assert shown[1].startswith("12 examples of 3 classes in 6 groups, each predicted by 1 of 2")
    assert "logistic regression on the inputs" in shown[4]
