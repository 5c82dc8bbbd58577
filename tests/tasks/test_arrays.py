"""The arrays and files that a source of tasks takes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradshare.errors import DataError
from gradshare.tasks import ClassTasks, GroupTasks, TaskBatch


@pytest.mark.parametrize(
    ("given_type", "expected"),
    [
        (np.float64, torch.float32),
        (np.float32, torch.float32),
        (np.float16, torch.float32),
        (np.uint8, torch.float32),
        (np.dtype(">f8"), torch.float32),
        (np.int64, torch.int64),
        (np.int32, torch.int64),
        (np.uint16, torch.int64),
        (np.bool_, torch.bool),
    ],
)
def test_inputs_have_the_types_that_networks_take(given_type: Any, expected: torch.dtype) -> None:
    x = (np.arange(12).reshape(6, 2) % 2).astype(given_type)
    batch = ClassTasks(x, [0] * 3 + [1] * 3, ways=2, queries=2).batch([0, 1])
    assert batch.support_x.dtype == batch.query_x.dtype == expected
    assert batch.query_x.shape == (2, 4, 2)
    assert torch.equal(batch.query_x, torch.tensor([0, 1]).to(expected).expand(2, 4, 2))


def test_several_inputs_keep_their_form_and_their_examples_stay_together() -> None:
    row = np.arange(12)
    x = {"signal": (torch.arange(12.0)[:, None] * torch.ones(3), row), "mask": row[:, None] > 5}
    batch = ClassTasks(x, ["a", "b"] * 6, ways=2, queries=4).batch([0, 5])
    (signal, number), mask = batch.query_x["signal"], batch.query_x["mask"]
    assert signal.shape == (2, 8, 3)
    assert mask.shape == (2, 8, 1)
    assert torch.equal(signal[..., 0], number.float())
    assert torch.equal(mask[..., 0], number > 5)


@pytest.mark.parametrize(
    "y",
    [
        [3, 1, 3, 1, 3, 1],
        ["cat", "dog"] * 3,
        [True, False] * 3,
        np.array(["cat", "dog"] * 3, dtype=object),
        torch.tensor([1, 0] * 3),
        [1.0, 2.0] * 3,
        ("a", "b") * 3,
    ],
)
def test_labels_may_be_of_any_type_that_can_be_sorted(y: Any) -> None:
    tasks = ClassTasks(range(6), y, ways=2, queries=2)
    assert list(tasks.classes) == sorted(set(y.tolist() if hasattr(y, "tolist") else y))
    for index in range(5):
        batch = tasks.batch([index])
        parity = torch.cat([batch.support_x, batch.query_x], 1)[0] % 2
        assert parity.tolist() in ([0, 1, 0, 0, 1, 1], [1, 0, 1, 1, 0, 0])


def test_memory_mapped_inputs_are_read_when_they_are_used(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    y = np.repeat(np.arange(6), 10)
    mapped = ClassTasks(np.load(tmp_path / "x.npy", mmap_mode="r"), y, queries=3)
    assert isinstance(mapped._examples.x.base, np.memmap)
    batch = mapped.batch([0, 1])
    assert torch.equal(batch.query_x, ClassTasks(x, y, queries=3).batch([0, 1]).query_x)
    batch.query_x.zero_()  # the file is open for reading only


@pytest.mark.parametrize("cut", ["x", "y"])
@pytest.mark.parametrize("load", [True, False], ids=["load", "memory maps"])
def test_a_file_that_is_cut_while_it_is_used_is_named(cut: str, load: bool, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2000))
    for name, array in (("x", rows), ("y", rows), ("groups", np.arange(60) // 6)):
        np.save(tmp_path / f"{name}.npy", array)
    if load:
        tasks = GroupTasks.load(tmp_path, queries=3)
    else:
        x, y, groups = (
            np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "y", "groups")
        )
        tasks = GroupTasks(x, y, groups, queries=3)
    assert len(tasks.batch([0])) == 1
    os.truncate(tmp_path / f"{cut}.npy", 5000)
    with pytest.raises(DataError) as caught:
        tasks.batch([0])
    assert str(caught.value) == (
        f"{tmp_path / cut}.npy was cut from 960128 to 5000 bytes while it was in use; put it back"
    )


def save_npz(root: Path, x: Any, y: Any, groups: Any) -> Path:
    np.savez(root / "data.npz", x=x, y=y, groups=groups)
    return root / "data.npz"


def save_folder(root: Path, x: Any, y: Any, groups: Any) -> Path:
    for name, array in (("x", x), ("y", y), ("groups", groups)):
        np.save(root / f"{name}.npy", array)
    return root


@pytest.mark.parametrize("save", [save_npz, save_folder])
def test_a_file_and_a_folder_give_the_tasks_of_their_arrays(tmp_path: Path, save: Any) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4))
    y, groups = np.repeat(list("abcdef"), 10), np.arange(60) // 3
    loaded = ClassTasks.load(save(tmp_path, x, y, groups), ways=3, queries=2)
    expected = ClassTasks(x, y, groups=groups, ways=3, queries=2)
    assert torch.equal(loaded.batch([4, 9]).query_x, expected.batch([4, 9]).query_x)
    assert loaded.fingerprint == expected.fingerprint


def test_a_folder_with_a_file_for_each_class_gives_classes_of_their_names(tmp_path: Path) -> None:
    x = {name: np.random.default_rng(i).normal(size=(4 + i, 3)) for i, name in enumerate("bca")}
    for name, array in x.items():
        np.save(tmp_path / f"{name}.npy", array)
    loaded = ClassTasks.load(str(tmp_path), ways=2, queries=3)
    assert loaded.classes == ("a", "b", "c")
    joined = np.concatenate([x[name] for name in "abc"])
    expected = ClassTasks(joined, list("a" * 6 + "b" * 4 + "c" * 5), ways=2, queries=3)
    assert loaded.fingerprint == expected.fingerprint
    for drawn in ([0], list(range(30))):
        assert torch.equal(loaded.batch(drawn).support_x, expected.batch(drawn).support_x)
        assert torch.equal(loaded.batch(drawn).query_x, expected.batch(drawn).query_x)


def test_a_pickle_of_tasks_from_a_folder_holds_the_paths_and_not_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(ord(name)).normal(size=(20, 500)))
    monkeypatch.chdir(tmp_path)
    tasks = ClassTasks.load(".", ways=2)
    content = pickle.dumps(tasks.split_classes(1.0)[0])
    assert len(content) < 5_000
    monkeypatch.chdir("/")
    again: TaskBatch = pickle.loads(content).batch([3])
    assert torch.equal(again.query_x, tasks.batch([3]).query_x)


def test_a_place_without_examples_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", x=np.zeros(3))
    for path in (tmp_path, tmp_path / "none.npz", tmp_path / "images.npz"):
        with pytest.raises(DataError) as caught:
            ClassTasks.load(path)
        assert str(caught.value) == (
            f"there are no examples in {path}; give an .npz file with the arrays x, y and perhaps "
            "groups, a folder with x.npy, y.npy and perhaps groups.npy, or a folder with one "
            "NAME.npy for each class"
        )


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\3\4nonsense", b"\x93NUMPY\1\0"])
@pytest.mark.parametrize("name", ["a.npy", "data.npz"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    path = tmp_path if name == "a.npy" else tmp_path / name
    with pytest.raises(DataError, match=f"{name} cannot be read: "):
        ClassTasks.load(path)


def test_classes_whose_examples_differ_in_shape_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    np.save(tmp_path / "b.npy", np.zeros((4, 2)))
    with pytest.raises(DataError) as caught:
        ClassTasks.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/b.npy has examples of float64 (2,), {tmp_path}/a.npy of float64 (3,); bring "
        "them to one shape and type"
    )
