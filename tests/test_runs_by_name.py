"""Runs that are started from a configuration: trained, extended, opened again."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradshare as gs
from gradshare import config as configs
from gradshare.config import RunConfig, open_run, stored, train
from gradshare.config.names import REGISTERED
from gradshare.config.settings import WITHOUT_SHARING
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.tasks import ImageTasks
from gradshare.tasks.glyphs import drawn
from gradshare.training.folder import RunFolder
from tests import own

SIGNALS: dict[str, Any] = {
    "dataset": "tests.own:signals",
    "model": "tests.own:Net",
    "ways": 3,
    "queries": 2,
    "inner_steps": 2,
    "task_batch": 2,
    "epochs": 2,
    "iterations_per_epoch": 2,
    "val_tasks": 3,
    "test_tasks": 3,
    "ensemble": 2,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    return train(RunConfig(**SIGNALS), tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_keeps_its_configuration(run: Path) -> None:
    assert stored(run) == RunConfig(**SIGNALS, data_root=Path("data").absolute())
    assert [record.epoch for record in open_run(run).history] == [1, 2]


@pytest.mark.parametrize("method", REGISTERED["method"])
def test_each_method_is_trained_opened_again_and_classifies(method: str, tmp_path: Path) -> None:
    settings = {**SIGNALS, "method": method}
    if method == "protonet":  # which takes no inner steps
        del settings["inner_steps"]
    run = train(RunConfig(**settings), tmp_path / "run")
    require_use(run)
    assert any(name.endswith("sharing.m") for name in run.tensors()[0]) == (
        method not in WITHOUT_SHARING
    )


@pytest.mark.parametrize("rule", REGISTERED["rule"])
def test_each_inner_optimiser_has_a_name(rule: str, tmp_path: Path) -> None:
    require_use(train(RunConfig(**SIGNALS, rule=rule), tmp_path / "run"))


def require_use(run: gs.Run) -> None:
    """Raise AssertionError unless a run's figures are had again from its folder alone."""
    again = open_run(run.path)
    assert run.test is not None
    assert again.test == run.test
    source = configs.build(stored(run.path)).test
    assert source is not None
    assert again.evaluate(source, tasks=3).values["accuracy"] == run.test.single["accuracy"]
    task = source.batch([0])
    classifier = gs.FewShotClassifier(again).fit(task.support_x[0], list("abc"))
    assert classifier.predict_proba(task.query_x[0]).shape == (6, 3)


def test_settings_that_are_not_a_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        train(SIGNALS, tmp_path / "run")  # type: ignore[arg-type]
    assert str(error.value) == "config is a dict; give a RunConfig(…) of settings"


def test_a_run_on_files_of_ones_own_is_opened_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "my work", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    shutil.copy(own.__file__, here / "parts of mine.py")
    monkeypatch.chdir(here)
    names = {"dataset": "parts of mine.py:signals", "model": "parts of mine.py:Net"}
    metrics = {"metric": ["parts of mine.py:wrong"], "metric_option": {"best": "low"}}
    config = RunConfig(**{**SIGNALS, **names, **metrics, "loss": "parts of mine.py:doubled"})
    result = train(config, "run")
    assert result.test is not None

    monkeypatch.chdir(elsewhere)
    for name in [name for name in sys.modules if name.startswith("parts of mine")]:
        del sys.modules[name]
    again = open_run(here / "run")
    source = configs.build(stored(here / "run")).test
    assert source is not None
    found = again.evaluate(source, tasks=3, ensemble=2)
    assert found.values == result.test.ensemble
    assert (found.score, found.metrics["wrong"].best) == ("wrong", "low")
    assert os.listdir(elsewhere) == []  # noqa: PTH208  # hidden files too


def test_gs_open_run_opens_runs_of_objects_too(tmp_path: Path) -> None:
    parts = configs.build(RunConfig(**SIGNALS))
    options: dict[str, Any] = {
        "epochs": 1,
        "iterations": 1,
        "task_batch": 1,
        "val_tasks": 2,
        "progress": False,
    }
    gs.fit(parts.learner, parts.train, parts.validation, out=tmp_path / "run", **options)
    assert gs.open_run(tmp_path / "run").learner is None
    assert gs.open_run(tmp_path / "run", parts.learner).learner is not None
    with pytest.raises(RunError) as error:
        stored(tmp_path / "run")
    assert str(error.value) == (
        f"the run in {tmp_path / 'run'} was started from objects and has no config.yaml; open it "
        "in Python: gradshare.open_run(path, learner)"
    )
    with pytest.raises(RunError, match="was started from objects"):
        train(RunConfig(**SIGNALS), tmp_path / "run", resume=True)
    for function in (stored, gs.open_run):
        with pytest.raises(RunError, match=r"holds no run \(no run\.json\)"):
            function(tmp_path)


