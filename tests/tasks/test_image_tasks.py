"""Image tasks: what they are made of, as a pure function of their index."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshare.errors import ConfigError, DataError
from gradshare.tasks import ImageTasks, Normalization, Split
from gradshare.tasks.source import require_pure
from tests.tasks.builders import is_of, random_images, random_store, up_to

SIZE = 6
BEFORE = 3  # rows of the store that belong to another split

indices = st.integers(0, 2**62)


def make_split(counts: list[int], name: str = "train") -> Split:
    starts = BEFORE + np.cumsum([0, *counts[:-1]])
    images = random_images(BEFORE + sum(counts), size=SIZE)
    names = tuple(f"class {number}" for number in range(len(counts)))
    return Split(name, images, names, starts, np.array(counts))


@st.composite
def image_tasks(draw: st.DrawFn) -> ImageTasks:
    shots, queries = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    counts = draw(
        st.lists(st.integers(shots + queries, shots + queries + 6), min_size=1, max_size=8)
    )
    return ImageTasks(
        make_split(counts),
        ways=draw(up_to(len(counts))),
        shots=draw(up_to(shots)),
        queries=queries,
        rotate_classes=draw(st.booleans()),
    )


@settings(max_examples=20, deadline=None)
@given(indices)
def test_no_group_is_in_both_the_support_and_the_query_set_of_a_task(index: int) -> None:
    split = make_split([12, 12, 12])
    groups = np.array(["other"] * BEFORE + [f"recording {row // 4}" for row in range(36)])
    tasks = ImageTasks(dataclasses.replace(split, groups=groups), ways=3, shots=2, queries=4)
    rows, _ = tasks.rows(index)
    support, query = rows[:, :2], rows[:, 2:]
    assert not {*groups[support].flat} & {*groups[query].flat}
    ungrouped = ImageTasks(split, ways=3, shots=2, queries=4)
    assert tasks.fingerprint != ungrouped.fingerprint


def test_a_class_of_one_group_is_named() -> None:
    split = dataclasses.replace(
        make_split([4, 4]), groups=np.array(["a"] * (BEFORE + 4) + [*"bbcc"])
    )
    with pytest.raises(DataError) as error:
        ImageTasks(split, ways=2, shots=1, queries=2)
    assert str(error.value) == (
        "class 'class 0' of split 'train' has examples of 1 groups, which cannot be divided into 1 "
        "shots and 2 queries from different groups; lower shots or queries, add groups, or leave "
        "the class out"
    )


@settings(max_examples=60, deadline=None)
@given(image_tasks(), indices)
def test_classes_are_distinct_and_images_are_drawn_without_replacement(
    tasks: ImageTasks, index: int
) -> None:
    split = tasks.split
    rows, turns = tasks.rows(index)
    ways, examples = rows.shape
    assert is_of(ways, tasks.ways) and is_of(examples - tasks.queries, tasks.shots)
    assert turns.shape == (ways,)
    classes = [int(np.searchsorted(split.starts, of_class[0], "right")) - 1 for of_class in rows]
    assert len(set(classes)) == ways
    for number, of_class in zip(classes, rows, strict=True):
        assert of_class.min() >= split.starts[number]
        assert of_class.max() < split.starts[number] + split.counts[number]
    assert len(np.unique(rows)) == rows.size  # support and query are disjoint


@settings(max_examples=60, deadline=None)
@given(image_tasks(), indices)
def test_a_task_depends_on_its_index_only(tasks: ImageTasks, index: int) -> None:
    require_pure(tasks, index)


@settings(max_examples=60, deadline=None)
@given(image_tasks(), indices)
def test_images_are_those_of_the_store_turned_by_right_angles(
    tasks: ImageTasks, index: int
) -> None:
    rows, turns = tasks.rows(index)
    batch = tasks.batch([index])
    assert tasks.rotate_classes or not turns.any()
    support = batch.support_x.numpy().reshape(len(rows), -1, 1, SIZE, SIZE)
    query = batch.query_x.numpy().reshape(len(rows), tasks.queries, 1, SIZE, SIZE)
    drawn = np.concatenate([support, query], axis=1)
    for way, turn in enumerate(turns):
        for image, row in zip(drawn[way], rows[way], strict=True):
            np.testing.assert_array_equal(np.rot90(image[0], -turn), tasks.split.images[row, 0])


@settings(max_examples=20, deadline=None)
@given(image_tasks(), indices)
def test_classes_follow_each_other_within_a_task(tasks: ImageTasks, index: int) -> None:
    rows, _ = tasks.rows(index)
    batch = tasks.batch([index])
    ways, shots, queries = len(rows), rows.shape[1] - tasks.queries, tasks.queries
    assert batch.support_x.shape == (1, ways * shots, 1, SIZE, SIZE)
    assert batch.query_x.shape == (1, ways * queries, 1, SIZE, SIZE)
    assert batch.support_x.dtype == batch.query_x.dtype == torch.uint8
    assert batch.support_y.dtype == batch.query_y.dtype == torch.int64
    labels = [way for way in range(ways) for _ in range(shots)]
    assert batch.support_y.tolist() == [labels]
    labels = [way for way in range(ways) for _ in range(queries)]
    assert batch.query_y.tolist() == [labels]


def test_a_batch_owns_its_memory() -> None:
    """Writing into a batch must not reach the store."""
    split = make_split([4, 4])
    before = split.images.copy()
    batch = ImageTasks(split, ways=2, shots=1, queries=2).batch([0, 1])
    batch.map(torch.Tensor.zero_)
    np.testing.assert_array_equal(split.images, before)


def test_a_known_task_stays_what_it_is() -> None:
    """A change that changes the tasks makes recorded results unrepeatable."""
    tasks = ImageTasks(make_split([10] * 6), ways=3, shots=1, queries=2, rotate_classes=True)
    rows, turns = tasks.rows(2**40 + 11)
    assert rows.tolist() == [[45, 51, 49], [30, 28, 27], [4, 7, 5]]
    assert turns.tolist() == [1, 0, 3]


def test_classes_images_and_turns_are_drawn_evenly() -> None:
    split = make_split([6] * 10)
    tasks = ImageTasks(split, ways=4, shots=1, queries=1, rotate_classes=True)
    of_class, of_turn, of_image = np.zeros(10), np.zeros(4), np.zeros(len(split.images))
    for index in range(2000):
        rows, turns = tasks.rows(index)
        np.add.at(of_class, (rows[:, 0] - BEFORE) // 6, 1)
        np.add.at(of_turn, turns, 1)
        np.add.at(of_image, rows[:, 0], 1)
    # Six standard deviations of a binomial count: certain for an even draw, and for these indices.
    for counts, share in ((of_class, 0.4), (of_turn / 4, 0.25), (of_image[BEFORE:], 0.4 / 6)):
        np.testing.assert_allclose(counts, 2000 * share, atol=6 * np.sqrt(2000 * share))


def test_prepare_applies_the_normalization_or_scales_to_the_unit_interval() -> None:
    normalization = Normalization([0.4], [0.2])
    plain = ImageTasks(make_split([9, 9]), ways=2, queries=3)
    batch = plain.batch([0])
    found = plain.prepare(batch)
    torch.testing.assert_close(found.support_x, batch.support_x / 255)
    torch.testing.assert_close(found.query_x, batch.query_x / 255)
    assert found.query_y is batch.query_y
    found = plain.replace(normalization=normalization).prepare(batch)
    assert torch.equal(found.query_x, normalization(batch.query_x))


def test_replace_keeps_the_images_and_the_other_settings() -> None:
    tasks = ImageTasks(make_split([9, 9]), ways=2, queries=3, rotate_classes=True)
    changed = tasks.replace(shots=5)
    assert changed.split is tasks.split
    assert (changed.ways, changed.shots, changed.queries) == (2, 5, 3)
    assert changed.rotate_classes
    with pytest.raises(DataError, match="a task needs 10"):
        tasks.replace(shots=7)
    with pytest.raises(TypeError, match="shot"):
        tasks.replace(shot=5)


def test_fingerprints_differ_where_images_classes_or_settings_do(tmp_path: Path) -> None:
    split = random_store(tmp_path / "4", {"train": [5, 5], "val": [5, 5], "test": [9]}).splits[
        "train"
    ]
    tasks = ImageTasks(split, ways=2, queries=2)
    inverted = dataclasses.replace(split, images=255 - split.images)
    names = dataclasses.replace(split, class_names=("a", "b"))
    counts = dataclasses.replace(split, counts=np.array([4, 5]))
    others = [
        tasks.replace(queries=3),
        tasks.replace(shots=2),
        tasks.replace(ways=1),
        tasks.replace(ways=(1, 2)),
        tasks.replace(rotate_classes=True),
        tasks.replace(normalization=Normalization([0.5], [0.5])),
        *(tasks.replace(split=other) for other in (inverted, names, counts)),
        tasks.replace(split=dataclasses.replace(inverted, images=split.images.copy() + 1)),
    ]
    fingerprints = {source.fingerprint for source in (tasks, *others)}
    assert len(fingerprints) == len(others) + 1
    assert ImageTasks(split, ways=2, queries=2).fingerprint == tasks.fingerprint


def test_the_printed_form_is_short_with_any_number_of_classes() -> None:
    tasks = ImageTasks(make_split([16] * 1000))
    assert "Split(name='train')" in repr(tasks)
    assert len(repr(tasks)) < 200


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ways": (2, 5)}, "5-way tasks need 5 classes, split 'train' has 4; "),
        ({"ways": 2, "shots": (1, 9)}, r"a task needs 12 \(9 shots \+ 3 queries\); lower"),
    ],
)
def test_the_largest_task_of_a_range_must_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageTasks(make_split([11] * 4), queries=3, **sizes)


def test_too_few_classes_are_named() -> None:
    with pytest.raises(DataError) as caught:
        ImageTasks(make_split([20] * 4, "val"))
    assert str(caught.value) == (
        "5-way tasks need 5 classes, split 'val' has 4; lower ways, or give it more classes"
    )


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(DataError) as caught:
        ImageTasks(make_split([20, 19, 25]), ways=2, shots=5)
    assert str(caught.value) == (
        "class 'class 1' of split 'train' has 19 examples, a task needs 20 (5 shots + 15 queries); "
        "lower queries or shots, add examples, or leave the class out"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 0}, "ways is 0; give a whole number, at least 1"),
        ({"shots": (0, 3)}, "shots is 0; give a whole number, at least 1"),
        ({"ways": (1, 2.5)}, "ways is 2.5; give a whole number, at least 1"),
        *(
            (
                {"shots": size},
                f"shots is {size}; give a number, or the smallest and the largest: shots=(2, 5)",
            )
            for size in [(3, 1), (1, 2, 2), (1,), [1, 2]]
        ),
        ({"shots": 0}, "shots is 0; give a whole number, at least 1"),
        ({"queries": 1.5}, "queries is 1.5; give a whole number, at least 1"),
        (
            {"split": "train"},
            "split is a str; give one of a store's splits, such as "
            "ImageStore.open(path).splits['train']",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ImageTasks(**{"split": make_split([9, 9]), "ways": 2, "queries": 2, **settings})
    assert str(caught.value) == message
