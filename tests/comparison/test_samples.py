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
from gradshare.comparison.results import SampleTask
from gradshare.comparison.samples import MOST_EXAMPLES, class_names, sample_tasks
from gradshare.tasks import TaskBatch
from gradshare.training.evaluation import labels_of
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


def test_an_image_is_a_picture_of_at_most_64_pixels() -> None:
    grey = sample_tasks(class_tasks(1, 100, 80), 5)[0].queries[0].picture
    picture = Image.open(io.BytesIO(decoded(grey, "png")))
    assert (picture.size, picture.mode) == ((51, 64), "L")
    coloured = sample_tasks(class_tasks(3, 20, 20), 5)[0].queries[0].picture
    assert Image.open(io.BytesIO(decoded(coloured, "jpeg"))).size == (20, 20)
    flat = sample_tasks(class_tasks(30, 30), 5)[0].queries[0].picture
    assert Image.open(io.BytesIO(decoded(flat, "png"))).size == (30, 30)


def test_a_signal_is_a_line_for_each_channel() -> None:
    (task, *_) = sample_tasks(class_tasks(2, 1000), 5)
    drawing = decoded(task.support[0].picture, "svg+xml").decode()
    assert drawing.count("<polyline") == 2
    assert drawing.count(",") == 400


def test_a_task_shows_as_many_examples_of_each_label_in_their_order() -> None:
    (task, *_) = sample_tasks(class_tasks(2, 30, ways=6, queries=4), 5)
    labels = [example.label for example in task.queries]
    assert len(labels) == MOST_EXAMPLES
    assert labels == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5]
    assert [query.place for query in task.queries] == [0, 1, 4, 5, 8, 9, 12, 13, 16, 20]


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
    assert sample_tasks(Fixed(TaskBatch(x, y, x, y)), 4) == ()


def test_padding_values_that_are_not_finite_and_labels_without_names_do_no_harm() -> None:
    x = torch.full((2, 3, 1, 8, 8), math.nan)
    y = torch.tensor([[0, 1, 9], [0, 1, 9]])
    tasks = Fixed(TaskBatch(x, y, x, y, support_n=[2, 3], query_n=[1, 3]))
    assert class_names(tasks, 2) == []
    first, second = sample_tasks(tasks, 2)
    assert (len(first.support), len(first.queries), len(second.queries)) == (2, 1, 3)
    assert (first.classes, second.queries[-1].label) == ((), 9)


def test_the_right_answers_of_each_label_and_the_predictions_leave_padding_out() -> None:
    scores = torch.eye(3)[torch.tensor([[0, 0, 1, 2], [2, 2, 0, 1]])]
    scores[1, 1] = math.nan
    y = torch.tensor([[0, 1, 1, 2], [2, 2, 0, 0]])
    tasks = TaskBatch(scores, y, scores, y, query_n=[4, 2])
    found = labels_of(scores, tasks)
    assert found["right"][0] == [1, 0.5, 1]
    assert found["right"][1] == pytest.approx([math.nan, math.nan, 0.5], nan_ok=True)
    assert found["predicted"] == [[0, 0, 1, 2], [2, -1]]
    assert labels_of(torch.zeros(2, 4), dataclasses.replace(tasks, query_y=torch.zeros(2, 4))) == {}


def test_a_comparison_has_the_accuracy_by_class_and_samples_of_the_tasks_that_it_measured(
    tmp_path: Path,
) -> None:
    executor = ThreadPoolExecutor(1)
    results = small(tmp_path, {"original": arms()["original"]}, executor=executor, seeds=1).results
    test, (run,) = SIGNALS[2], results.runs
    assert all(isinstance(task, SampleTask) for task in results.samples)
    assert len(results.samples) == 3
    assert results.samples[0].classes == tuple(map(str, test.classes_of(0)))
    batch = test.batch(range(len(run.predicted)))
    right = np.array(run.predicted) == batch.query_y.numpy()
    assert right.mean(1).tolist() == pytest.approx(run.test["accuracy"][:3])
    # Each class is in as many queries of a task, so the mean of its tasks is the mean of all.
    counts = dict.fromkeys(run.by_class, 0)
    for index in range(len(run.test["accuracy"])):
        for name in map(str, test.classes_of(index)):
            counts[name] += 1
    weighted = sum(counts[name] * accuracy for name, accuracy in run.by_class.items())
    assert weighted / (WAYS * len(run.test["accuracy"])) == pytest.approx(
        np.mean(run.test["accuracy"])
    )