def test_a_finished_run_is_extended_to_the_run_of_that_length(run: Path, tmp_path: Path) -> None:
    longer = RunConfig(**{**SIGNALS, "epochs": 4})
    extended = train(longer, run, resume=True)
    at_once = train(longer, tmp_path / "at once")
    assert len(extended.history) == 4
    assert extended.test == at_once.test
    for ours, theirs in zip(extended.models(2), at_once.models(2), strict=True):
        for part, other in zip(ours, theirs, strict=True):
            assert all(torch.equal(tensor, other[name]) for name, tensor in part.items())
    assert stored(run).epochs == 4


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cosine_annealing_to": 1e-4}, "--cosine-annealing-to 0.0001"),
        ({"first_order_for": "50%"}, "--first-order-for 50%"),
        ({"method": "maml++", "multi_step_loss": "10%"}, "--multi-step-loss 10%"),
    ],
)
def test_a_run_is_not_extended_if_a_setting_depends_on_its_length(
    settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    config = RunConfig(**{**SIGNALS, "epochs": 1, "iterations_per_epoch": 1}, **settings)
    train(config, tmp_path / "run")
    with pytest.raises(RunError) as error:
        train(config.model_copy(update={"epochs": 3}), tmp_path / "run", resume=True)
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds a run of 1 epochs, which cannot be extended to 3: {named} "
        "depends on the number of epochs; start another run (--out)"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inner_lr": 0.2}, "inner_lr 0.1, this one has 0.2"),
        ({"epochs": 1}, "epochs 2, this one has 1"),
        ({"epochs": 3, "shots": 2}, "shots 1, this one has 2"),
        ({"model_option": {"width": 5}}, "model_option {}, this one has {'width': 5}"),
    ],
)
def test_a_run_is_not_continued_with_other_settings(
    changes: dict[str, Any], words: str, run: Path
) -> None:
    with pytest.raises(RunError) as error:
        train(RunConfig(**{**SIGNALS, **changes}), run, resume=True)
    assert str(error.value) == (
        f"{run} holds a run with {words}; continue it with its own settings, or choose another "
        "folder (--out)"
    )


def test_a_run_may_be_continued_elsewhere(run: Path) -> None:
    changes = {"data_root": "elsewhere", "threads": 2, "on_divergence": "skip"}
    train(RunConfig(**{**SIGNALS, **changes}), run, resume=True)
    assert (stored(run).threads, stored(run).on_divergence) == (2, "skip")


@pytest.mark.parametrize(("threads", "expected"), [(0, 3), (2, 2)])
def test_threads_are_as_they_are_unless_they_are_set(
    threads: int, expected: int, tmp_path: Path
) -> None:
    found: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        config = RunConfig(**{**SIGNALS, "epochs": 1, "threads": threads})
        train(config, tmp_path / "run", watch=lambda _: found.append(torch.get_num_threads()))
        assert set(found) == {expected}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_continued_run_has_its_settings_from_its_start_on(run: Path) -> None:
    found: list[int] = []
    longer = RunConfig(**{**SIGNALS, "epochs": 4})
    train(longer, run, resume=True, watch=lambda _: found.append(stored(run).epochs))
    assert set(found) == {4}


def test_a_run_predicts_where_its_dataset_is_not(tiny: dict[str, Any], tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny["data_root"], tmp_path / "data"))
    config = RunConfig(**{**tiny, "data_root": str(root), "epochs": 1})
    result = train(config, tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 16, 16), dtype=np.uint8)
    labels = [0, 1, 2, 0, 1, 2]
    logits = result.adapt(images, labels)(images)
    shutil.rmtree(root)
    opened = open_run(tmp_path / "run")
    assert opened.table() == result.table()
    assert opened.test == result.test
    assert torch.equal(opened.adapt(images, labels)(images), logits)
    classifier = gs.FewShotClassifier(tmp_path / "run").fit(images, labels)
    assert classifier.predict(images).tolist() == logits.argmax(1).tolist()
    with pytest.raises(ConfigError, match="its dataset is not on this machine"):
        classifier.predict_proba(images)
    source: Any = opened.source
    for use in (lambda: opened.evaluate(source), lambda: source.batch([1])):
        with pytest.raises(DataError, match=r"dataset is not on this machine, so there are no"):
            use()


