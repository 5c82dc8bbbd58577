"""The store: what is written is what is read, whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshare.errors import DataError
from gradshare.tasks import ImageTasks
from gradshare.tasks.store import SPLITS, ImageStore
from gradshare.tasks.writing import ClassImages, write_store
from tests.tasks.builders import random_classes, random_images, random_store

COUNTS = {"train": [3, 1], "val": [2], "test": [2, 2]}


def write(path: Path, classes: list[ClassImages]) -> ImageStore:
    return write_store(path, classes, name="noise", rotate_classes=False, source={})


@settings(max_examples=25, deadline=None)
@given(
    counts=st.fixed_dictionaries(
        {split: st.lists(st.integers(1, 4), min_size=1, max_size=4) for split in SPLITS}
    ),
    channels=st.sampled_from([1, 3]),
    size=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_every_class_comes_back_as_it_was_written(
    counts: dict[str, list[int]], channels: int, size: int, order: Any
) -> None:
    classes = random_classes(counts, channels=channels, size=size)
    order.shuffle(classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data" / "4"
        write_store(path, iter(classes), name="n", rotate_classes=True, source={"a": [1, "é"]})
        store = ImageStore.open(path)
        assert (store.name, store.path, store.rotate_classes) == ("n", path, True)
        assert store.source == {"a": [1, "é"]}
        assert store.image_shape == (channels, size, size)
        assert sum(len(split.class_names) for split in store.splits.values()) == len(classes)
        for item in classes:
            split = store.splits[item.split]
            number = split.class_names.index(item.name)
            start, count = split.starts[number], split.counts[number]
            np.testing.assert_array_equal(split.images[start : start + count], item.images)
        train = np.concatenate([item.images for item in classes if item.split == "train"]) / 255
        np.testing.assert_allclose(store.mean, train.mean(axis=(0, 2, 3)), rtol=1e-12)
        std = train.std(axis=(0, 2, 3))
        np.testing.assert_allclose(store.std, np.where(std > 0, std, 1), rtol=1e-7)


def test_the_group_of_each_image_comes_back(tmp_path: Path) -> None:
    classes = [
        dataclasses.replace(item, groups=[f"{item.name} {row}" for row in range(2)])
        for item in random_classes({"test": [2], "val": [2], "train": [2]})
    ]
    store = write(tmp_path / "s", classes)
    for split in store.splits.values():
        (start,) = split.starts
        assert split.groups is not None
        of_class = split.groups[start : start + 2].tolist()
        assert of_class == [f"{split.class_names[0]} 0", f"{split.class_names[0]} 1"]
    classes[1] = dataclasses.replace(classes[1], groups=None)
    with pytest.raises(DataError, match="4 groups are given for 6 images; give one for each"):
        write(tmp_path / "t", classes)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    written = write_store(
        str(tmp_path / "4"), random_classes(COUNTS), name="n", rotate_classes=False, source={}
    )
    assert written.path == ImageStore.open(str(tmp_path / "4")).path == tmp_path / "4"


def test_the_images_are_not_read_on_opening(tmp_path: Path) -> None:
    store = random_store(tmp_path / "4", COUNTS)
    assert isinstance(store.splits["train"].images, np.memmap)


def test_a_pickle_holds_no_images_and_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random_store(Path("20"), {"train": [30, 30, 30], "val": [9], "test": [9]}, size=20)
    store = ImageStore.open("20")
    split = store.splits["train"]
    tasks = ImageTasks(split, ways=2, shots=1, queries=3)
    pickles = [pickle.dumps(item) for item in (tasks, split, store)]
    assert max(map(len, pickles)) < 2_000 < split.images.nbytes / 20
    monkeypatch.chdir("/")
    again = pickle.loads(pickles[0])
    expected, found = tasks.batch(range(3)), again.batch(range(3))
    for name in ("support_x", "support_y", "query_x", "query_y"):
        assert torch.equal(getattr(expected, name), getattr(found, name))
    assert isinstance(again.split.images, np.memmap)
    np.testing.assert_array_equal(pickle.loads(pickles[1]).images, split.images)
    opened = pickle.loads(pickles[2])
    for name, of_store in opened.splits.items():
        assert of_store.images is opened.splits["train"].images
        assert of_store.class_names == store.splits[name].class_names
        np.testing.assert_array_equal(of_store.starts, store.splits[name].starts)
    assert (opened.mean, opened.source, opened.sha256) == (store.mean, store.source, store.sha256)


def test_a_split_whose_images_are_not_the_stores_is_pickled_with_them(stored: Path) -> None:
    split = ImageStore.open(stored).splits["train"]
    inverted = dataclasses.replace(split, images=255 - split.images)
    again = pickle.loads(pickle.dumps(inverted))
    np.testing.assert_array_equal(again.images, 255 - split.images)
    # What is cut out of the map is no more the whole of it.
    part = dataclasses.replace(split, images=split.images[:4], starts=split.starts[:1])
    again = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(again.images, split.images[:4])
    assert again.starts.tolist() == [0]


def test_a_pickle_of_images_that_were_replaced_is_refused(stored: Path) -> None:
    content = pickle.dumps(ImageStore.open(stored))
    shutil.rmtree(stored)
    with pytest.raises(DataError, match="no prepared dataset in"):
        pickle.loads(content)
    random_store(stored, {"train": [5], "val": [5], "test": [5]})
    with pytest.raises(DataError) as caught:
        pickle.loads(content)
    assert str(caught.value) == (
        f"the dataset in {stored} was prepared anew since what reads it was pickled; open it again"
    )


def test_the_index_has_the_digest_of_the_images(tmp_path: Path) -> None:
    store = random_store(tmp_path / "4", COUNTS)
    images = np.ascontiguousarray(store.splits["train"].images)
    index = json.loads((tmp_path / "4" / "index.json").read_text(encoding="utf-8"))
    assert store.sha256 == index["sha256"] == hashlib.sha256(images.tobytes()).hexdigest()


def test_a_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    classes = [ClassImages(s, s, np.full((2, 1, 3, 3), 51, dtype=np.uint8)) for s in SPLITS]
    store = write(tmp_path / "3", classes)
    assert store.mean == (0.2,)
    assert store.std == (1.0,)


def test_a_reader_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[ClassImages]:
        yield from random_classes(COUNTS)
        raise DataError("the last image is damaged")

    with pytest.raises(DataError, match="the last image is damaged"):
        write_store(tmp_path / "4", failing(), name="n", rotate_classes=False, source={})
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    random_store(tmp_path / "4", COUNTS)
    before = (tmp_path / "4" / "images.npy").read_bytes()

    def unexpected() -> Iterator[ClassImages]:
        pytest.fail("the classes were read for nothing")
        yield

    with pytest.raises(DataError) as caught:
        write_store(tmp_path / "4", unexpected(), name="n", rotate_classes=False, source={})
    assert str(caught.value) == (
        f"{tmp_path / '4'} is there already and is not overwritten; delete it, or write to another "
        "path"
    )
    assert (tmp_path / "4" / "images.npy").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["4"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ClassImages("test", "train class 0", random_images(2)),
            "class 'train class 0' is in 'train' and in 'test': splits must not overlap; give it "
            "to one of them",
        ),
        (
            ClassImages("dev", "a", random_images(2)),
            "class 'a' is in split 'dev'; use one of ('train', 'val', 'test')",
        ),
        (
            ClassImages("test", "a", random_images(0)),
            "class 'a' has no images; remove it or add some",
        ),
        (
            ClassImages("test", "a", random_images(2, size=5)),
            "images of class 'a' are (1, 5, 5), those before it (1, 4, 4)",
        ),
        (
            ClassImages("test", "a", random_images(2).astype(np.float32)),
            "images of class 'a' are float32 (2, 1, 4, 4); give uint8 (n, C, H, W), the channels "
            "first, with H = W and none of them above 4096",
        ),
        (  # as Pillow has them
            ClassImages("test", "a", np.zeros((2, 4, 4, 3), np.uint8)),
            "images of class 'a' are uint8 (2, 4, 4, 3); give uint8 (n, C, H, W), the channels "
            "first, with H = W and none of them above 4096",
        ),
        (
            ClassImages("test", "a", np.zeros((2, 4, 4), np.uint8)),
            "images of class 'a' are uint8 (2, 4, 4); give uint8 (n, C, H, W), the channels "
            "first, with H = W and none of them above 4096",
        ),
        (
            ClassImages("test", "a", np.zeros((2, 5000, 4, 4), np.uint8)),
            "images of class 'a' are uint8 (2, 5000, 4, 4); give uint8 (n, C, H, W), the channels "
            "first, with H = W and none of them above 4096",
        ),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    tmp_path: Path, extra: ClassImages, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        write(tmp_path / "4", [*random_classes(COUNTS), extra])
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_images_may_be_tensors_and_a_source_may_hold_paths(tmp_path: Path) -> None:
    classes = [
        ClassImages(one.split, one.name, torch.from_numpy(one.images))  # type: ignore[arg-type]
        for one in random_classes(COUNTS)
    ]
    store = write(tmp_path / "4", classes)
    assert store.sha256 == write(tmp_path / "5", random_classes(COUNTS)).sha256
    source = {"from": Path("there")}
    classes = random_classes(COUNTS)
    store = write_store(tmp_path / "6", classes, name="x", rotate_classes=False, source=source)
    assert store.source == {"from": "there"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": 7},
            "the store's index cannot be written (name: Input should be a valid string); correct "
            "it",
        ),
        (
            {"rotate_classes": "yes"},
            "the store's index cannot be written (rotate_classes: Input should be a valid "
            "boolean); correct it",
        ),
        ({"source": {"a": object()}}, "the store's index cannot be written (Unable to serialize"),
        ({"class_name": 3}, "a class has the name 3; give a str"),
    ],
)
def test_what_would_not_open_again_is_not_written(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first, *others = random_classes(COUNTS)
    named = dataclasses.replace(first, name=given.get("class_name", first.name))
    options = {"name": "n", "rotate_classes": False, "source": {}, **given}
    options.pop("class_name", None)
    with pytest.raises(DataError) as caught:
        write_store(tmp_path / "4", [named, *others], **options)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_stores_repr_fits_a_line_or_two(tmp_path: Path) -> None:
    store = random_store(tmp_path / "4", {split: [1] * 50 for split in SPLITS})
    assert len(repr(store)) < 400
    assert store.name in repr(store)


def test_every_split_needs_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        write(tmp_path / "4", random_classes({"train": [2], "test": [2]}))
    assert str(caught.value) == (
        "no classes in split 'val'; every one of ('train', 'val', 'test') needs some"
    )


def test_opening_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ImageStore.open(tmp_path / "none")
    assert str(caught.value) == (
        f"no prepared dataset in {tmp_path / 'none'}; run `gradshare data prepare` first"
    )


def refused(path: Path) -> str:
    """The error of opening a store, which must say how to mend it."""
    with pytest.raises(DataError) as caught:
        ImageStore.open(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(f"delete {path} and run `gradshare data prepare` again")
    return message


def edit_index(path: Path, **changes: object) -> None:
    index = json.loads((path / "index.json").read_text(encoding="utf-8"))
    (path / "index.json").write_text(json.dumps(index | changes), encoding="utf-8")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return random_store(tmp_path / "4", COUNTS).path


def test_another_format_version_is_named(stored: Path) -> None:
    edit_index(stored, format_version=7)
    assert "has store format 7, this gradshare reads 1" in refused(stored)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '"index"'])
def test_a_damaged_index_is_named(stored: Path, text: str) -> None:
    (stored / "index.json").write_text(text, encoding="utf-8")
    assert f"the prepared dataset in {stored} is damaged" in refused(stored)


@pytest.mark.parametrize(
    "key", ["format_version", "name", "shape", "mean", "std", "sha256", "splits"]
)
def test_an_index_without_an_entry_is_damaged(stored: Path, key: str) -> None:
    index = json.loads((stored / "index.json").read_text(encoding="utf-8"))
    del index[key]
    (stored / "index.json").write_text(json.dumps(index), encoding="utf-8")
    assert re.search(rf"is damaged \('?{key}('|: Field required)\)", refused(stored))


@pytest.mark.parametrize("entry", [{"start": 9, "count": 5}, {"start": -1, "count": 2}])
def test_rows_outside_the_images_are_named(stored: Path, entry: dict[str, int]) -> None:
    index = json.loads((stored / "index.json").read_text(encoding="utf-8"))
    edit_index(stored, splits=index["splits"] | {"val": [{"name": "a", **entry}]})
    assert "class 'a' has rows outside the 10 images" in refused(stored)


def test_classes_that_share_images_are_named(stored: Path) -> None:
    index = json.loads((stored / "index.json").read_text(encoding="utf-8"))
    index["splits"]["test"][0]["start"] -= 1
    edit_index(stored, splits=index["splits"])
    assert "classes 'val class 0' and 'test class 0' share images" in refused(stored)


def test_a_class_that_is_there_twice_is_named(stored: Path) -> None:
    index = json.loads((stored / "index.json").read_text(encoding="utf-8"))
    index["splits"]["test"][0]["name"] = "train class 0"
    edit_index(stored, splits=index["splits"])
    assert "class 'train class 0' is there twice" in refused(stored)


@pytest.mark.parametrize("known", [True, False])
def test_images_that_were_changed_in_place_are_refused(known: bool, stored: Path) -> None:
    if not known:  # of a store of version 0.1.0
        edit_index(stored, written=None)
        assert ImageStore.open(stored)
    images = np.load(stored / "images.npy", mmap_mode="r+")
    images[3, 0, 0, 0] ^= 1
    images.flush()
    assert "images.npy has other images than its index says" in refused(stored)
    images[3, 0, 0, 0] ^= 1
    images.flush()
    assert ImageStore.open(stored)


def test_images_that_are_cut_while_they_are_used_are_named(tmp_path: Path) -> None:
    # Within the last page no read fails.
    store = random_store(tmp_path / "40", {split: [9, 9] for split in SPLITS}, size=40)
    tasks = ImageTasks(store.splits["test"], ways=2, shots=2, queries=7)
    assert len(tasks.batch([0])) == 1
    path = store.path / "images.npy"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(DataError) as caught:
        tasks.batch([0])
    assert str(caught.value) == (
        f"{path} was cut from {size} to {size // 2} bytes while it was in use; put it back"
    )


def test_a_truncated_array_is_damaged(stored: Path) -> None:
    data = (stored / "images.npy").read_bytes()
    (stored / "images.npy").write_bytes(data[:-1])
    assert "is damaged" in refused(stored)


def test_a_missing_array_is_damaged(stored: Path) -> None:
    (stored / "images.npy").unlink()
    assert "images.npy" in refused(stored)


def test_an_array_of_another_shape_is_named(stored: Path) -> None:
    np.save(stored / "images.npy", random_images(9))
    assert "holds uint8 (9, 1, 4, 4), its index says uint8 [10, 1, 4, 4]" in refused(stored)


def test_a_pickle_in_the_place_of_the_array_is_not_loaded(stored: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("the pickle was executed",))

    (stored / "images.npy").write_bytes(pickle.dumps(Bomb()))
    assert "is damaged" in refused(stored)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": [0.5, 0.5]}, "with 2 means and 1 standard deviations"),
        ({"std": [0.0]}, "std.0: Input should be greater than 0"),
        ({"std": [float("nan")]}, "std.0: Input should be"),
        ({"source": []}, "source: Input should be a valid dictionary"),
        ({"name": 7}, "name: Input should be a valid string"),
        ({"splits": {"val": []}}, "splits.val: List should have at least 1 item"),
        ({"sha256": "A" * 64}, "sha256: String should match pattern"),
        (
            {
                "splits": {
                    "train": [{"name": "a", "start": 2**70, "count": 1}],
                    "val": [],
                    "test": [],
                }
            },
            "splits.train.0.start: Input should be less than or equal to",
        ),
    ],
)
def test_entries_of_another_kind_are_named(
    stored: Path, change: dict[str, object], said: str
) -> None:
    edit_index(stored, **change)
    assert said in refused(stored)


def test_an_index_that_is_nested_too_deeply_is_damaged(stored: Path) -> None:
    (stored / "index.json").write_text("[" * 200_000, encoding="utf-8")
    assert "is damaged (maximum recursion depth" in refused(stored)


def test_an_archive_of_arrays_in_the_place_of_the_array_is_damaged(stored: Path) -> None:
    np.savez(stored / "images.npz", images=random_images(10))
    (stored / "images.npz").rename(stored / "images.npy")
    assert "is damaged" in refused(stored)
