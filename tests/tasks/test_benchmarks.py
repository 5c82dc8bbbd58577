"""tieredImageNet, CIFAR-FS and FC100 from archives made in the layouts that they circulate in."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gradshare.tasks.registry import DATASETS
from gradshare.tasks.store import Images
from tests.tasks.archive_builders import (
    encoded,
    make_folder,
    pixels,
    prepared_classes,
    refusal_to_prepare,
)

NAMES = ("tiered-imagenet", "cifar-fs", "fc100")
SIZES = {
    "tiered-imagenet": {"train": 351, "val": 97, "test": 160},
    "cifar-fs": {"train": 64, "val": 16, "test": 20},
    "fc100": {"train": 60, "val": 20, "test": 20},
}

Content = dict[str, dict[str, Images]]


def content_of(dataset: str) -> Content:
    """Two images of each class of each split, (2, 8, 8, 3)."""
    splits: Content = {"train": {}, "val": {}, "test": {}}
    for number, name in enumerate(sorted(DATASETS[dataset].split)):
        of_class = np.stack([pixels(number, 0), pixels(number, 1)])
        splits[DATASETS[dataset].split[name]][name] = of_class
    return splits


def expected(content: Content) -> list[bytes]:
    return [
        images.transpose(0, 3, 1, 2).tobytes()
        for classes in content.values()
        for images in classes.values()
    ]


def pixels_of(dataset: str, path: Path) -> list[bytes]:
    return [images for _, images in prepared_classes(dataset, path).values()]


def write_tiered_labels(path: Path, split: str, classes: dict[str, Images]) -> None:
    labels = {
        "label_specific": np.arange(len(classes)).repeat(2).astype(np.int32),
        "label_specific_str": [f"{split}: {name}" for name in classes],
        "label_general": np.zeros(2 * len(classes), np.int32),
        "label_general_str": ["thing"],
    }
    (path / f"{split}_labels.pkl").write_bytes(pickle.dumps(labels, 2))


def test_tiered_imagenet_from_pickles_of_png_files(tmp_path: Path) -> None:
    content = content_of("tiered-imagenet")
    for split, classes in content.items():
        files = [
            np.frombuffer(encoded(image), np.uint8)[:, None]  # as OpenCV gives it
            for images in classes.values()
            for image in images
        ]
        (tmp_path / f"{split}_images_png.pkl").write_bytes(pickle.dumps(files, 4))
        write_tiered_labels(tmp_path, split, classes)
    found = prepared_classes("tiered-imagenet", tmp_path)
    assert {name for _split, name in found} == {
        f"{split}: {name}" for split, classes in content.items() for name in classes
    }
    assert [images for _, images in found.values()] == expected(content)
    (tmp_path / "val_labels.pkl").write_bytes(pickle.dumps([1]))
    message = refusal_to_prepare("tiered-imagenet", tmp_path)
    assert f"{tmp_path / 'val_labels.pkl'} is not in the form of this benchmark" in message


def test_tiered_imagenet_from_npz_files_with_blue_first(tmp_path: Path) -> None:
    content = content_of("tiered-imagenet")
    for split, classes in content.items():
        images = np.concatenate(list(classes.values()))
        np.savez(tmp_path / f"{split}_images.npz", images=images[..., ::-1])
        write_tiered_labels(tmp_path, split, classes)
    assert pixels_of("tiered-imagenet", tmp_path) == expected(content)


@pytest.mark.parametrize("dataset", ["cifar-fs", "fc100"])
def test_cifar_from_pickles_and_from_npz_files(tmp_path: Path, dataset: str) -> None:
    content = content_of(dataset)
    stem = {"cifar-fs": "CIFAR_FS", "fc100": "FC100"}[dataset]
    pickles, npz = make_folder(tmp_path / "pickle", {}), make_folder(tmp_path / "npz", {})
    for split, classes in content.items():
        images = np.concatenate(list(classes.values()))
        labels = [number for number in range(len(classes)) for _ in range(2)]
        data = pickle.dumps({"data": images, "labels": labels}, 2)
        (pickles / f"{stem}_{split}.pickle").write_bytes(data)
        np.savez(npz / f"few-shot-{split}.npz", features=images, targets=labels)
    assert pixels_of(dataset, pickles) == pixels_of(dataset, npz) == expected(content)
    damaged = npz / "few-shot-val.npz"
    np.savez_compressed(damaged, features=images, targets=labels)
    damaged.write_bytes(damaged.read_bytes()[:1000] + bytes(100) + damaged.read_bytes()[1100:])
    assert f"{damaged} is not in the form of this benchmark: it is no" in refusal_to_prepare(
        dataset, npz
    )
    for other in (images[..., :2], images.transpose(0, 3, 1, 2), images[:, :0]):
        content_of_file = {"data": other, "labels": labels}
        (pickles / f"{stem}_val.pickle").write_bytes(pickle.dumps(content_of_file))
        said = refusal_to_prepare(dataset, pickles)
        assert "its images are not uint8 (N, height, width, 3)" in said


@pytest.mark.parametrize("dataset", NAMES)
def test_benchmarks_from_split_folders_and_from_class_folders(tmp_path: Path, dataset: str) -> None:
    content = content_of(dataset)
    assert {split: len(classes) for split, classes in content.items()} == SIZES[dataset]
    for split, classes in content.items():
        for name, images in classes.items():
            files = {"1.png": encoded(images[0])}
            make_folder(tmp_path / "splits" / split / name, files)
            make_folder(tmp_path / "classes" / "data" / name, files)
    found = prepared_classes(dataset, tmp_path / "splits")
    assert found == prepared_classes(dataset, tmp_path / "classes")
    firsts = [images[: len(images) // 2] for images in expected(content)]
    assert [images for _, images in found.values()] == firsts
    lost = next(iter(content["test"]))
    (tmp_path / "classes" / "data" / lost).rename(tmp_path / "elsewhere")
    assert f"it lacks {lost}; " in refusal_to_prepare(dataset, tmp_path / "classes")


def test_a_copy_in_the_split_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    for split, classes in content_of("fc100").items():
        for name, images in classes.items():
            make_folder(tmp_path / split / name, {"1.png": encoded(images[0])})
    message = refusal_to_prepare("cifar-fs", tmp_path)
    assert "it puts bear, beaver, bed, " in message
    assert " into another split; it has 60 classes in 'train', and not 64; " in message


def test_the_published_splits_hold_out_what_their_papers_say() -> None:
    assert {name: Counter(DATASETS[name].split.values()) for name in NAMES} == SIZES
    people = {"baby", "boy", "girl", "man", "woman"}
    assert {DATASETS["fc100"].split[name] for name in people} == {"test"}
    assert {name for name in people if DATASETS["cifar-fs"].split[name] == "train"} == {
        *("boy", "girl")
    }
    assert DATASETS["tiered-imagenet"].split["n02099267"] == "val"
