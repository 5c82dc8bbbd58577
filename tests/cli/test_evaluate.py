"""`gradshare evaluate` as its users meet it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradshare.config import Parts, RunConfig, build, open_run, stored, train
from gradshare.errors import RunError
from gradshare.tasks import ImageTasks
from gradshare.tasks.writing import ClassImages, write_store
from gradshare.training.evaluation import Evaluation, evaluate
from gradshare.training.folder import RunFolder
from gradshare.training.layout import Layout
from gradshare.training.statistics import confidence95
from tests.cli.test_runs import Program, program
from tests.conftest import prepare_tiny, tiny_classes, tiny_settings

__all__ = ["program"]  # a fixture

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sharing, with steps so long that ĝ is missed without it."""
    settings = {**tiny_settings(data_root), "inner_lr": 1.0}
    return train(RunConfig(**settings), tmp_path_factory.mktemp("runs") / "run").path


def lines_of(program: Program, *arguments: object) -> list[str]:
    status, out, err = program("evaluate", *map(str, arguments))
    assert (status, err) == (0, "")
    return out.splitlines()


def parts_of(run: Path, **changes: Any) -> Parts:
    return build(stored(run).model_copy(update=changes))


def evaluated(run: Path, parts: Parts, ensemble: int = 1, **how: Any) -> Evaluation:
    source = how.pop("source", parts.test)
    opened = open_run(run)
    opened.learner = Layout(**RunFolder(run).contents()["layout"]).applied(parts.learner)
    return opened.evaluate(source, ensemble=ensemble, **how)


def test_what_the_classifier_states_is_measured(program: Program, run: Path) -> None:
    lines = lines_of(program, run, "--calibration", "--test-tasks", 20)
    assert lines[2].startswith("Calibration error on 20 tasks: ")
    stated = [line.partition(":")[0] for line in lines[3:9]]
    assert stated == [
        *(f"Sets of stated coverage {share}%" for share in (80, 90, 95)),
        *(f"Rejecting {share}% of known classes" for share in (5, 10, 20)),
    ]


def test_other_shots_and_steps(program: Program, tiny: Settings, tmp_path: Path) -> None:
    run = train(RunConfig(**tiny), tmp_path / "run").path  # steps that don't amplify rounding
    parts = parts_of(run)
    assert isinstance(parts.test, ImageTasks)
    source, how = parts.test.replace(shots=3), {"tasks": 5, "steps": 4}
    arguments = (run, "--shots", 3, "--steps", 4, "--test-tasks", 5)
    assert lines_of(program, *arguments) == [
        f"Ensemble: {evaluated(run, parts, 2, source=source, **how)}",
        f"Best checkpoint: {evaluated(run, parts, source=source, **how)}",
    ]
    found = lines_of(program, run, "--steps", 0)
    assert found[0] == f"Ensemble: {evaluated(run, parts, 2, tasks=8, steps=0)}"
    assert found[2].startswith("Difference from the run's own test: ")


def test_other_metrics_checkpoints_and_ways(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"dataset": "tests.own:signals"}
    settings = {"queries": 2, "epochs": 2, "iterations_per_epoch": 1, "task_batch": 1}
    more = {"val_tasks": 3, "test_tasks": 3, "ways": 3, "model": "tests.own:Net", "ensemble": 2}
    run = train(RunConfig(**names, **settings, **more), tmp_path / "run").path
    found = lines_of(program, run, "--metric", "tests.own:wrong", "--ensemble", 1)
    assert found[0].startswith("Ensemble: wrong ")
    assert found[0].replace("Ensemble", "Best checkpoint") == found[1]
    assert "(3 tasks" in found[0]
    assert len(found) == 2  # the run's own test has not measured it
    assert lines_of(program, run, "--ways", 2)[0] != lines_of(program, run)[0]


def test_more_classes_than_the_head_has_outputs_are_refused(program: Program, run: Path) -> None:
    assert program("evaluate", str(run), "--ways", "4") == (
        1,
        "",
        "error: the source has tasks of 4 classes, and this run was trained for 3; give at most 3 "
        "(--ways), or train with a method for any number: unicorn-maml, proto-maml or protonet\n",
    )


def test_another_mode_of_batch_norm(program: Program, run: Path) -> None:
    found = lines_of(program, run, "--batch-norm", "transductive")
    transductive = evaluated(run, parts_of(run, batch_norm="transductive"), 2, tasks=8)
    assert found[0] == f"Ensemble: {transductive}"
    assert "transductive batch norm" in found[0]
    assert transductive.values != evaluated(run, parts_of(run), 2, tasks=8).values


def test_a_run_of_sharing_without_the_gradients_of_others(program: Program, run: Path) -> None:
    opened, parts = open_run(run), parts_of(run)
    learner, source = opened.learner, parts.test
    assert learner is not None and source is not None and opened.test is not None
    (meta, carried) = opened.models(1)[0]
    none = {name: 0 * t if "g_hat" in name else t for name, t in carried.items()}
    expected = evaluate(learner, meta, none, source, tasks=3, metrics=opened.metrics)
    found = lines_of(program, run, "--sharing-control", "forgotten", "--test-tasks", 3)
    assert found[1].startswith(f"Best checkpoint: accuracy {100 * expected['accuracy'].mean:.1f} ")
    kept = evaluate(learner, meta, carried, source, tasks=3, metrics=opened.metrics)
    assert kept.values != expected.values


