"""torchmeta's caches are read where they hold images, and refused where they point elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gradshare.errors import DataError
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.readers.dataset import FoundClass
from gradshare.tasks.readers.labelled import read_hdf5
from gradshare.tasks.store import SPLITS
from tests.tasks.archive_builders import cache_files, encoded, pixels

REMEDY = "; let torchmeta write it again, or prepare the dataset from its original archive"
IMAGES = np.stack([pixels(i) for i in range(3)])


def find_cached(folder: Path) -> list[FoundClass]:
    return [item for split in SPLITS for item in read_hdf5(split, *cache_files(folder, split))]


def make_cache(folder: Path, classes: dict[str, Any], labels: Any = None) -> h5py.Group:
    """Write a cache, and hand back the open group of its training classes for mischief."""
    for split in SPLITS:
        data, names = cache_files(folder, split)
        own = classes if split == "train" else {split: IMAGES}
        names.write_text(json.dumps(list(own)))
        file = h5py.File(data, "w")
        group = file.create_group("datasets")
        for name, images in own.items():
            group.create_dataset(name, data=images)
        if split == "train":
            training = group
        else:
            file.close()
    if labels is not None:
        cache_files(folder, "train")[1].write_text(json.dumps(labels))
    return training


def add_files(group: h5py.Group, name: str, files: list[bytes]) -> None:
    """A class of the bytes of image files, as torchmeta's CUB has it."""
    dataset = group.create_dataset(name, (len(files),), dtype=h5py.vlen_dtype(np.uint8))
    for index, data in enumerate(files):
        dataset[index] = np.frombuffer(data, np.uint8)


def refusal(folder: Path, group: h5py.Group | None = None) -> str:
    if group is not None:
        group.file.close()
    with pytest.raises(DataError) as error:
        find_cached(folder)
    return str(error.value)


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_pixels_and_files_are_read(tmp_path: Path, compression: str | None) -> None:
    group = make_cache(tmp_path, {}, labels=["b", "a"])
    group.create_dataset("a", data=IMAGES, compression=compression)
    add_files(group, "b", [encoded(image) for image in IMAGES])
    group.file.close()
    found = find_cached(tmp_path)
    assert [(item.split, item.name) for item in found] == [
        *(("train", "b"), ("train", "a"), ("val", "val"), ("test", "test"))
    ]
    for item in found:
        images = [read_image(image, "", ImageFormat(size=8, channels=3)) for image in item.images]
        assert np.array_equal(np.stack(images).transpose(0, 2, 3, 1), IMAGES)


@pytest.mark.parametrize("way", ["link", "link to the group", "external", "virtual"])
def test_images_in_other_files_are_refused(tmp_path: Path, way: str) -> None:
    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as file:
        file.create_group("datasets").create_dataset("a", data=IMAGES)
    group = make_cache(tmp_path, {}, labels=["a"])
    if way == "link":
        group["a"] = h5py.ExternalLink(other, "/datasets/a")
    elif way == "link to the group":
        del group.file["datasets"]
        group.file["datasets"] = h5py.ExternalLink(other, "/datasets")
    elif way == "external":
        group.create_dataset("a", IMAGES.shape, np.uint8, external=[(other, 0, IMAGES.nbytes)])
    else:
        layout = h5py.VirtualLayout(IMAGES.shape, np.uint8)
        layout[:] = h5py.VirtualSource(other, "datasets/a", IMAGES.shape)
        group.create_virtual_dataset("a", layout)
    assert refusal(tmp_path, group) == (
        f"class 'a' in {tmp_path / 'train_data.hdf5'} keeps its images in other files{REMEDY}"
    )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES.astype(np.float32), "float32 of shape (3, 8, 8, 3)"),
        (IMAGES[..., 0], "uint8 of shape (3, 8, 8)"),
        (IMAGES[..., :2], "uint8 of shape (3, 8, 8, 2)"),
        (IMAGES[:0], "uint8 of shape (0, 8, 8, 3)"),
        (np.zeros(3, np.uint8), "uint8 of shape (3,)"),
        (np.array(b"text"), "|S4 of shape ()"),
    ],
)
def test_what_is_no_images_is_refused(tmp_path: Path, images: Any, said: str) -> None:
    message = refusal(tmp_path, make_cache(tmp_path, {"a": images}))
    assert f"class 'a' in {tmp_path / 'train_data.hdf5'} holds {said}, not image files" in message
    assert message.endswith(REMEDY)


def test_a_group_in_place_of_a_class_is_refused(tmp_path: Path) -> None:
    group = make_cache(tmp_path, {}, labels=["a"])
    group.create_group("a")
    assert "train_data.hdf5 is not torchmeta's, or damaged (" in refusal(tmp_path, group)


def test_a_difference_between_the_two_files_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, make_cache(tmp_path, {"a": IMAGES, "b": IMAGES}, labels=["a"]))
    assert (
        f"{tmp_path / 'train_data.hdf5'} and train_labels.json name different classes ('b' is in "
        f"one of them only){REMEDY}"
    ) == message


def test_a_file_that_is_not_hdf5_is_named(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": IMAGES}).file.close()
    path = tmp_path / "train_data.hdf5"
    whole = path.read_bytes()
    for data in (b"PK", whole[:-700]):
        path.write_bytes(data)
        assert f"{path} is not torchmeta's, or damaged (" in refusal(tmp_path)
    path.write_bytes(b"<html>")
    assert f"{path} is a web page, not an HDF5 file" in refusal(tmp_path)


@pytest.mark.parametrize("labels", ["{}", "[]", "[1]", '["a", "a"]', '["a/b"]', '[""]'])
def test_other_lists_of_names_are_refused(tmp_path: Path, labels: str) -> None:
    make_cache(tmp_path, {"a": IMAGES}).file.close()
    path = tmp_path / "train_labels.json"
    path.write_text(labels)
    message = refusal(tmp_path)
    assert message == f"{path} is not a JSON list of distinct class names{REMEDY}"
    path.write_text("[" * 9999)
    assert f"{path} is not readable as JSON (" in refusal(tmp_path)
    path.write_text("<!doctype html>")
    assert "is a web page, not a list of class names" in refusal(tmp_path)


def test_a_missing_h5py_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert refusal(tmp_path) == (
        f"reading {tmp_path / 'train_data.hdf5'} needs h5py; run `pip install h5py`"
    )
