"""Tasks that are groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshare.errors import ConfigError, DataError
from gradshare.tasks import GroupTasks
from gradshare.tasks.drawing import generator
from gradshare.tasks.source import require_pure

indices = st.integers(0, 2**62)


def numbered(y: Any, groups: Any, **options: Any) -> GroupTasks:
    """Tasks whose input is the example's number."""
    return GroupTasks(np.arange(len(y)), y, groups, **options)


@st.composite
def cells(draw: st.DrawFn) -> tuple[list[str], list[str], int, int]:
    """Labels and groups in mixed order, with shots and queries for which all groups are enough."""
    shots, queries = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    names, places = "xyz"[: draw(st.integers(1, 3))], "pqrst"[: draw(st.integers(1, 5))]
    pairs = [
        (label, group)
        for label in names
        for group in places
        for _ in range(draw(st.integers(shots + queries, shots + queries + 3)))
    ]
    labels, groups = zip(*draw(st.permutations(pairs)), strict=True)
    return list(labels), list(groups), shots, queries


@settings(max_examples=60, deadline=None)
@given(cells(), indices)
def test_tasks_equal_those_drawn_with_python_lists(
    made: tuple[list[str], list[str], int, int], index: int
) -> None:
    labels, groups, shots, queries = made
    batch = numbered(labels, groups, shots=shots, queries=queries).batch([index])
    random = generator(index)
    group = sorted(set(groups))[random.integers(len(set(groups)))]
    support, query = [], []
    for name in sorted(set(labels)):
        pairs = enumerate(zip(labels, groups, strict=True))
        members = [row for row, pair in pairs if pair == (name, group)]
        drawn = [members[i] for i in random.choice(len(members), shots + queries, False)]
        support += drawn[:shots]
        query += drawn[shots:]
    assert batch.support_x.tolist() == [support]
    assert batch.query_x.tolist() == [query]


@settings(max_examples=60, deadline=None)
@given(cells(), indices, st.booleans())
def test_a_task_depends_on_its_index_only_and_is_one_group_with_the_same_labels_as_the_others(
    made: tuple[list[str], list[str], int, int], index: int, takes_the_rest: bool
) -> None:
    labels, groups, shots, queries = made
    tasks = numbered(labels, groups, shots=shots, queries=None if takes_the_rest else queries)
    require_pure(tasks, index)
    names = tasks.classes or ()
    batch = tasks.batch([index, index + 1, index + 2])
    assert batch.query_y.dtype == torch.int64
    for place in range(3):
        size = batch.query_n[place] if batch.query_n else batch.query_x.shape[1]
        rows = [*batch.support_x[place].tolist(), *batch.query_x[place, :size].tolist()]
        codes = [*batch.support_y[place].tolist(), *batch.query_y[place, :size].tolist()]
        assert len(set(rows)) == len(rows)
        assert len({groups[row] for row in rows}) == 1
        assert [labels[row] for row in rows] == [names[code] for code in codes]
        assert np.bincount(batch.support_y[place]).tolist() == [shots] * len(set(labels))
        of_group = groups.count(groups[rows[0]])
        assert len(rows) == (of_group if takes_the_rest else len(set(labels)) * (shots + queries))


def test_all_examples_that_are_left_are_queries_and_smaller_tasks_are_padded() -> None:
    tasks = numbered([0, 1] * 10, ["p"] * 12 + ["q"] * 8, shots=2, queries=None)
    batch = tasks.batch(range(10))
    assert set(batch.query_n or ()) == {8, 4}
    assert batch.query_x.shape == batch.query_y.shape == (10, 8)
    alone = [tasks.batch([index]) for index in range(10)]
    assert {one.query_x.shape[1] for one in alone} == {8, 4}
    assert [one.query_n[0] for one in alone if one.query_n] == batch.query_n


def test_groups_of_equal_size_need_no_padding() -> None:
    tasks = numbered([0, 1] * 10, ["p", "p", "q", "q"] * 5, shots=2, queries=None)
    batch = tasks.batch(range(4))
    assert batch.query_n is None
    assert batch.query_x.shape == (4, 6)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_real_targets_keep_their_shape_and_stay_with_their_inputs(shape: tuple[int, ...]) -> None:
    row = np.arange(30.0)
    y = row.reshape(-1, *(1 for _ in shape)) + np.arange(np.prod(shape)).reshape(shape) / 8
    tasks = numbered(torch.from_numpy(y), np.repeat(["p", "q", "r"], 10), shots=2, queries=5)
    assert tasks.classes is None
    require_pure(tasks, 3)
    batch = tasks.batch([0, 1])
    assert batch.support_y.shape == (2, 2, *shape)
    assert batch.query_y.shape == (2, 5, *shape)
    assert batch.query_y.dtype == torch.float32
    np.testing.assert_array_equal(batch.query_y, y[batch.query_x])
    assert (batch.query_x // 10 == batch.support_x[:, :1] // 10).all()


def test_more_tasks_than_groups_draw_the_groups_again_with_other_examples() -> None:
    tasks = numbered([0.0] * 40, ["p", "q"] * 20, shots=1, queries=5)
    batch = tasks.batch(range(100))
    assert 30 < int((batch.support_x % 2).sum()) < 70
    assert len({tuple(rows) for rows in batch.query_x.tolist()}) == 100


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 5))
def test_the_groups_of_splits_are_disjoint_and_complete(count: int, seed: int) -> None:
    groups = np.repeat(np.arange(count), 3)
    tasks = numbered(np.zeros(len(groups)), groups, queries=2)
    splits = tasks.split_groups(0.5, 0.5, seed=seed)
    assert sorted(group for split in splits for group in split.groups) == list(tasks.groups)
    assert abs(len(splits[0].groups) - len(splits[1].groups)) <= 1
    for split in splits:
        batch = split.batch(range(20))
        assert {*groups[batch.support_x].flatten()} <= {*split.groups}
    assert splits[0].fingerprint != splits[1].fingerprint


