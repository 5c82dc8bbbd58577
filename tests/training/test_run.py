"""A run, end to end: that it trains any learner, what it writes, and what it refuses."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import gradshare as gs
from gradshare.errors import RunError
from gradshare.tasks.source import training_indices
from gradshare.training.distributed import OneProcess
from gradshare.training.evaluation import ensemble_values, on_all_tasks
from gradshare.training.folder import RunFolder
from gradshare.training.run import Run
from tests.training.killing import latest, records_in, timeless
from tests.training.small import PROBLEMS, ROWS, WAYS, Prototypes, Wrapped, mlp, rows

CPU = torch.device("cpu")


def fit(path: Path, **changes: Any) -> Run:
    return gs.fit(**rows(**changes), out=path)


METHODS: dict[str, Callable[..., gs.MetaLearner]] = {
    "MAML": gs.maml,
    "first-order MAML": lambda model, **more: gs.maml(model, second_order=False, **more),
    "Meta-SGD": gs.meta_sgd,
    "MAML++": lambda model, **more: gs.maml_plus_plus(model, multi_step_iterations=4, **more),
    "UNICORN-MAML": gs.unicorn_maml,
}


@pytest.mark.parametrize("sharing", [None, gs.GradientSharing(), gs.RateControl()])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_trained_and_writes_what_its_run_came_to(
    method: str, sharing: gs.UpdateRule | None, tmp_path: Path
) -> None:
    learner = METHODS[method](mlp(), steps=2, sharing=sharing)
    run = fit(tmp_path / "run", learner=learner)
    assert run.diverged is None
    assert [record.epoch for record in run.history] == [1, 2, 3]
    reported = set().union(*(record.learned for record in run.history))
    expected = {"sharing.m", "sharing.lambda"} if sharing else set()
    if isinstance(sharing, gs.RateControl):
        expected = {"sharing.lambda"}
    assert reported == expected
    assert run.test is not None
    assert len(run.test.ensemble["accuracy"]) == len(run.test.single["loss"]) == 8
    assert run.test.members == 2
    assert records_in(run.path) == run.history
    scores = [-record.mean("accuracy") for record in run.history]
    best = sorted(range(3), key=lambda epoch: (scores[epoch], epoch))[:2]
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        *(f"epoch-{epoch + 1:06d}.safetensors" for epoch in sorted(best)),
        "latest-000000006.safetensors",
        "latest-000000009.safetensors",
    ]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_it_learns(problem: str, tmp_path: Path) -> None:
    options = {"epochs": 2, "iterations": 60, "val_tasks": 40, "task_batch": 4}
    run = gs.fit(**PROBLEMS[problem](**options), out=tmp_path / "run")
    last = run.history[-1]
    for split, adapted in (("support", "support after"), ("query", "validation")):
        before, after = (last.mean(run.score, name) for name in (f"{split} before", adapted))
        assert after < before if run.metrics[run.score].best == "low" else after > before
    if problem != "regression":
        validation = last.metrics["validation"]["accuracy"]
        assert validation.ci95 is not None
        assert validation.mean - 2 * validation.ci95 > 1 / WAYS


def test_images_of_a_prepared_store_are_trained_on(data_root: Path, tmp_path: Path) -> None:
    splits = gs.ImageStore.open(data_root / "tiny" / "16").splits
    sources = [
        gs.ImageTasks(
            splits[name], ways=3, queries=4, normalization=gs.Normalization((0.5,), (0.25,))
        )
        for name in ("train", "val", "test")
    ]
    torch.manual_seed(0)
    model = gs.Conv4(ways=3, image_size=16, channels=1, filters=4)
    learner = gs.maml(model, steps=2, sharing=True)
    names = dict(zip(("train", "validation", "test"), sources, strict=True))
    run = fit(tmp_path / "run", learner=learner, **names)
    images = splits["test"].images[:3].copy()
    net = run.adapt(images, ["a", "b", "c"])
    assert net(images).shape == (3, 3)
    assert net.classes == ("a", "b", "c")


def test_a_learner_with_the_four_methods_and_nothing_else_is_trained_and_adapted(
    tmp_path: Path,
) -> None:
    learner = Prototypes(mlp(outputs=4))
    run = fit(tmp_path / "run", learner=learner, epochs=2, iterations=10)
    assert list(run.metrics) == ["accuracy", "loss"]
    assert run.history[-1].mean("accuracy", "train") > 1 / WAYS
    task = ROWS[2].batch([0])
    net = run.adapt(task.support_x[0], task.support_y[0])
    meta, carried = run.tensors()
    expected = learner.predict(meta, learner.adapt(meta, carried, task), task)
    torch.testing.assert_close(net(task.query_x[0]), expected[0])


def test_the_same_call_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    given = rows()
    one, same, other = (
        gs.fit(**{**given, "seed": seed}, out=tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert timeless(one) == timeless(same) != timeless(other)


def test_a_run_trains_on_the_tasks_of_its_seed_and_validates_on_the_first_ones(
    tmp_path: Path,
) -> None:
    asked: dict[str, set[int]] = {}

    class Noted(Wrapped):
        def batch(self, indices: Any) -> Any:
            asked[self.name].update(indices)
            return super().batch(indices)

    changes: dict[str, Any] = {"seed": 7}
    for name, source in zip(("train", "validation", "test"), ROWS, strict=True):
        asked[name] = set()
        changes[name] = Noted(source)
        changes[name].name = name
    fit(tmp_path / "run", **changes)
    trained = set(training_indices(7, 0, 2 * 9))
    assert asked["train"] >= trained
    assert all(index < 10 for index in asked["train"] - trained)  # the checks before the start
    assert asked["validation"] == set(range(6))
    assert asked["test"] == set(range(8))


def test_the_best_models_are_those_that_the_test_was_of(tmp_path: Path) -> None:
    given = rows()
    run = gs.fit(**given, out=tmp_path / "run")
    assert run.test is not None
    measure = ensemble_values(run.learner, run.models(2), run.metrics)  # type: ignore[arg-type]
    found = on_all_tasks(OneProcess(), given["test"], 8, CPU, measure)
    assert found["ensemble"] == run.test.ensemble
    assert found["single"] == run.test.single
    assert run.evaluate(given["test"], tasks=8).values == run.test.single
    assert run.evaluate(given["test"], tasks=8, ensemble=2).values == run.test.ensemble


def test_neither_the_users_module_nor_the_learner_is_changed(tmp_path: Path) -> None:
    given = PROBLEMS["signals"]()
    model = given["learner"].model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gs.fit(**given, out=tmp_path / "run")
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_folder_that_holds_something_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()  # the message names a file that the user can see
    (folder / "thesis.txt").write_text("years of work", encoding="utf-8")
    for resume in ("never", "auto"):
        with pytest.raises(RunError) as error:
            fit(folder, resume=resume)
        assert str(error.value) == (
            f"the output folder {folder} already holds 'thesis.txt'; choose another (--out), "
            "continue it (resume='auto', --resume auto), or delete it if you no longer need it"
        )
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "thesis.txt"]


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    run = fit(tmp_path / "run")
    with pytest.raises(RunError, match="already holds 'checkpoints'; choose another"):
        fit(tmp_path / "run")
    assert records_in(run.path) == run.history


def test_a_folder_of_the_first_version_is_named_with_the_version_that_reads_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.yaml").write_text("{}", encoding="utf-8")
    (tmp_path / "inputs.json").write_text("{}", encoding="utf-8")
    for use in (functools.partial(fit, resume="auto"), gs.open_run):
        with pytest.raises(RunError) as error:
            use(tmp_path)
        assert str(error.value) == (
            f"the run in {tmp_path} was written by gradshare 0.1.0; use that version to read or "
            "continue it, or train it again"
        )


def test_an_output_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written: Not a directory; free space"):
        fit(tmp_path / "file" / "run")


def test_a_path_may_be_text_and_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = rows(epochs=1)
    gs.fit(**given, out="~/run")
    assert (tmp_path / "run" / "run.json").exists()
    assert gs.open_run("~/run", given["learner"]).evaluate(ROWS[2], tasks=3)
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    "exhausted",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=str,
)
def test_memory_that_runs_out_says_what_to_lower(exhausted: Exception, tmp_path: Path) -> None:
    class Exhausted(Wrapped):
        def batch(self, indices: Any) -> Any:
            if min(indices) in training_indices(0, 4, 2):
                raise exhausted
            return super().batch(indices)

    with pytest.raises(RunError) as error:
        fit(tmp_path / "run", train=Exhausted(ROWS[0]))
    assert str(error.value) == (
        f"memory ran out ({exhausted}); lower the task batch, the inner steps, the queries or the "
        "size of the model or its inputs, or use memory='recompute' (--memory recompute) or the "
        "first order"
    )
    assert latest(tmp_path / "run").progress["iteration"] == 3


def test_the_time_of_training_is_without_validation_and_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, added = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + added[0])

    class Slow(Wrapped):
        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            added[0] += 1e6
            return super().batch(indices)

    given = rows(validation=Slow(ROWS[1]), test=Slow(ROWS[2]))
    run = gs.fit(**given, out=tmp_path / "run")
    saved = RunFolder(run.path).load_latest()
    assert saved is not None
    assert saved.progress["training_seconds"] < 1e6 < run.seconds


def test_the_test_source_may_follow_the_others_and_a_folder_have_any_name(tmp_path: Path) -> None:
    given = rows()
    parts = [given.pop(name) for name in ("learner", "train", "validation", "test")]
    run = gs.fit(*parts, out=tmp_path / "r\udcffn", **given)
    assert run.test is not None
    assert gs.open_run(run.path).tensors()