def test_a_run_of_a_time_before_images_were_recorded_opens_for_its_history(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny["data_root"], tmp_path / "data"))
    config = RunConfig(**{**tiny, "data_root": str(root), "epochs": 1})
    result = train(config, tmp_path / "run")
    shutil.rmtree(root)
    folder = RunFolder(tmp_path / "run")
    contents = folder.contents()
    del contents["images"]
    folder.store(contents)
    opened = open_run(tmp_path / "run")
    assert opened.tensors()[0].keys() == result.tensors()[0].keys()
    classifier = gs.FewShotClassifier(tmp_path / "run")
    for use in (lambda: opened.adapt([0], [0]), lambda: classifier.fit([0], [0])):
        with pytest.raises(DataError, match="there is no dataset 'tiny'"):
            use()


@pytest.mark.usefixtures("few_glyphs")
def test_the_shipped_model_is_opened_by_its_name_without_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tests = ImageTasks(drawn("test", 28), ways=7, shots=3, queries=5)
    batch = tests.batch(range(3))
    classifier = gs.FewShotClassifier("glyphs", calibration_tasks=20)
    right = []
    for x, y, queries, targets in zip(
        batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True
    ):
        right.append(classifier.fit(x, y).score(queries, targets))
    assert np.mean(right) > 0.8
    by_step = classifier.predict_proba_by_step(queries)
    assert by_step.shape == (6, 35, 7)
    np.testing.assert_allclose(by_step[0], 1 / 7, atol=1e-6)  # UNICORN-MAML knows no class yet
    np.testing.assert_array_equal(by_step[-1], classifier.predict_proba(queries))
    assert not list(tmp_path.iterdir())
    # A folder of this name comes first.
    (tmp_path / "glyphs").mkdir()
    with pytest.raises(RunError, match="glyphs holds no run"):
        open_run("glyphs")


def test_a_damaged_configuration_is_named(run: Path) -> None:
    (run / "config.yaml").write_text("wayz: 3\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: unknown setting 'wayz'; did you mean"):
        open_run(run)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (0, "dataset 'glyphs', and the run was started with 'tests.own:signals'"),
        (1, "ways 5, and the run was started with 3"),
        (11, "task_batch 5, and the run was started with 2"),
    ],
)
def test_a_configuration_that_was_cut_is_named_and_not_filled_with_defaults(
    lines: int, words: str, run: Path
) -> None:
    whole = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("".join(whole.splitlines(keepends=True)[:lines]))
    for use in (stored, open_run, lambda path: train(RunConfig(**SIGNALS), path, resume=True)):
        with pytest.raises(RunError) as error:
            use(run)
        assert str(error.value) == (
            f"{run / 'config.yaml'} has {words}; put the file back as it was, or correct this "
            "setting"
        )
    (run / "config.yaml").write_text(whole)
    assert open_run(run).history


def test_a_configuration_that_is_gone_is_written_again(run: Path) -> None:
    before = stored(run)
    (run / "config.yaml").unlink()
    assert stored(run) == before
    assert open_run(run).learner is not None
    train(RunConfig(**SIGNALS), run, resume=True)
    assert RunConfig.from_yaml(run / "config.yaml") == before


def test_a_run_from_before_a_setting_existed_is_opened(run: Path) -> None:
    contents = RunFolder(run).contents()
    del contents["settings"]["order"]
    RunFolder(run).store(contents)
    assert stored(run) == RunConfig.from_yaml(run / "config.yaml")


def test_a_setting_that_was_edited_in_a_runs_folder_is_named(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("batch_norm: auto", "batch_norm: inductive"))
    with pytest.raises(RunError, match="has batch_norm 'inductive', and the run was started with"):
        stored(run)


def test_another_folder_is_refused_before_the_data_is_opened(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    for resume in (False, True):
        with pytest.raises(RunError, match=r"already holds 'notes\.txt'"):
            train(RunConfig(dataset="absent:data"), tmp_path / "run", resume=resume)


def test_a_run_without_a_test_has_none(tmp_path: Path) -> None:
    sines = {"dataset": "tests.own:sines", "model": "tests.own:Curve", "loss": "mse"}
    left_out = {"queries", "ways"}
    settings = {name: value for name, value in SIGNALS.items() if name not in left_out}
    result = train(RunConfig(**{**settings, **sines}), tmp_path / "run")
    assert (result.test, result.score, list(result.metrics)) == (None, "loss", ["loss"])
    assert RunFolder(result.path).contents()["identity"]["metrics"] == {"loss": "low"}
