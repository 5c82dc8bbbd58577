"""Few-shot classification tasks from labelled arrays."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from gradshare.errors import ConfigError, DataError
from gradshare.tasks import ClassTasks
from gradshare.tasks.drawing import can_divide, generator
from gradshare.tasks.source import require_pure
from tests.tasks.builders import is_of, up_to

indices = st.integers(0, 2**62)


def numbered(y: Any, **options: Any) -> ClassTasks:
    """Tasks whose input is the example's number."""
    return ClassTasks(np.arange(len(y)), y, **options)


class Endless(Dataset[int]):
    """A torch Dataset as users write them: it has no last row."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> int:
        return row


def shuffled_labels(counts: list[int]) -> list[str]:
    """Labels of classes of the given sizes, in mixed order."""
    labels = [f"c{number}" for number, count in enumerate(counts) for _ in range(count)]
    return np.random.default_rng(len(labels)).permutation(labels).tolist()  # type: ignore[no-any-return]


@st.composite
def class_tasks(draw: st.DrawFn) -> ClassTasks:
    shots, queries = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    counts = draw(
        st.lists(st.integers(shots + queries, shots + queries + 6), min_size=1, max_size=8)
    )
    return numbered(
        shuffled_labels(counts),
        ways=draw(up_to(len(counts))),
        shots=draw(up_to(shots)),
        queries=queries,
    )


@st.composite
def grouped_tasks(draw: st.DrawFn) -> tuple[ClassTasks, list[str], list[int]]:
    """Tasks of classes that share groups, so that any two classes can be divided."""
    groups, shots, queries = (
        draw(st.integers(2, 6)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
    )
    cells = [
        (f"c{label}", group)
        for label in range(3)
        for group in range(groups)
        for _ in range(draw(st.integers(max(shots, queries), 5)))
    ]
    labels, of_group = map(list, zip(*cells, strict=True))
    return (
        numbered(labels, groups=of_group, ways=2, shots=shots, queries=queries),
        labels,
        of_group,
    )


def literal_task(y: list[Any], ways: int, shots: int, queries: int, index: int) -> list[list[int]]:
    """The examples of a task, class by class, written with Python lists."""
    random = generator(index)
    members = [[row for row, label in enumerate(y) if label == name] for name in sorted(set(y))]
    classes = random.choice(len(members), ways, replace=False)
    return [
        [members[c][place] for place in random.choice(len(members[c]), shots + queries, False)]
        for c in classes
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(5, 9), min_size=2, max_size=6), st.lists(indices, min_size=1, max_size=3)
)
def test_tasks_equal_those_drawn_with_python_lists(counts: list[int], drawn: list[int]) -> None:
    y = shuffled_labels(counts)
    batch = numbered(y, ways=2, shots=2, queries=3).batch(drawn)
    for place, index in enumerate(drawn):
        rows = literal_task(y, 2, 2, 3, index)
        assert batch.support_x[place].tolist() == [row for of_class in rows for row in of_class[:2]]
        assert batch.query_x[place].tolist() == [row for of_class in rows for row in of_class[2:]]


@settings(max_examples=60, deadline=None)
@given(class_tasks(), indices)
def test_a_task_depends_on_its_index_only(tasks: ClassTasks, index: int) -> None:
    require_pure(tasks, index)


@settings(max_examples=60, deadline=None)
@given(class_tasks(), indices)
def test_the_examples_of_a_task_are_distinct_and_a_label_stands_for_one_class(
    tasks: ClassTasks, index: int
) -> None:
    batch = tasks.batch([index])
    assert batch.support_y.dtype == batch.query_y.dtype == torch.int64
    ways = len(tasks.classes_of(index))
    shots = batch.support_y.shape[1] // ways
    assert is_of(ways, tasks.ways) and is_of(shots, tasks.shots)
    labels = torch.arange(ways)
    assert torch.equal(batch.support_y[0], labels.repeat_interleave(shots))
    assert torch.equal(batch.query_y[0], labels.repeat_interleave(tasks.queries))
    rows = torch.cat([batch.support_x[0], batch.query_x[0]])
    classes = torch.cat([batch.support_y[0], batch.query_y[0]])
    assert len(set(rows.tolist())) == len(rows)
    names = tasks._examples.y
    pairs = {(names[row], label) for row, label in zip(rows, classes.tolist(), strict=True)}
    assert dict(pairs) == {name: label for label, name in enumerate(tasks.classes_of(index))}
    assert len(pairs) == ways


def test_each_number_of_ways_and_shots_of_a_range_is_drawn_as_often() -> None:
    tasks = numbered(shuffled_labels([6] * 9), ways=(2, 6), shots=(1, 4), queries=2)
    batch = tasks.batch(range(2000))
    assert batch.support_n is not None and batch.query_n is not None
    ways = np.array(batch.query_n) // 2
    shots = np.array(batch.support_n) // ways
    found = np.zeros((7, 5))
    np.add.at(found, (ways, shots), 1)
    # Six standard deviations of a binomial count: certain for an even draw, and for these indices.
    np.testing.assert_allclose(found[2:, 1:], 100, atol=60)
    assert found[2:, 1:].sum() == 2000


@settings(max_examples=60, deadline=None)
@given(grouped_tasks(), indices)
def test_no_group_is_on_both_sides_of_a_task(
    made: tuple[ClassTasks, list[str], list[int]], index: int
) -> None:
    tasks, labels, groups = made
    require_pure(tasks, index)
    batch = tasks.batch([index])
    support, query = batch.support_x[0].tolist(), batch.query_x[0].tolist()
    assert not {groups[row] for row in support} & {groups[row] for row in query}
    assert len({*support, *query}) == len(support) + len(query)
    for rows, y in ((support, batch.support_y[0]), (query, batch.query_y[0])):
        assert len({(labels[row], int(label)) for row, label in zip(rows, y, strict=True)}) == 2


def test_support_examples_come_from_many_groups_where_there_are_many() -> None:
    groups = np.arange(2 * 40 * 5) // 5  # 40 groups of 5 examples for each class
    tasks = numbered(["a"] * 200 + ["b"] * 200, groups=groups, ways=2, shots=5)
    support = tasks.batch(range(20)).support_x.reshape(40, 5)
    assert np.mean([len({*groups[rows]}) for rows in support]) > 4


@given(st.lists(st.integers(1, 6), max_size=6), st.integers(1, 8), st.integers(1, 8))
def test_groups_can_be_divided_if_some_choice_of_them_serves_both_sides(
    sizes: list[int], shots: int, queries: int
) -> None:
    choices = itertools.product([False, True], repeat=len(sizes))
    sums = [sum(itertools.compress(sizes, choice)) for choice in choices]
    assert can_divide(sizes, shots, queries) == any(
        support >= shots and sum(sizes) - support >= queries for support in sums
    )


def test_classes_and_examples_are_drawn_evenly() -> None:
    batch = numbered(np.repeat(np.arange(10), 6), ways=4, queries=1).batch(range(2000))
    of_example = torch.bincount(batch.support_x.flatten(), minlength=60).numpy()
    # Six standard deviations of a binomial count: certain for an even draw, and for these indices.
    for counts, share in ((of_example, 0.4 / 6), (of_example.reshape(10, 6).sum(1), 0.4)):
        np.testing.assert_allclose(counts, 2000 * share, atol=6 * np.sqrt(2000 * share))


def test_a_known_task_stays_what_it_is() -> None:
    """A change that changes the tasks makes recorded results unrepeatable."""
    y = np.repeat(np.arange(6), 10)
    batch = numbered(y, ways=3, queries=2).batch([2**40 + 11])
    assert batch.support_x.tolist() == [[42, 27, 1]]
    assert batch.query_x.tolist() == [[48, 46, 25, 24, 4, 2]]
    batch = numbered(y, ways=3, queries=2, groups=np.arange(60) // 2).batch([2**40 + 11])
    assert batch.support_x.tolist() == [[47, 29, 1]]
    assert batch.query_x.tolist() == [[48, 43, 27, 25, 7, 8]]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 30), st.integers(0, 5), st.sampled_from([(0.5, 0.5), (0.6, 0.2, 0.2), (1.0,)])
)
def test_the_classes_of_splits_are_disjoint_and_complete(
    count: int, seed: int, shares: tuple[float, ...]
) -> None:
    tasks = numbered(np.repeat(np.arange(count), 2), ways=1, queries=1)
    if min(shares) * count < 1:
        return
    splits = tasks.split_classes(*shares, seed=seed)
    found = [name for split in splits for name in split.classes]
    assert sorted(found) == list(tasks.classes)
    for split, share in zip(splits, shares, strict=True):
        assert abs(len(split.classes) - share * count) <= 1
    again = tasks.split_classes(*shares, seed=seed)
    assert [split.classes for split in again] == [split.classes for split in splits]


def test_a_split_draws_its_own_classes_only_and_all_of_them() -> None:
    y = np.array(shuffled_labels([6] * 20))
    splits = numbered(y, ways=2, queries=3).split_classes(0.5, 0.25, 0.25)
    for split in splits:
        batch = split.batch(range(200))
        rows = torch.cat([batch.support_x, batch.query_x], 1).flatten()
        assert set(y[rows]) == set(split.classes)
    assert len({split.fingerprint for split in splits}) == 3


def test_another_seed_splits_the_classes_in_another_way() -> None:
    tasks = numbered(np.repeat(np.arange(20), 2), ways=1, queries=1)
    assert (
        tasks.split_classes(0.5, 0.5)[0].classes != tasks.split_classes(0.5, 0.5, seed=1)[0].classes
    )


@pytest.mark.parametrize("shares", [(0.6, 0.3), (1.2, -0.2), (), (0.5, float("nan"))])
def test_shares_that_do_not_add_up_are_named(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        numbered(np.repeat(np.arange(10), 2), ways=1, queries=1).split_classes(*shares)
    assert str(caught.value) == (
        f"the shares of the splits are {shares} and add up to {sum(shares):g}; give fractions "
        "above 0 that add up to 1, such as 0.6, 0.2, 0.2"
    )


def test_a_negative_seed_of_a_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed is -1; give a whole number, at least 0"):
        numbered(np.repeat(np.arange(20), 16)).split_classes(0.5, 0.5, seed=-1)


def test_a_split_with_fewer_classes_than_ways_names_itself() -> None:
    tasks = numbered(np.repeat(np.arange(20), 16))
    with pytest.raises(DataError) as caught:
        tasks.split_classes(0.6, 0.2, 0.2)
    assert str(caught.value) == (
        "5-way tasks need 5 classes, split 2 of 3 has 4; lower ways, or give it more classes"
    )


def test_replace_keeps_the_data_and_leaves_the_original_as_it_was() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    y = np.repeat(list("abcdef"), 10)
    tasks = ClassTasks(x, y, ways=3, queries=4)
    changed = tasks.replace(ways=2, shots=5)
    assert changed._examples is tasks._examples
    assert (changed.ways, changed.shots, changed.queries) == (2, 5, 4)
    assert (tasks.ways, tasks.shots, tasks.queries) == (3, 1, 4)
    fresh = ClassTasks(x, y, ways=2, shots=5, queries=4)
    assert torch.equal(changed.batch([3]).query_x, fresh.batch([3]).query_x)
    assert changed.fingerprint == fresh.fingerprint != tasks.fingerprint
    with pytest.raises(DataError, match="a task needs 11"):
        tasks.replace(shots=7)
    with pytest.raises(TypeError, match="unexpected keyword argument 'way'"):
        tasks.replace(way=2)


def test_fingerprints_differ_where_data_or_settings_do_and_only_there() -> None:
    x, y, groups = np.arange(24.0).reshape(12, 2), ["a", "b"] * 6, np.arange(12) // 2
    tasks = ClassTasks(x, y, ways=2, queries=2, groups=groups)
    moved = x.copy()
    moved[11, 1] += 1e-9
    others = [
        ClassTasks(moved, y, ways=2, queries=2, groups=groups),
        ClassTasks(x.reshape(12, 1, 2), y, ways=2, queries=2, groups=groups),
        ClassTasks(x.astype(np.float32), y, ways=2, queries=2, groups=groups),
        ClassTasks({"a": x}, y, ways=2, queries=2, groups=groups),
        ClassTasks(x, ["b", "a"] * 6, ways=2, queries=2, groups=groups),
        ClassTasks(x, y, ways=2, queries=2, groups=groups // 2),
        ClassTasks(x, y, ways=2, queries=2),
        tasks.replace(ways=1),
        tasks.replace(shots=2),
        tasks.replace(queries=3),
        tasks.replace(ways=1).split_classes(0.5, 0.5)[0],
    ]
    assert len({source.fingerprint for source in (tasks, *others)}) == len(others) + 1
    again = ClassTasks(torch.from_numpy(x), np.array(y), ways=2, queries=2, groups=groups.tolist())
    assert again.fingerprint == tasks.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ways": 3},
            "3-way tasks need 3 classes, the data has 2; lower ways, or give it more classes",
        ),
        (
            {"y": list("aaaaab"), "ways": 1},
            "class 'b' of the data has 1 examples, a task needs 3 (1 shots + 2 queries); lower "
            "queries or shots, add examples, or leave the class out",
        ),
        (
            {"y": list("aabb")},
            "the arrays have unequal lengths: y 4, x 6; give each one entry for each example",
        ),
        (
            {"x": {"a": np.zeros(6), "b": np.zeros(5)}, "groups": [0] * 6},
            "the arrays have unequal lengths: x['a'] 6, x['b'] 5; give each one "
            "entry for each example",
        ),
        ({"y": [*"aabb", None, None]}, "y[4] is None: 2 of 6 entries are missing; leave those"),
        ({"y": [*"aabb", np.nan, "b"]}, "y[4] is nan: 1 of 6 entries are missing; leave those"),
        ({"y": np.array([0, 0, 0, 1, 1, np.nan])}, "y[5] is nan: 1 of 6 entries are missing"),
        ({"groups": [0, 1, 2, 3, None, 5]}, "groups[4] is None: 1 of 6 entries are missing"),
        (
            {"y": [0.0, 0.0, 0.0, 1.0, 1.0, 0.5]},
            "y holds 0.5, which is not a class label; for real-valued targets use GroupTasks or a "
            "source of your own",
        ),
        (
            {"y": np.eye(2, dtype=int)[[0, 0, 0, 1, 1, 1]]},
            "y has the shape (6, 2); give one label for each example, of the shape (n,): "
            "argmax(-1) makes it of one-hot labels",
        ),
        (
            {"x": (np.zeros(6), np.array([[1], [1, 2], [], [], [], []], dtype=object))},
            "x[1] holds object, not numbers; give an array of numbers in which all examples have "
            "one shape: pad sequences, encode texts as token ids",
        ),
        (
            {"x": tuple(np.zeros((600, 2)))},
            "the arrays have unequal lengths: y 6, x[0] 2; give each one entry for each example "
            "(each item of a tuple is one input of the model, for all examples)",
        ),
        (
            {"x": Endless()},
            "a torch Dataset is not an array; read its arrays: "
            "`x, y = next(iter(DataLoader(dataset, batch_size=len(dataset))))`",
        ),
        ({"x": list("abcdef")}, "x holds <U1, not numbers"),
        (
            {"x": np.ma.masked_less(np.arange(6.0), 1.0)},
            "an array has masked entries; leave those examples out, or fill them: x.filled(0)",
        ),
        (
            {"groups": [1, 1, 1, 2, 3, 4]},
            "class 'a' of the data has examples of 1 groups, which cannot be divided into 1 shots "
            "and 2 queries from different groups; lower shots or queries, add groups, or leave the "
            "class out",
        ),
    ],
)
def test_data_that_cannot_be_used_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"x": np.zeros(6), "y": list("aaabbb"), "ways": 2, "queries": 2, **change}
    with pytest.raises(DataError) as caught:
        ClassTasks(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert str(caught.value).startswith(message)


def test_classes_whose_groups_cannot_be_divided_together_are_named() -> None:
    # Class a needs group p on the support side, class b on the query side.
    tasks = numbered(list("aaabbb"), groups=list("ppqpqq"), ways=1, shots=2, queries=1)
    assert len(tasks.batch(range(5))) == 5
    with pytest.raises(DataError) as caught:
        tasks.replace(ways=2).batch([0])
    assert str(caught.value) == (
        "the groups of 2 classes of the data could not be divided into 2 shots and 1 queries of "
        "each, in 1000 draws; lower ways, shots or queries, or use smaller groups"
    )


def test_the_printed_form_says_what_is_drawn_from_what() -> None:
    tasks = numbered(np.repeat(np.arange(30), 20))
    assert repr(tasks) == (
        "ClassTasks(the data: 30 classes, 600 examples; ways=5, shots=1, queries=15)"
    )
    assert repr(tasks.split_classes(0.8, 0.2)[1]).startswith(
        "ClassTasks(split 2 of 2: 6 classes, 120 examples;"
    )
