"""Class names, pictures and predictions of test tasks, from a source to the results."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gradshare as gs
from gradshare.comparison.results import SampleTask, sample_tasks
from gradshare.tasks import TaskBatch
from gradshare.tasks.pictures import MOST_EXAMPLES
from gradshare.tasks.store import Split
from gradshare.training.metrics import accuracy_by_class, class_names, labels_of
from tests.comparison.small import arms, small
from tests.training.small import SIGNALS, WAYS


def decoded(picture: str, kind: str) -> bytes:
    head, _, content = picture.partition(",")
    assert head == f"data:image/{kind};base64"
    return base64.b64decode(content)


def class_tasks(*shape: int, ways: int = 4, shots: int = 2, queries: int = 3) -> gs.ClassTasks:
    """The examples of class c are images or signals of c's."""
    y = np.repeat(np.arange(12), 10)
    x = np.ones((len(y), *shape)) * y.reshape(-1, *(1 for _ in shape))
    return gs.ClassTasks(x, [f"c{label}" for label in y], ways=ways, shots=shots, queries=queries)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_classes_of_a_task_are_those_its_examples_were_drawn_from(grouped: bool) -> None:
    y = np.repeat(np.arange(12), 10)
    groups = np.tile(np.arange(5), 24) if grouped else None
    tasks = gs.ClassTasks(y[:, None].astype(float), y, ways=3, shots=2, queries=3, groups=groups)
    for source in (tasks, *tasks.split_classes(0.5, 0.5)):
        batch = source.batch(range(20))
        for index in range(20):
            names = source.classes_of(index)
            of_label = [names[label] for label in batch.query_y[index].tolist()]
            assert of_label == batch.query_x[index, :, 0].tolist()


def test_the_classes_of_an_image_task_are_found_in_a_split_of_any_order() -> None:
    images = np.repeat(np.arange(6, dtype=np.uint8), 5)[:, None, None, None] * np.ones(
        (1, 1, 4, 4), np.uint8
    )
    starts = np.array([20, 0, 25, 10])
    split = Split("test", images, ("c4", "c0", "c5", "c2"), starts, np.full(4, 5))
    tasks = gs.ImageTasks(split, ways=3, shots=1, queries=2)
    batch = tasks.batch(range(10))
    for index in range(10):
        names = tasks.classes_of(index)
        found = [f"c{value}" for value in batch.support_x[index, :, 0, 0, 0].tolist()]
        assert list(names) == found


def test_all_tasks_of_groups_have_the_same_classes_and_those_of_real_targets_none() -> None:
    x, groups = np.zeros((24, 3)), np.repeat(np.arange(3), 8)
    tasks = gs.GroupTasks(x, np.tile(["no", "yes"], 12), groups, shots=1, queries=2)
    assert tasks.classes_of(0) == tasks.classes_of(7) == ("no", "yes")
    assert gs.GroupTasks(x, x[:, 0], groups, shots=1, queries=2).classes_of(0) == ()


def first_sample(source: gs.TaskSource, queries: int) -> SampleTask:
    return sample_tasks(source, {"a": [[0] * queries]})[0]


def test_an_image_is_a_picture_of_at_most_64_pixels() -> None:
    grey = first_sample(class_tasks(1, 100, 80), 12).queries[0].image
    picture = Image.open(io.BytesIO(decoded(grey, "png")))
    assert (picture.size, picture.mode) == ((51, 64), "L")
    coloured = first_sample(class_tasks(3, 20, 20), 12).queries[0].image
    assert Image.open(io.BytesIO(decoded(coloured, "jpeg"))).size == (20, 20)
    flat = first_sample(class_tasks(30, 30), 12).queries[0].image
    assert Image.open(io.BytesIO(decoded(flat, "png"))).size == (30, 30)


def test_a_signal_is_a_line_for_each_channel() -> None:
    task = first_sample(class_tasks(2, 1000), 12)
    drawing = decoded(task.support[0].image, "svg+xml").decode()
    assert drawing.count("<polyline") == 2
    assert drawing.count(",") == 400


def test_a_task_shows_as_many_examples_of_each_class_and_what_is_predicted_for_them() -> None:
    source = class_tasks(2, 30, ways=6, queries=4)
    right = source.batch([0]).query_y[0].tolist()
    (task,) = sample_tasks(source, {"right": [right], "wrong": [[9] * 24]})
    names = [query.name for query in task.queries]
    assert len(names) == MOST_EXAMPLES
    assert names == [source.classes_of(0)[label] for label in (0, 0, 1, 1, 2, 2, 3, 3, 4, 5)]
    assert task.predicted["right"] == tuple(names)
    assert task.predicted["wrong"] == ("class 9",) * MOST_EXAMPLES
    assert sample_tasks(source, {}) == ()


