"""The supervised start: a body that tells all training classes apart."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.errors import ConfigError, RunError

CLASSES, NUMBERS = 20, 16


def source(seed: int = 0, noise: float = 2.0) -> gs.ClassTasks:
    """Classes that differ in 4 of 16 numbers; the others are loud noise."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLASSES, 1, NUMBERS)) * (np.arange(NUMBERS) < 4)
    loud = random.normal(size=(CLASSES, 30, NUMBERS)) * np.where(np.arange(NUMBERS) < 4, 0.3, noise)
    labels = np.repeat([f"class {number}" for number in range(CLASSES)], 30)
    return gs.ClassTasks((centres + loud).reshape(-1, NUMBERS), labels, shots=1, queries=5)


def network(seed: int = 0) -> gs.MLP:
    torch.manual_seed(seed)
    return gs.MLP(ways=5, features=NUMBERS, hidden=32)


def nearest_mean(body: nn.Module, tasks: gs.TaskBatch) -> float:
    with torch.no_grad():
        means, queries = body(tasks.support_x), body(tasks.query_x)  # 1-shot
    found = torch.cdist(queries, means).argmin(-1)
    return float((found == tasks.query_y).double().mean())


def test_classes_that_were_never_seen_are_told_apart_better_by_the_trained_body() -> None:
    train, test = source().split_classes(0.7, 0.3)
    tasks = test.batch(range(100))
    model = network()
    started = gs.supervised_start(model, train)
    assert nearest_mean(started.body, tasks) > nearest_mean(model.body, tasks) + 0.1


def test_the_head_and_the_given_model_stay_as_they_were_and_a_seed_gives_the_same_body() -> None:
    model, before = network(), copy.deepcopy(network().state_dict())
    state = torch.get_rng_state()
    one, two = (gs.supervised_start(model, source(), iterations=5, seed=3) for _ in range(2))
    other = gs.supervised_start(model, source(), iterations=5, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
        assert torch.equal(model.state_dict()[name], before[name])
        assert torch.equal(tensor, before[name]) == name.startswith("head")
    weights = [model.state_dict()["body.0.weight"] for model in (one, other)]
    assert not torch.equal(*weights)


class Pictures:
    """Tasks of pictures and of unequal numbers of queries, with names of classes."""

    def __init__(self, number: float = 0.0) -> None:
        self.padding = number

    def batch(self, indices: Any) -> gs.TaskBatch:
        random = np.random.default_rng(len(indices))
        x = torch.from_numpy(random.normal(size=(len(indices), 2, 1, 16, 16)).astype(np.float32))
        y = torch.tensor([0, 1]).expand(len(indices), 2)
        queries = x.clone()
        queries[:, 1] = self.padding
        return gs.TaskBatch(x, y, queries, y.clone(), query_n=[1] * len(indices))

    def classes_of(self, index: int) -> tuple[str, str]:
        return "even", "odd"


def test_any_network_with_a_linear_head_can_be_started_and_padding_teaches_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    plain, padded = (
        gs.supervised_start(model, Pictures(number), iterations=3) for number in (0.0, 9.0)
    )
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, padded.state_dict()[name])
    images = gs.Conv4(ways=2, image_size=16, channels=1, filters=4)
    started = gs.supervised_start(images, Pictures(), iterations=2)
    name = "blocks.0.conv.weight"
    assert not torch.equal(started.state_dict()[name], images.state_dict()[name])


def test_a_network_without_a_linear_head_or_a_source_without_names_cannot_be_started() -> None:
    for model in (nn.ReLU(), nn.Linear(NUMBERS, 5)):
        with pytest.raises(ConfigError, match=r"a linear head, and this one \((ReLU|Linear)\)"):
            gs.supervised_start(model, source())
    with pytest.raises(ConfigError, match=r"give Sinusoids a method classes_of\(index\)"):
        gs.supervised_start(network(), gs.Sinusoids())


def fit(out: Path, learner: gs.Learner, **options: Any) -> gs.Run:
    train, validation = source().split_classes(0.7, 0.3)
    few = {"start_iterations": 40, "epochs": 1, "iterations": 2}
    options = {"start": "supervised", **few, **options}
    return gs.fit(
        learner, train, validation, out=out, task_batch=2, val_tasks=5, progress=False, **options
    )


def parameters(run: gs.Run) -> dict[str, Tensor]:
    return dict(run.models()[0][0])


def test_fit_starts_from_the_trained_body(tmp_path: Path) -> None:
    train, _ = source().split_classes(0.7, 0.3)
    by_fit = fit(tmp_path / "one", gs.maml(network()))
    started = gs.supervised_start(network(), train, iterations=40)
    by_hand = fit(tmp_path / "two", gs.maml(started), start="random")
    for name, tensor in parameters(by_hand).items():
        assert torch.equal(parameters(by_fit)[name], tensor)


def test_a_run_that_is_continued_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(tmp_path / "whole", gs.maml(network()), epochs=2)
    fit(tmp_path / "parts", gs.maml(network()))
    monkeypatch.setattr("gradshare.training.fit.train_body", None)
    parts = fit(tmp_path / "parts", gs.maml(network()), epochs=2, resume="auto")
    for name, tensor in parameters(whole).items():
        assert torch.equal(parameters(parts)[name], tensor)
    with pytest.raises(RunError, match="start"):
        fit(tmp_path / "parts", gs.maml(network()), epochs=2, resume="auto", start="random")
    with pytest.raises(RunError, match="holds a run with start steps 40, this one has 41"):
        fit(tmp_path / "parts", gs.maml(network()), epochs=2, resume="auto", start_iterations=41)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_started_again(tmp_path: Path) -> None:
    whole = fit(tmp_path / "run", gs.maml(network()))
    expected = parameters(whole)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = fit(tmp_path / "run", gs.maml(network()), resume="auto")
    for name, tensor in expected.items():
        assert torch.equal(parameters(again)[name], tensor)


def test_a_learner_whose_head_has_another_shape_is_started_too(tmp_path: Path) -> None:
    model = network()
    run = fit(tmp_path / "run", gs.unicorn_maml(model), iterations=1)
    moved = parameters(run)["model.body.0.weight"] - model.state_dict()["body.0.weight"]
    assert moved.abs().max() > 0.01  # one step of Adam at 1e-3 moves no weight so far


def test_a_learner_that_cannot_be_started_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    body = nn.Sequential(nn.Conv1d(1, 1, 1))
    with pytest.raises(ConfigError, match="a supervised start needs a network"):
        fit(tmp_path / "run", gs.maml(body))
    with pytest.raises(ConfigError, match="start 'superviced' is unknown"):
        fit(tmp_path / "run", gs.maml(network()), start="superviced")
    assert not (tmp_path / "run").exists()