def test_the_difference_is_of_the_tasks_that_both_have(program: Program, run: Path) -> None:
    own = open_run(run).test
    assert own is not None
    for count, note in ((8, ""), (3, ""), (11, " (first 8 tasks)")):
        last = lines_of(program, run, "--test-tasks", count)[-1]
        assert last == f"Difference from the run's own test: 0.0 ± 0.0 points{note}"
    transductive = evaluated(run, parts_of(run, batch_norm="transductive"), 2, tasks=8)
    pairs = zip(transductive.values["accuracy"], own.ensemble["accuracy"], strict=True)
    interval = confidence95([here - there for here, there in pairs])
    difference = transductive.metrics["accuracy"].show_difference(interval)
    last = lines_of(program, run, "--batch-norm", "transductive")[-1]
    assert last == f"Difference from the run's own test: {difference}"


def test_a_control_has_nothing_to_forget(program: Program, tiny: Settings, tmp_path: Path) -> None:
    config = RunConfig(**{**tiny, "epochs": 1, "sharing_control": "rate-control"})
    run = train(config, tmp_path / "run").path
    status, out, err = program("evaluate", str(run), "--sharing-control", "forgotten")
    assert (status, out) == (1, "")
    assert err == (
        f"error: --sharing-control forgotten takes ĝ away, and {run} (rate-control) has none; "
        "leave it out, or name a run with gradient sharing\n"
    )


def test_a_run_is_not_evaluated_on_other_images_unless_it_is_asked(
    program: Program, run: Path, tmp_path: Path
) -> None:
    prepare_tiny(tmp_path / "other", train_classes=11)
    elsewhere = ["--data-root", str(tmp_path / "other")]
    status, out, err = program("evaluate", str(run), *elsewhere)
    assert (status, out) == (1, "")
    assert err == (
        f"error: {run} was tested on other tasks than the dataset 'tiny' in {tmp_path / 'other'} "
        "gives now; prepare the dataset as it was, name the folder that still holds it with "
        "--data-root, or name another --dataset\n"
    )
    assert len(lines_of(program, run, *elsewhere, "--dataset", "tiny")) == 2


def other_images(
    root: Path,
    name: str,
    size: int = 16,
    change: Callable[[Any], Any] = lambda x: x,
    test: int = 4,
) -> None:
    classes = [
        ClassImages(item.split, item.name, change(item.images))
        for split, count in (("train", 3), ("val", 3), ("test", test))
        for item in tiny_classes(split, count)
    ]
    write_store(root / name / str(size), classes, name=name, rotate_classes=False, source={})


def test_another_dataset_is_normalised_as_in_training(
    program: Program, run: Path, data_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    other_images(root, "dark", change=lambda x: x // 2)
    other_images(root, "coloured", change=lambda x: np.repeat(x, 3, axis=1))
    found = lines_of(program, run, "--dataset", "dark", "--data-root", root)
    assert len(found) == 2  # its tasks are others, so there is no difference
    parts = parts_of(run)
    dark = parts_of(run, dataset="dark", data_root=root).test
    assert isinstance(parts.train, ImageTasks) and isinstance(dark, ImageTasks)
    assert dark.normalization != parts.train.normalization
    source = dark.replace(normalization=parts.train.normalization)
    assert found[0] == f"Ensemble: {evaluated(run, parts, 2, source=source, tasks=8)}"

    status, _, err = program(
        "evaluate", str(run), "--dataset", "coloured", "--data-root", str(root)
    )
    assert (status, err) == (
        1,
        "error: --dataset coloured has images of 3 channels, and the run takes 1; name another\n",
    )
    status, _, err = program("evaluate", str(run), "--dataset", "dakr", "--data-root", str(root))
    assert status == 1
    assert "there is no dataset 'dakr'; did you mean 'dark'?" in err


def test_a_run_with_mirrored_images_is_tested_on_characters_too(
    program: Program, tiny: Settings, data_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    other_images(root, "omniglot", change=lambda x: 255 - x)
    run = train(RunConfig(**{**tiny, "augment": ("flip",), "epochs": 1}), tmp_path / "run").path
    assert len(lines_of(program, run, "--dataset", "omniglot", "--data-root", root)) == 2


def test_a_dataset_without_other_shots_is_named(
    program: Program, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fixed.py").write_text(
        "import gradshare as gs\n"
        "from tests import own\n"
        "class Fixed:\n"
        "    def __init__(self, source):\n"
        "        self.batch = source.batch\n"
        "def make(ways, queries):\n"
        "    made = own.signals(ways, 1, queries)\n"
        "    return gs.Splits(Fixed(made.train), Fixed(made.validation), Fixed(made.test))\n"
    )
    names = {"dataset": "fixed.py:make", "model": "tests.own:Net", "filters": 48}
    run = train(RunConfig(**{**tiny, **names, "queries": 2}), "run").path
    status, _, err = program("evaluate", str(run), "--shots", "2")
    assert (status, err) == (
        1,
        "error: --shots 2: Fixed has no method `replace(shots=…)`; add one, or leave --shots out\n",
    )


def test_a_folder_without_a_run_is_named(program: Program, tmp_path: Path) -> None:
    status, out, err = program("evaluate", str(tmp_path))
    assert (status, out) == (1, "")
    assert err == f"error: {tmp_path} holds no run (no run.json); give the folder of a run\n"
    with pytest.raises(RunError):
        stored(tmp_path)


def test_generators_are_left_alone(program: Program, run: Path) -> None:
    before = torch.get_rng_state()
    lines_of(program, run, "--test-tasks", 2)
    assert torch.equal(torch.get_rng_state(), before)