@dataclasses.dataclass(frozen=True)
class Fixed:
    tasks: TaskBatch

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        return self.tasks[indices[0] : indices[-1] + 1]


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4, 3, 7),  # rows of features
        torch.zeros(4, 3, 2, 8, dtype=torch.long),  # tokens
        torch.zeros(4, 3, 5, 8, 8),  # five channels
        {"x": torch.zeros(4, 3, 1, 8, 8)},
    ],
)
def test_inputs_that_cannot_be_drawn_give_no_samples(x: Any) -> None:
    y = torch.zeros(4, 3, dtype=torch.long)
    assert sample_tasks(Fixed(TaskBatch(x, y, x, y)), {"a": [[0, 0, 0]]}) == ()


def test_padding_values_that_are_not_finite_and_labels_without_names_do_no_harm() -> None:
    x = torch.full((2, 3, 1, 8, 8), math.nan)
    y = torch.tensor([[0, 1, 9], [0, 1, 9]])
    tasks = Fixed(TaskBatch(x, y, x, y, support_n=[2, 3], query_n=[1, 3]))
    assert class_names(tasks, 2) == []
    first, second = sample_tasks(tasks, {"a": [[1], [0, 1, 9]]})
    assert (len(first.support), len(first.queries), len(second.queries)) == (2, 1, 3)
    assert (first.predicted["a"], second.queries[-1].name) == (("class 1",), "class 9")


def test_a_source_that_cannot_name_its_classes_loses_the_names_and_no_results(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Wrong(Fixed):
        def classes_of(self, index: int) -> Any:
            raise KeyError("breed")

    x = torch.zeros(1, 2, 3)
    assert class_names(Wrong(TaskBatch(x, x, x, x)), 2) == []
    assert (
        "Wrong.classes_of failed: KeyError: 'breed'; the report has no class names" in caplog.text
    )


def test_the_right_answers_of_each_label_and_the_predictions_leave_padding_out() -> None:
    scores = torch.eye(3)[torch.tensor([[0, 0, 1, 2], [2, 2, 0, 1]])]
    scores[1, 1] = math.nan
    y = torch.tensor([[0, 1, 1, 2], [2, 2, 0, 0]])
    tasks = TaskBatch(scores, y, scores, y, query_n=[4, 2])
    found = labels_of(scores, tasks)
    assert found["right"][0] == [1, 0.5, 1]
    assert found["right"][1] == [None, None, 0.5]
    assert found["predicted"] == [[0, 0, 1, 2], [2, -1]]
    assert labels_of(torch.zeros(2, 4), dataclasses.replace(tasks, query_y=torch.zeros(2, 4))) == {}


def test_the_accuracy_on_a_class_is_the_mean_over_the_tasks_that_have_queries_of_it() -> None:
    class Named:
        def batch(self, indices: Sequence[int]) -> Any:
            raise NotImplementedError

        def classes_of(self, index: int) -> tuple[str, ...]:
            return ("cat", "dog") if index < 2 else ("dog", "fox")

    right: list[list[float | None]] = [[1.0, 0.5], [0.0, None], [1.0, None]]
    assert accuracy_by_class(right, Named()) == {"cat": 0.5, "dog": 0.75}


def test_a_comparison_has_the_accuracy_by_class_and_samples_of_the_tasks_that_it_measured(
    tmp_path: Path,
) -> None:
    executor = ThreadPoolExecutor(1)
    results = small(tmp_path, {"original": arms()["original"]}, executor=executor, seeds=1).results
    test, (run,) = SIGNALS[2], results.runs
    assert len(results.samples) == 3
    for index, task in enumerate(results.samples):
        assert [query.name for query in task.queries[:2]] == [str(test.classes_of(index)[0])] * 2
        assert len(task.predicted["original"]) == len(task.queries)
    # Each class has as many queries in a task, so the mean over its tasks is the mean over all.
    counts = dict.fromkeys(run.by_class, 0)
    for index in range(len(run.test["accuracy"])):
        for name in map(str, test.classes_of(index)):
            counts[name] += 1
    weighted = sum(counts[name] * accuracy for name, accuracy in run.by_class.items())
    assert weighted / (WAYS * len(run.test["accuracy"])) == pytest.approx(
        np.mean(run.test["accuracy"])
    )
