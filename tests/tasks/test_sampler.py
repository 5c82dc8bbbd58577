"""The episode sampler: a pure function of (seed, split, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshare.errors import ConfigError, DataError
from gradshare.tasks import EpisodeSampler, Split, TaskBatch
from tests.tasks.builders import random_images

SIZE = 6
BEFORE = 3  # rows of the store that belong to another split


def make_split(counts: list[int], name: str = "train") -> Split:
    starts = BEFORE + np.cumsum([0, *counts[:-1]])
    images = random_images(BEFORE + sum(counts), size=SIZE)
    names = tuple(f"class {number}" for number in range(len(counts)))
    return Split(name, images, names, starts, np.array(counts))


@dataclass(frozen=True)
class Setting:
    """Arguments of a sampler that fit each other."""

    split: Split
    ways: int
    shots: int
    queries: int
    seed: int
    rotate_classes: bool

    def sampler(self) -> EpisodeSampler:
        return EpisodeSampler(
            self.split,
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            seed=self.seed,
            rotate_classes=self.rotate_classes,
        )


@st.composite
def setting_strategy(draw: st.DrawFn) -> Setting:
    shots, queries = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    counts = draw(
        st.lists(st.integers(shots + queries, shots + queries + 6), min_size=1, max_size=8)
    )
    return Setting(
        make_split(counts, draw(st.sampled_from(["train", "val", "test"]))),
        draw(st.integers(1, len(counts))),
        shots,
        queries,
        draw(st.integers(0, 2**40)),
        draw(st.booleans()),
    )


settings_of_samplers = setting_strategy()
indices = st.integers(0, 2**40)


def equal(a: TaskBatch, b: TaskBatch) -> bool:
    return all(
        torch.equal(getattr(a, field), getattr(b, field))
        for field in ("support_x", "support_y", "query_x", "query_y")
    )


@settings(max_examples=60, deadline=None)
@given(settings_of_samplers, indices)
def test_classes_are_distinct_and_images_are_drawn_without_replacement(
    setting: Setting, index: int
) -> None:
    split = setting.split
    rows, turns = setting.sampler().rows(index)
    assert rows.shape == (setting.ways, setting.shots + setting.queries)
    assert turns.shape == (setting.ways,)
    classes = [int(np.searchsorted(split.starts, of_class[0], "right")) - 1 for of_class in rows]
    assert len(set(classes)) == setting.ways
    for number, of_class in zip(classes, rows, strict=True):
        assert of_class.min() >= split.starts[number]
        assert of_class.max() < split.starts[number] + split.counts[number]
    assert len(np.unique(rows)) == rows.size  # support and query are disjoint


@settings(max_examples=60, deadline=None)
@given(settings_of_samplers, st.lists(indices, min_size=1, max_size=4))
def test_a_task_depends_on_nothing_that_was_drawn_before(
    setting: Setting, drawn: list[int]
) -> None:
    once = setting.sampler()
    together = once.batch(drawn)
    assert len(together) == len(drawn)
    for place, index in reversed(list(enumerate(drawn))):
        alone = setting.sampler().batch([index])
        assert equal(alone, once.batch([index]))
        assert torch.equal(alone.support_x[0], together.support_x[place])
        assert torch.equal(alone.query_x[0], together.query_x[place])


@settings(max_examples=60, deadline=None)
@given(settings_of_samplers, indices)
def test_images_are_the_stores_turned_by_right_angles(setting: Setting, index: int) -> None:
    sampler = setting.sampler()
    rows, turns = sampler.rows(index)
    tasks = sampler.batch([index])
    assert setting.rotate_classes or not turns.any()
    stored = setting.split.images[rows]
    ways, shots, queries = setting.ways, setting.shots, setting.queries
    support = tasks.support_x.numpy().reshape(ways, shots, 1, SIZE, SIZE)
    query = tasks.query_x.numpy().reshape(ways, queries, 1, SIZE, SIZE)
    drawn = np.concatenate([support, query], axis=1)
    for way in range(ways):
        for image, original in zip(drawn[way], stored[way], strict=True):
            # Turning back gives the very bytes: turning loses nothing.
            np.testing.assert_array_equal(np.rot90(image[0], -turns[way]), original[0])


@settings(max_examples=20, deadline=None)
@given(settings_of_samplers, st.integers(1, 3))
def test_labels_follow_each_other(setting: Setting, tasks: int) -> None:
    batch = setting.sampler().batch(range(tasks))
    ways, shots, queries = setting.ways, setting.shots, setting.queries
    assert batch.support_x.shape == (tasks, ways * shots, 1, SIZE, SIZE)
    assert batch.query_x.shape == (tasks, ways * queries, 1, SIZE, SIZE)
    assert batch.support_x.dtype == batch.query_x.dtype == torch.uint8
    assert batch.support_y.dtype == batch.query_y.dtype == torch.int64
    labels = [way for way in range(ways) for _ in range(shots)]
    assert batch.support_y.tolist() == [labels] * tasks
    labels = [way for way in range(ways) for _ in range(queries)]
    assert batch.query_y.tolist() == [labels] * tasks


def test_a_batch_owns_its_memory() -> None:
    """Writing into a batch must not reach the store (which is read-only when it is mapped)."""
    split = make_split([4, 4])
    before = split.images.copy()
    batch = EpisodeSampler(split, ways=2, shots=1, queries=2, seed=0).batch([0])
    batch.support_x.zero_()
    batch.query_x.zero_()
    np.testing.assert_array_equal(split.images, before)


def test_seed_split_and_index_each_change_the_task() -> None:
    counts = [20] * 30

    def task(seed: int, name: str, index: int) -> bytes:
        sampler = EpisodeSampler(make_split(counts, name), ways=5, shots=1, queries=5, seed=seed)
        return sampler.rows(index)[0].tobytes()

    tasks = {
        task(seed, name, index)
        for seed in (0, 1)
        for name in ("train", "val", "test")
        for index in (0, 1)
    }
    assert len(tasks) == 12


def test_a_known_task_stays_what_it_is() -> None:
    """A change to the sampler that changes its tasks makes recorded results unrepeatable."""
    sampler = EpisodeSampler(
        make_split([10] * 6), ways=3, shots=1, queries=2, seed=7, rotate_classes=True
    )
    rows, turns = sampler.rows(11)
    assert rows.tolist() == [[38, 36, 41], [26, 28, 25], [3, 11, 5]]
    assert turns.tolist() == [0, 1, 0]


def test_classes_and_turns_are_drawn_evenly() -> None:
    split = make_split([6] * 10)
    sampler = EpisodeSampler(split, ways=4, shots=1, queries=1, seed=0, rotate_classes=True)
    of_class, of_turn, of_image = np.zeros(10), np.zeros(4), np.zeros(len(split.images))
    for index in range(2000):
        rows, turns = sampler.rows(index)
        np.add.at(of_class, (rows[:, 0] - BEFORE) // 6, 1)
        np.add.at(of_turn, turns, 1)
        np.add.at(of_image, rows[:, 0], 1)
    # Six standard deviations of a binomial count: certain for an even draw, and for this seed.
    for counts, share in ((of_class, 0.4), (of_turn / 4, 0.25), (of_image[BEFORE:], 0.4 / 6)):
        np.testing.assert_allclose(counts, 2000 * share, atol=6 * np.sqrt(2000 * share))


def test_too_few_classes_is_named() -> None:
    with pytest.raises(DataError) as caught:
        EpisodeSampler(make_split([20] * 4, "val"), ways=5, shots=1, queries=15, seed=0)
    assert str(caught.value) == (
        "5-way tasks need 5 classes, split 'val' has 4; lower --ways or add classes"
    )


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(DataError) as caught:
        EpisodeSampler(make_split([20, 19, 25]), ways=2, shots=5, queries=15, seed=0)
    assert str(caught.value) == (
        "class 'class 1' of split 'train' has 19 images, a task needs 20 (5 shots + 15 queries); "
        "lower --queries or --shots, or add images"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 0}, "ways is 0; give a whole number, at least 1"),
        ({"shots": 0}, "shots is 0; give a whole number, at least 1"),
        ({"shots": -1}, "shots is -1; give a whole number, at least 1"),
        ({"queries": 0}, "queries is 0; give a whole number, at least 1"),
        ({"seed": -1}, "seed is -1; give a whole number, at least 0"),
        (
            {"split": "train"},
            "split is a str; give one of a store's splits, such as store.splits['train']",
        ),
    ],
)
def test_a_setting_out_of_bounds_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EpisodeSampler(
            **{
                "split": make_split([9, 9]),
                "ways": 2,
                "shots": 1,
                "queries": 2,
                "seed": 0,
                **settings,
            }
        )
    assert str(caught.value) == message


def test_indices_may_be_a_tensor() -> None:
    sampler = EpisodeSampler(make_split([9, 9]), ways=2, shots=1, queries=2, seed=0)
    drawn = sampler.batch(torch.tensor([7, 2]))
    assert torch.equal(drawn.query_x, sampler.batch([7, 2]).query_x)


def test_tasks_that_do_not_exist_are_named() -> None:
    sampler = EpisodeSampler(make_split([9, 9]), ways=2, shots=1, queries=2, seed=0)
    with pytest.raises(DataError) as caught:
        sampler.batch([])
    assert str(caught.value) == "a batch needs at least one task, and no index was given"
    with pytest.raises(DataError) as caught:
        sampler.batch([0, -1])
    assert str(caught.value) == "there is no task -1; tasks are counted from 0"


def test_splits_can_be_compared() -> None:
    one, other = make_split([4]), make_split([4])
    assert one == one  # noqa: PLR0124
    assert one != other
