"""A run that is opened again, with its learner and without, and what can be done with it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.training.run import Run, open_run
from tests.training.small import PROBLEMS, ROWS, Arguments, Wrapped, mlp, named_inputs, rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gs.fit(**rows(), out=tmp_path_factory.mktemp("open") / "run")


def test_without_a_learner_history_metrics_and_tensors_are_read(run: Run) -> None:
    opened = open_run(run.path)
    assert opened.learner is None
    assert opened.history == run.history
    assert opened.table() == run.table()
    assert (opened.test, opened.diverged) == (run.test, None)
    assert opened.environment == run.environment
    assert str(opened.tested) == str(run.tested)
    assert (opened.score, list(opened.metrics)) == ("accuracy", ["accuracy", "loss"])
    for ours, theirs in zip(opened.tensors(), run.tensors(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert repr(opened) == repr(run)
    assert open_run(str(run.path)).seconds == run.seconds > 0


def test_without_a_learner_anything_else_says_what_to_give(run: Run) -> None:
    opened = open_run(run.path)
    task = ROWS[2].batch([0])
    for use in (
        lambda: opened.evaluate(ROWS[2]),
        lambda: opened.adapt(task.support_x[0], task.support_y[0]),
    ):
        with pytest.raises(ConfigError) as error:
            use()
        assert str(error.value) == (
            f"the run in {run.path} was opened without its learner; give it: "
            "open_run(path, learner)"
        )


def test_with_its_learner_it_does_all_that_it_did(run: Run) -> None:
    opened = open_run(run.path, gs.maml(mlp(seed=5), steps=2, sharing=True))
    assert opened.evaluate(ROWS[2], tasks=9).values == run.evaluate(ROWS[2], tasks=9).values
    task = ROWS[2].batch([3])
    nets = [r.adapt(task.support_x[0], task.support_y[0]) for r in (opened, run)]
    assert torch.equal(nets[0](task.query_x[0]), nets[1](task.query_x[0]))


@pytest.mark.parametrize(
    "method",
    [
        *(gs.meta_sgd, gs.anil, gs.boil, gs.alfa, gs.proto_maml, gs.unicorn_maml, gs.reptile),
        *(gs.imaml, gs.protonet, functools.partial(gs.maml_plus_plus, multi_step_iterations=2)),
    ],
)
def test_a_run_of_each_method_is_opened_and_extended_with_a_learner_made_anew(
    method: Callable[..., gs.MetaLearner], tmp_path: Path
) -> None:
    short: Arguments = {"epochs": 1, "iterations": 1, "val_tasks": 2, "test": None}
    run = gs.fit(**rows(learner=method(mlp()), **short), out=tmp_path / "run")
    torch.rand(1)  # another process would have other random numbers
    opened = open_run(run.path, method(mlp()))
    assert opened.evaluate(ROWS[2], tasks=3).values == run.evaluate(ROWS[2], tasks=3).values
    short["epochs"] = 2
    longer = gs.fit(**rows(learner=method(mlp()), **short), out=tmp_path / "run", resume="auto")
    assert longer.history[: len(run.history)] == run.history


@pytest.mark.parametrize(
    "learner",
    [gs.maml(mlp(), steps=3, sharing=True), gs.maml(mlp(), steps=2), gs.maml(mlp(outputs=4))],
)
def test_another_learner_is_refused(learner: gs.MetaLearner, run: Run) -> None:
    with pytest.raises(RunError) as error:
        open_run(run.path, learner)
    assert str(error.value) == (
        f"the run in {run.path} has other meta-parameters than this learner; give the learner that "
        "it was trained with"
    )


def test_a_folder_without_a_run_is_named_with_the_runs_below_it(run: Run, tmp_path: Path) -> None:
    for folder, end in (
        (tmp_path, "give the folder of a run"),
        (run.path.parent, "give one of those below it: run"),
    ):
        with pytest.raises(RunError) as error:
            open_run(folder)
        assert str(error.value) == f"{folder} holds no run (no run.json); {end}"


def test_a_run_of_a_later_version_is_named_with_the_version_that_wrote_it(
    run: Run, tmp_path: Path
) -> None:
    contents = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**contents, "format": 9, "gradshare": "7.1"}), encoding="utf-8")
    with pytest.raises(RunError) as error:
        open_run(tmp_path)
    assert str(error.value) == (
        f"{path} has format 9, and this gradshare reads 2; use gradshare 7.1, which wrote it"
    )


def test_a_run_whose_run_json_was_edited_by_hand_is_refused(tmp_path: Path) -> None:
    def train() -> Run:
        return gs.fit(**rows(epochs=1), out=tmp_path / "run", resume="auto")

    path = train().path / "run.json"
    contents = json.loads(path.read_bytes())
    edits: list[Any] = [{**contents, key: "other"} for key in contents if key != "format"]
    edits += [{k: v for k, v in contents.items() if k != key} for key in contents]
    edits += [[], None, 1, {**contents, "identity": {**contents["identity"], "ensemble": "3"}}]
    for edited in edits:
        path.write_text(json.dumps(edited), encoding="utf-8")
        with pytest.raises(RunError, match=r"run\.json was edited"):
            open_run(path.parent)
        with pytest.raises(RunError, match=r"run\.json was edited"):
            train()
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"run\.json is damaged: .* put it back as it was"):
        open_run(path.parent)
    path.write_text(json.dumps(contents, indent=1), encoding="utf-8")
    assert open_run(path.parent).history


def test_a_run_that_has_not_completed_an_epoch_is_opened_and_has_no_models(tmp_path: Path) -> None:
    def broken(event: gs.Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gs.fit(**rows(callbacks=[broken]), out=tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert opened.history == []
    assert opened.tested is None
    with pytest.raises(
        RunError, match="has completed no epoch: it goes on, was stopped, or diverged in its first"
    ):
        opened.tensors()


# Adapting


def plain_adapt(given: Arguments, run: Run, task: gs.TaskBatch) -> Tensor:
    """The query outputs of one task by the learner itself."""
    learner = given["learner"]
    meta, carried = run.tensors()
    outputs: Tensor = learner.predict(meta, learner.adapt(meta, carried, task), task)[0]
    return outputs


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_run_adapts_to_a_support_set_as_its_learner_does(problem: str, tmp_path: Path) -> None:
    given = PROBLEMS[problem]()
    run = gs.fit(**given, out=tmp_path / "run")
    task = given["test"].batch([4])

    def first(tree: Any) -> Any:
        return {k: t[0] for k, t in tree.items()} if isinstance(tree, dict) else tree[0]

    net = run.adapt(first(task.support_x), task.support_y[0])
    assert isinstance(net, nn.Module)
    assert not net.training
    torch.testing.assert_close(net(first(task.query_x)), plain_adapt(given, run, task))
    more = run.adapt(first(task.support_x), task.support_y[0], steps=5)
    assert not torch.allclose(more(first(task.query_x)), net(first(task.query_x)))


def test_a_support_set_without_examples_or_with_nan_is_refused(run: Run) -> None:
    task = ROWS[2].batch([4])
    x, y = task.support_x[0], task.support_y[0]
    with pytest.raises(DataError) as error:
        run.adapt(x[:0], y[:0])
    assert str(error.value) == "the support set x is empty; give at least one example, as x[None]"
    x[1, 2] = torch.nan
    with pytest.raises(DataError) as error:
        run.adapt(x, y)
    assert str(error.value) == (
        "the support set: support_x of task 1 holds a value that is not finite (NaN or infinite), "
        "and the model can't take it; leave such examples out, or replace these values"
    )


def test_arrays_of_any_type_and_labels_of_any_kind_are_taken(run: Run) -> None:
    task = ROWS[2].batch([4])
    x, codes = task.support_x[0].numpy(), task.support_y[0].numpy()
    expected = run.adapt(x, codes)(task.query_x[0])
    for inputs in (x.astype(np.float64), x.tolist(), torch.from_numpy(x)):
        for labels in (
            np.array(["a", "b", "c"])[codes],
            (10 * codes).tolist(),
            torch.from_numpy(codes).int(),
        ):
            net = run.adapt(inputs, labels)
            assert torch.equal(net(task.query_x[0].double().numpy()), expected)
    assert run.adapt(x, np.array(["a", "b", "c"])[codes]).classes == ("a", "b", "c")
    assert run.adapt(x, 10 * codes).classes == (0, 10, 20)


def test_named_inputs_are_told_by_their_names_and_not_by_their_order(tmp_path: Path) -> None:
    given = named_inputs(epochs=1)
    run = gs.fit(**given, out=tmp_path / "run")
    tasks = given["test"].batch([0])
    x, y = {name: tensor[0] for name, tensor in tasks.support_x.items()}, tasks.support_y[0]
    backwards = dict(reversed(x.items()))
    assert torch.equal(run.adapt(backwards, y)(backwards), run.adapt(x, y)(x))
    for other, words in (({"a": x["a"]}, r"x\['a'\]"), (x["a"], "x")):
        with pytest.raises(DataError, match=f"the inputs are {words}, and the run takes x.'a'.,"):
            run.adapt(other, y)


def test_an_adapted_module_has_the_users_network_with_its_own_parameters(run: Run) -> None:
    task = ROWS[2].batch([4])
    net = run.adapt(task.support_x[0], task.support_y[0])
    assert isinstance(net.network, nn.Sequential)
    assert torch.equal(net.network(task.query_x[0]), net(task.query_x[0]))
    again = run.adapt(task.support_x[0], task.support_y[0])
    assert torch.equal(again(task.query_x[0]), net(task.query_x[0]))


def test_real_targets_are_no_classes(tmp_path: Path) -> None:
    given = PROBLEMS["regression"]()
    run = gs.fit(**given, out=tmp_path / "run")
    x = np.linspace(-1, 1, 5)[:, None]
    assert run.adapt(x, np.sin(x)).classes is None


class Scaled(Wrapped):
    """A source whose inputs are made smaller after the move to the device."""

    def prepare(self, batch: gs.TaskBatch) -> gs.TaskBatch:
        return batch.map(lambda t: t / 10 if t.is_floating_point() else t)


def test_what_the_source_prepares_is_prepared_here_too(tmp_path: Path) -> None:
    sources = dict(zip(("train", "validation", "test"), map(Scaled, ROWS), strict=True))
    run = gs.fit(**rows(**sources), out=tmp_path / "run")
    task = ROWS[2].batch([4])
    x, y, queries = task.support_x[0], task.support_y[0], task.query_x[0]
    expected = run.adapt(x / 10, y, prepare=False)(queries / 10)
    torch.testing.assert_close(run.adapt(x, y)(queries), expected)
    opened = open_run(run.path, rows()["learner"])
    with pytest.raises(ConfigError) as error:
        opened.adapt(x, y)
    assert str(error.value) == (
        f"the source of {run.path} prepares its batches; open the run with it: open_run(path, "
        "learner, source), or give prepared inputs and prepare=False"
    )
    torch.testing.assert_close(opened.adapt(x / 10, y, prepare=False)(queries / 10), expected)
    with_source = open_run(run.path, rows()["learner"], Scaled(ROWS[0]))
    torch.testing.assert_close(with_source.adapt(x, y)(queries), expected)


def test_targets_with_fixed_classes_keep_their_numbers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    y = np.tile(["high", "low", "middle"], 40)
    groups = np.arange(6).repeat(20)
    x = random.normal(size=(120, 6)) + (y == "low")[:, None]
    tasks = gs.GroupTasks(x, y, groups, shots=1, queries=3)
    run = gs.fit(**rows(train=tasks, validation=tasks, test=None), out=tmp_path / "run")
    net = run.adapt(x[:3], ["low", "low", "high"])
    assert net.classes == ("high", "low", "middle")
    assert net(x[:3]).shape == (3, 3)
    with pytest.raises(DataError, match="the label 'none' is none of the classes"):
        run.adapt(x[:3], ["low", "none", "high"])