def test_a_split_without_groups_names_itself() -> None:
    tasks = numbered(np.zeros(9), [0, 1, 2] * 3, queries=2)
    with pytest.raises(DataError) as caught:
        tasks.split_groups(0.8, 0.1, 0.1)
    assert str(caught.value) == ("split 3 of 3 has no groups; give it a larger share or add groups")


def test_replace_keeps_the_data_and_leaves_the_original_as_it_was() -> None:
    tasks = numbered([0, 1] * 10, ["p"] * 12 + ["q"] * 8, queries=2)
    changed = tasks.replace(shots=2, queries=None)
    assert changed._examples is tasks._examples
    assert (changed.shots, changed.queries) == (2, None)
    assert (tasks.shots, tasks.queries) == (1, 2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'ways'"):
        tasks.replace(ways=2)
    with pytest.raises(ConfigError, match="queries is 0; give a whole number, at least 1"):
        tasks.replace(queries=0)


def test_fingerprints_differ_where_data_or_settings_do_and_only_there() -> None:
    y, groups = [0, 1] * 10, ["p"] * 12 + ["q"] * 8
    tasks = numbered(y, groups, queries=2)
    others = [
        GroupTasks(np.arange(1, 21), y, groups, queries=2),
        numbered([1, 0] * 10, groups, queries=2),
        numbered([0.0, 1.0] * 10, groups, queries=2),
        numbered(y, ["q"] * 12 + ["p"] * 8, queries=2),
        tasks.replace(shots=2),
        tasks.replace(queries=None),
    ]
    assert len({source.fingerprint for source in (tasks, *others)}) == len(others) + 1
    assert numbered(np.array(y), groups, queries=2).fingerprint == tasks.fingerprint


def test_a_file_gives_the_tasks_of_its_arrays_and_needs_groups(tmp_path: Path) -> None:
    x, y, groups = np.arange(40.0).reshape(20, 2), np.array(["a", "b"] * 10), np.arange(20) // 10
    np.savez(tmp_path / "data.npz", x=x, y=y, groups=groups)
    loaded = GroupTasks.load(tmp_path / "data.npz", shots=2, queries=3)
    expected = GroupTasks(x, y, groups, shots=2, queries=3)
    assert torch.equal(loaded.batch([5]).query_x, expected.batch([5]).query_x)
    assert loaded.fingerprint == expected.fingerprint
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(DataError) as caught:
        GroupTasks.load(tmp_path / "data.npz")
    assert str(caught.value) == (
        f"{tmp_path}/data.npz has no groups; add an array named groups, or use ClassTasks"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"queries": 3},
            "group 'q' of the data has 3 examples of class 'a', a task needs 4 (1 shots + 3 "
            "queries); lower queries or shots, add examples, or leave the group out",
        ),
        (
            {"shots": 3, "queries": None},
            "group 'q' of the data has 3 examples of class 'a', a task needs 4 (3 shots + 1 "
            "queries); lower queries or shots, add examples, or leave the group out",
        ),
        (
            {"y": ["a"] * 8 + ["b"] * 6, "groups": ["p"] * 8 + ["q"] * 6},
            "group 'p' of the data has 0 examples of class 'b', a task needs 3",
        ),
        (
            {"y": np.zeros(14), "queries": 10},
            "group 'q' of the data has 6 examples, a task needs 11 (1 shots + 10 queries)",
        ),
        (
            {"y": [0.0] * 13 + [np.nan]},
            "y holds targets that are not finite; leave those examples out",
        ),
        ({"y": ["a"] * 13 + [None]}, "y[13] is None: 1 of 14 entries are missing"),
        ({"groups": ["p"] * 13}, "the arrays have unequal lengths: groups 13, x 14;"),
        (
            {"x": np.zeros(0), "y": np.zeros(0), "groups": []},
            "the data has no groups; give it a larger share or add groups",
        ),
    ],
)
def test_data_that_cannot_be_used_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {
        "x": np.zeros(14),
        "y": ["a", "b"] * 7,
        "groups": ["p"] * 8 + ["q"] * 6,
        "queries": 2,
        **change,
    }
    with pytest.raises(DataError) as caught:
        GroupTasks(**arguments)
    assert str(caught.value).startswith(message)


def test_the_printed_form_says_what_is_drawn_from_what() -> None:
    assert repr(numbered([0, 1] * 10, ["p"] * 12 + ["q"] * 8, queries=2)) == (
        "GroupTasks(the data: 2 groups, 20 examples; shots=1, queries=2)"
    )
