"""A run does not depend on the caller's settings and generators, and leaves them as they were."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from gradshare.tasks.batch import PARTS, task_of
from gradshare.training.loop import read_ahead
from gradshare.training.run import Run
from tests.training.killing import require_same_end
from tests.training.small import PROBLEMS, ROWS, WAYS, Wrapped, mlp, rows, seeded, signals


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


@contextmanager
def bfloat16_in_matrix_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def other_seeds() -> Iterator[None]:
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    yield


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64 by default": float64_by_default,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta by default": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic_algorithms,
    "bfloat16 in matrix products": bfloat16_in_matrix_products,
    "other seeds": other_seeds,
}


def arguments(problem: str) -> Any:
    return {**PROBLEMS, "rows": rows}[problem]()


def first_task(problem: str) -> tuple[Any, Any, Any]:
    """The support set and the queries of the first test task."""
    task = arguments(problem)["test"].batch([0])
    return task_of(task.support_x, 0), task_of(task.support_y, 0), task_of(task.query_x, 0)


def predicted(problem: str, run: Run, x: Any, y: Any, queries: Any) -> Any:
    if problem == "regression":
        return run.adapt(x, y)(queries).tolist()
    classifier = gs.FewShotClassifier(run, calibration_tasks=20)
    return classifier.fit(x, y).predict_proba(queries).tolist()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Run, Any]]:
    """The run of a problem where the caller has set nothing, and what it predicts."""

    @functools.cache
    def trained(problem: str) -> tuple[Run, Any]:
        run = gs.fit(**arguments(problem), out=tmp_path_factory.mktemp("whole") / "run")
        return run, predicted(problem, run, *first_task(problem))

    return trained


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        *((name, "rows") for name in SURROUNDINGS),
        *((name, "signals") for name in ("float64 by default", "autocast", "other seeds")),
        ("float64 by default", "regression"),
        ("float64 by default", "named inputs"),
    ],
)
def test_a_run_and_its_resume_do_not_depend_on_what_the_caller_has_set(
    name: str,
    problem: str,
    tmp_path: Path,
    undisturbed: Callable[[str], tuple[Run, Any]],
) -> None:
    given, task, (whole, expected) = arguments(problem), first_task(problem), undisturbed(problem)
    with SURROUNDINGS[name]():
        gs.fit(**{**given, "epochs": 2}, out=tmp_path / "run")
        run = gs.fit(**given, out=tmp_path / "run", resume="auto")
        found = run.evaluate(given["test"], tasks=8)
        assert predicted(problem, run, *task) == expected
    require_same_end(whole, run)
    assert whole.test is not None
    assert found.values == whole.test.single


@pytest.mark.parametrize("name", ["float64 by default", "autocast"])
def test_a_dry_run_does_not_either(name: str) -> None:
    given = signals()
    del given["progress"]
    expected = gs.estimate(**given)
    with SURROUNDINGS[name]():
        found = gs.estimate(**given)
    assert (found.layout, found.memory) == (expected.layout, expected.memory)


def generators() -> tuple[Any, ...]:
    array: Any = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), array[1].tolist(), array[2], random.getstate()


def test_the_callers_generators_and_settings_are_left_as_they_were(tmp_path: Path) -> None:
    def change(event: gs.Event) -> None:
        torch.rand(1)
        np.random.rand()  # noqa: NPY002
        random.random()

    before = generators()
    given = signals(callbacks=[change])
    run = gs.fit(**given, out=tmp_path / "run")
    assert generators() == before
    run.evaluate(given["test"], tasks=5)
    assert generators() == before
    task = given["test"].batch([0])
    run.adapt(task.support_x[0], task.support_y[0])
    assert generators() == before
    del given["progress"], given["callbacks"]
    gs.estimate(**given)
    assert generators() == before
    assert torch.is_grad_enabled()
    with pytest.raises(gs.ConfigError):
        gs.fit(**signals(learner=gs.maml(mlp())), out=tmp_path / "refused")
    assert generators() == before


def test_callbacks_that_draw_random_numbers_change_nothing(tmp_path: Path) -> None:
    def draw(event: gs.Event) -> None:
        torch.rand(event.iteration)

    whole = gs.fit(**signals(), out=tmp_path / "whole")
    require_same_end(whole, gs.fit(**signals(callbacks=[draw]), out=tmp_path / "run"))


class SeedsTheGlobalGenerators(Wrapped):
    """A source that is a function of the index in the way that many people write one."""

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        parts = []
        for index in indices:
            torch.manual_seed(index % 2**32)
            np.random.seed(index % 2**32)  # noqa: NPY002
            batch = super().batch([index])
            parts.append(replace(batch, query_x=batch.query_x + np.random.normal()))  # noqa: NPY002
        support_x, support_y, query_x, query_y = (
            torch.cat([getattr(part, name) for part in parts]) for name in PARTS
        )
        return gs.TaskBatch(support_x, support_y, query_x, query_y)


def test_a_source_that_seeds_global_generators_is_used_in_turn_with_the_model(
    tmp_path: Path,
) -> None:
    """With dropout, which draws from the same generator."""

    def fit(name: str, **changes: Any) -> Run:
        given = signals(**changes)
        for source in ("train", "validation", "test"):
            given[source] = SeedsTheGlobalGenerators(given[source])
        return gs.fit(**given, out=tmp_path / name, resume="auto")

    whole = fit("whole")
    require_same_end(whole, fit("again"))
    fit("run", epochs=2)
    require_same_end(whole, fit("run"))


def test_only_a_source_that_leaves_the_generators_alone_is_read_ahead() -> None:
    class Noting(Wrapped):
        threads: list[threading.Thread]

        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            self.threads.append(threading.current_thread())
            return super().batch(indices)

    for source, ahead in ((ROWS[0], True), (SeedsTheGlobalGenerators(ROWS[0]), False)):
        noting = Noting(source)
        noting.threads = []
        batches = read_ahead(noting, [range(2), range(2, 4), range(4, 6)])
        assert torch.equal(next(batches).query_x, source.batch(range(2)).query_x)
        _, *readers = noting.threads  # the first call looks whether the generators change
        assert len(readers) in ((1, 2) if ahead else (1,))
        assert (threading.current_thread() not in readers) == ahead
        for indices in (range(2, 4), range(4, 6)):
            assert torch.equal(next(batches).query_x, source.batch(indices).query_x)
        assert list(batches) == []


def test_what_a_source_raises_while_it_is_read_ahead_reaches_the_caller(tmp_path: Path) -> None:
    class Broken(Wrapped):
        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            if min(indices) >= 2**40 + 8:
                raise OSError("the disk is gone")
            return super().batch(indices)

    with pytest.raises(OSError, match="the disk is gone"):
        gs.fit(**rows(train=Broken(ROWS[0])), out=tmp_path / "run")


def test_dropout_draws_anew_in_each_iteration_and_is_off_in_evaluation(tmp_path: Path) -> None:
    seen: list[tuple[bool, Tensor]] = []

    class Noted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = nn.functional.dropout(x, 0.5)
            seen.append((self.training, x.detach().clone()))
            return x

    with seeded():
        model = nn.Sequential(nn.Linear(6, 4), Noted(), nn.Linear(4, WAYS))
    given = rows(learner=gs.maml(model, steps=1), tasks="loop", memory="keep")
    run = gs.fit(**given, out=tmp_path / "run")
    masks = [x == 0 for training, x in seen if training and len(x) == 3]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > len(masks) / 2
    seen.clear()
    run.evaluate(ROWS[2], tasks=3)
    assert seen
    assert not any(training for training, _ in seen)


# Tasks of unequal size


def groups_of_unequal_size(x_seed: int = 0) -> gs.GroupTasks:
    generator = np.random.default_rng(x_seed)
    sizes = [6, 7, 9, 12, 8, 10]
    y = np.concatenate([np.arange(size) % WAYS for size in sizes])
    of_group = np.repeat(np.arange(len(sizes)), sizes)
    x = generator.normal(size=(len(y), 6)) + 2 * np.eye(6)[y]
    return gs.GroupTasks(x, y, of_group, shots=1, queries=None)


def test_padded_batches_are_trained_on_and_measured_without_their_padding(tmp_path: Path) -> None:
    tasks = groups_of_unequal_size()
    given = rows(train=tasks, validation=tasks, test=None, epochs=2, iterations=10)
    run = gs.fit(**given, out=tmp_path / "run")
    assert "(loop)" in run.environment["layout"]
    assert run.history[-1].mean("accuracy") > 1 / WAYS
    learner, (meta, carried) = given["learner"], run.tensors()
    found = run.evaluate(tasks, tasks=12).values
    for index in range(12):
        alone = tasks.batch([index])  # alone it has no padding
        n = None if alone.query_n is None else alone.query_n[0]
        outputs = learner.predict(meta, learner.adapt(meta, carried, alone), alone)[0][:n]
        right = (outputs.argmax(1) == alone.query_y[0][:n]).double().mean()
        assert found["accuracy"][index] == float(right)
        loss = nn.functional.cross_entropy(outputs, alone.query_y[0][:n])
        assert found["loss"][index] == pytest.approx(float(loss), rel=1e-5)


def test_padding_with_anything_gives_the_same_run(tmp_path: Path) -> None:
    class PaddedWithNaN(Wrapped):
        def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
            batch = super().batch(indices)
            for task, n in enumerate(batch.query_n or ()):
                batch.query_x[task, n:] = float("nan")
            return batch

    tasks = groups_of_unequal_size()
    whole = gs.fit(**rows(train=tasks, validation=tasks, test=None), out=tmp_path / "zeros")
    nan = PaddedWithNaN(tasks)
    require_same_end(
        whole, gs.fit(**rows(train=nan, validation=nan, test=None), out=tmp_path / "n")
    )


def test_regression_over_groups_of_unequal_size_is_trained(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = [6, 7, 9, 12]
    of_group = np.repeat(np.arange(4), sizes)
    x = generator.normal(size=(len(of_group), 6))
    y = (x[:, :1] * (1 + of_group[:, None])).astype(np.float64)
    tasks = gs.GroupTasks(x, y, of_group, shots=3, queries=None)
    learner = gs.maml(mlp(outputs=1), steps=2, sharing=True, loss=nn.functional.mse_loss)
    given = rows(learner=learner, train=tasks, validation=tasks, test=None, epochs=4)
    run = gs.fit(**given, out=tmp_path / "run")
    assert run.score == "loss"
    assert run.history[-1].mean("loss") < run.history[0].mean("loss")
