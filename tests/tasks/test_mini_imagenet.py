"""mini-ImageNet gives the same classes in each of the forms that it circulates in."""

from __future__ import annotations

import csv
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradshare.errors import DataError
from gradshare.tasks.readers.benchmarks import MINI_IMAGENET
from gradshare.tasks.readers.class_splits import published_split
from gradshare.tasks.readers.labelled import read_arrays
from gradshare.tasks.store import Images
from tests.tasks.archive_builders import (
    cache_files,
    encoded,
    make_folder,
    make_tar,
    make_zip,
    pixels,
    prepared_classes,
    refusal_to_prepare,
)

IMAGES_PER_CLASS = 3


CLASSES = {"train": 64, "val": 16, "test": 20}
NAMES = {
    split: sorted(name for name, its in published_split("mini-imagenet").items() if its == split)
    for split in CLASSES
}


ALL_NAMES = [name for names in NAMES.values() for name in names]

# Of each split: the pixels of each class.
SPLITS = {
    split: {
        name: [pixels(s, i, j) for j in range(IMAGES_PER_CLASS)] for i, name in enumerate(names)
    }
    for s, (split, names) in enumerate(NAMES.items())
}
EXPECTED = {
    (split, name): ((IMAGES_PER_CLASS, 3, 8, 8), np.stack(images).transpose(0, 3, 1, 2).tobytes())
    for split, classes in SPLITS.items()
    for name, images in classes.items()
}


def files_of(split: str) -> dict[str, bytes]:
    """File names as in the wild: the class and a number."""
    return {
        f"{name}{j:08}.jpg": encoded(image)
        for name, images in SPLITS[split].items()
        for j, image in enumerate(images)
    }


def write_tables(folder: Path) -> None:
    for split in SPLITS:
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["filename", "label"])
            table.writerows([name, name[:9]] for name in files_of(split))


def in_images(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"images/{name}": data for name, data in files.items()}


def csv_with_a_tar_a_split(folder: Path) -> Path:
    write_tables(folder)
    for split in SPLITS:
        make_tar(folder / f"images-{split}.tar", in_images(files_of(split)))
    return folder


def csv_with_one_archive(folder: Path) -> Path:
    write_tables(folder)
    everything = {name: data for split in SPLITS for name, data in files_of(split).items()}
    shuffled = sorted(everything.items(), key=lambda item: item[0][::-1])
    make_tar(folder / "images.tar.gz", in_images(dict(shuffled) | {"readme.txt": b"more"}))
    return folder


def csv_with_a_zip(folder: Path) -> Path:
    csv_with_a_tar_a_split(folder)
    (folder / "images-val.tar").unlink()
    make_zip(folder / "images-val.zip", files_of("val"))
    return folder


def csv_with_a_folder(folder: Path) -> Path:
    write_tables(folder)
    for split in SPLITS:
        make_folder(folder / "images", files_of(split))
    return folder


def pickles(folder: Path, *, val: str = "val", protocol: int = 2) -> Path:
    for split, classes in SPLITS.items():
        images = np.stack([image for images in classes.values() for image in images])
        rows = {
            name: list(range(i * IMAGES_PER_CLASS, (i + 1) * IMAGES_PER_CLASS))
            for i, name in enumerate(classes)
        }
        name = val if split == "val" else split
        (folder / f"mini-imagenet-cache-{name}.pkl").write_bytes(
            pickle.dumps({"image_data": images, "class_dict": rows}, protocol)
        )
    return folder


def pickles_of_learn2learn(folder: Path) -> Path:
    return pickles(folder, val="validation", protocol=4)


def torchmeta(folder: Path) -> Path:
    place = folder / "miniimagenet"
    place.mkdir()
    for split, classes in SPLITS.items():
        data, labels = cache_files(place, split)
        labels.write_text(json.dumps(sorted(classes)))
        with h5py.File(data, "w") as file:
            for name, images in classes.items():
                file[f"datasets/{name}"] = np.stack(images)
    return folder


def in_one_array(classes: dict[str, list[Images]]) -> tuple[Images, list[int]]:
    """All images, and the number of the class of each."""
    images = np.stack([image for of_class in classes.values() for image in of_class])
    return images, [number for number in range(len(classes)) for _ in range(IMAGES_PER_CLASS)]


def metaoptnet(folder: Path) -> Path:
    for split, classes in SPLITS.items():
        part = "train_phase_train" if split == "train" else split
        images, labels = in_one_array(classes)
        numbers = {name: number for number, name in enumerate(classes)}
        content = {"data": images, "labels": labels, "catname2label": numbers}
        path = folder / f"miniImageNet_category_split_{part}.pickle"
        path.write_bytes(pickle.dumps(content, 2))
    return folder


def parquet(folder: Path, names: Sequence[str] = ALL_NAMES) -> Path:
    """As several data sets on Hugging Face: each file has images of every class."""
    classes = {name: images for of_split in SPLITS.values() for name, images in of_split.items()}
    feature = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    (folder / "data").mkdir()
    for row, part in enumerate(("test", "train", "validation")):
        images = [{"bytes": encoded(classes[name][row]), "path": None} for name in names]
        table = pa.table({"image": images, "label": list(range(len(names)))})
        path = folder / "data" / f"{part}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path)
    return folder


def class_folders(folder: Path) -> Path:
    """As in the whole of ImageNet, beside other classes."""
    for classes in SPLITS.values():
        for name, images in classes.items():
            files = {f"{j}.png": encoded(image) for j, image in enumerate(images)}
            make_folder(folder / name, files)
    make_folder(folder / "n00000001", {"1.png": encoded(pixels(1))})
    return folder


def folders(folder: Path, *, val: str = "val") -> Path:
    for split, classes in SPLITS.items():
        for name, images in classes.items():
            make_folder(
                folder / (val if split == "val" else split) / name,
                {f"{j}.png": encoded(image) for j, image in enumerate(images)},
            )
    return folder


def folders_with_validation(folder: Path) -> Path:
    return folders(folder, val="validation")


LAYOUTS = [
    *(csv_with_a_tar_a_split, csv_with_one_archive, csv_with_a_zip, csv_with_a_folder),
    *(pickles, pickles_of_learn2learn, torchmeta, folders, folders_with_validation),
    *(metaoptnet, parquet, class_folders),
]


def refusal(path: Path) -> str:
    return refusal_to_prepare("mini-imagenet", path)


@pytest.mark.parametrize("make", LAYOUTS)
def test_every_layout_gives_the_same_classes(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    found = prepared_classes("mini-imagenet", make(tmp_path))
    assert found == EXPECTED
    assert list(found) == list(EXPECTED), "sorted, so that episodes do not depend on the layout"


@pytest.mark.parametrize("make", [csv_with_a_folder, pickles])
def test_every_layout_is_resized(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    found = prepared_classes("mini-imagenet", make(tmp_path), size=9, resize="center-crop")
    assert all(shape == (3, 3, 9, 9) for shape, _ in found.values())


def test_arrays_without_names_are_read_in_the_order_of_their_labels(tmp_path: Path) -> None:
    for split, classes in SPLITS.items():
        images, labels = in_one_array(classes)
        np.savez(tmp_path / f"few-shot-{split}.npz", features=images, targets=labels)
    found = prepared_classes("mini-imagenet", tmp_path)
    assert list(found)[:2] == [("train", "train 000"), ("train", "train 001")]
    assert list(found.values()) == list(EXPECTED.values())
    (tmp_path / "few-shot-val.npz").write_bytes(b"PK")
    assert f"{tmp_path / 'few-shot-val.npz'} is not in the form of" in refusal(tmp_path)


def test_parquet_with_other_classes_or_without_pyarrow_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path, NAMES["train"] + NAMES["val"])
    assert "it lacks n01930112, n01981276, n02099601" in refusal(tmp_path)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert f"{path} is not in the form of this benchmark: there are no images" in refusal(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(tmp_path) == f"reading {tmp_path} needs pyarrow; run `pip install pyarrow`"


def test_knows_itself() -> None:
    assert not MINI_IMAGENET.rotate_classes
    assert (MINI_IMAGENET.channels, MINI_IMAGENET.image_size) == (3, 84)
    assert [archive.filename for archive in MINI_IMAGENET.archives] == [
        "mini-imagenet-cache-train.pkl",
        "mini-imagenet-cache-validation.pkl",
        "mini-imagenet-cache-test.pkl",
    ]


ACCEPTED = """\
the layouts that can be read are
  csv: {train,val,test}.csv and the images in images/, images.tar or images-{train,val,test}.tar
  pickle: mini-imagenet-cache-{train,val,test}.pkl
  pickle: miniImageNet_category_split_{train_phase_train,val,test}.pickle
  npz: few-shot-{train,val,test}.npz
  hdf5: {train,val,test}_data.hdf5, {train,val,test}_labels.json
  parquet: train-….parquet, validation-….parquet and test-….parquet, at any depth
  folders: {train,val,test}/
  classes: one folder of images for each class, such as n01532829/"""


def test_lists_the_layouts_where_there_is_none(tmp_path: Path) -> None:
    make_folder(tmp_path, {"images.rar": b"", "photos/1.jpg": b""})
    said = f"{tmp_path} is not a complete copy of mini-ImageNet: found images.rar, photos/; "
    assert refusal(tmp_path) == said + ACCEPTED
    said = f"{tmp_path / 'images.rar'} is not a complete copy of mini-ImageNet: it is a file; "
    assert refusal(tmp_path / "images.rar") == said + ACCEPTED


def test_names_what_a_layout_lacks(tmp_path: Path) -> None:
    csv_with_a_tar_a_split(tmp_path)
    (tmp_path / "val.csv").unlink()
    (tmp_path / "images-test.tar").unlink()
    (tmp_path / "train").mkdir()
    message = refusal(tmp_path)
    assert (
        "found images-train.tar, images-val.tar, test.csv, train.csv, train/; for csv it lacks "
        "val.csv, images-test.tar; for folders it lacks val/, test/; the layouts"
    ) in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,class\na.jpg,a\n", "line 1 of {}: the columns are not 'filename,label'"),
        ("filename,label\na.jpg,a\nb.jpg\n", "line 3 of {}: it does not have one file name and"),
        ("filename,label\na.jpg,a,b\n", "line 2 of {}: it does not have one file name and one"),
        ("filename,label\na.jpg,\n", "line 2 of {}: it does not have one file name and one class"),
        ("filename,label\na.jpg,a\na.jpg,b\n", "line 3 of {}: 'a.jpg' is listed twice"),
        ('filename,label\n"a.jpg,a\n', "line 2 of {}: unexpected end of data"),
    ],
)
def test_names_the_line_of_a_mistake_in_a_table(tmp_path: Path, text: str, said: str) -> None:
    csv_with_a_folder(tmp_path)
    path = tmp_path / "train.csv"
    path.write_bytes(text.encode("latin-1"))
    message = refusal(tmp_path)
    assert said.format(path) in message
    assert message.endswith("; correct it, or get the table again")


def test_reads_tables_with_other_columns_and_line_ends(tmp_path: Path) -> None:
    csv_with_a_folder(tmp_path)
    for split in SPLITS:
        path = tmp_path / f"{split}.csv"
        lines = [",label,filename"]
        lines += [f"{i},{name[:9]},{name}" for i, name in enumerate(files_of(split))]
        path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert prepared_classes("mini-imagenet", tmp_path) == EXPECTED


def test_names_what_is_no_table(tmp_path: Path) -> None:
    csv_with_a_folder(tmp_path)
    path = tmp_path / "test.csv"
    path.write_text("<!DOCTYPE html>")
    assert f"{path} is a web page, not a table of file names" in refusal(tmp_path)
    path.write_bytes(b"filename,label\na.jpg,\xe9\n")
    assert f"{path} is not readable as UTF-8 text ('utf-8' codec can't" in refusal(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert refusal(tmp_path) == f"{path} is not a file; it must be a table of file names"


def test_names_images_that_the_tables_list_and_that_are_not_there(tmp_path: Path) -> None:
    csv_with_a_folder(tmp_path)
    for number in (1, 2):
        (tmp_path / "images" / f"n01532829{number:08}.jpg").unlink()
    assert (
        f"{tmp_path} lacks 2 of the 192 images or classes that are listed for 'train', such as "
        "'n0153282900000001.jpg'; add them, or remove them from the list"
    ) == refusal(tmp_path)


def test_refuses_two_images_of_one_name(tmp_path: Path) -> None:
    csv_with_a_folder(tmp_path)
    make_folder(tmp_path / "images" / "more", dict(list(files_of("val").items())[:1]))
    assert "'n0185567200000000.jpg' may be " in refusal(tmp_path)


@pytest.mark.parametrize("make", [csv_with_a_folder, pickles, torchmeta, folders])
def test_refuses_other_splits(
    tmp_path: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SPLITS, "val", dict(list(SPLITS["val"].items())[:15]))
    make(tmp_path)
    assert refusal(tmp_path) == (
        f"{tmp_path} does not have the published split: it lacks n09256479; it has 15 classes in "
        "'val', and not 16; get a complete copy with that split"
    )


def test_names_classes_in_another_split_and_classes_of_something_else(
    tmp_path: Path,
) -> None:
    folders(tmp_path)
    (tmp_path / "val" / NAMES["val"][3]).rename(tmp_path / "spare")
    (tmp_path / "test" / NAMES["test"][2]).rename(tmp_path / "val" / NAMES["test"][2])
    (tmp_path / "spare").rename(tmp_path / "test" / "n12345678")
    assert refusal(tmp_path) == (
        f"{tmp_path} does not have the published split: it lacks n02138441; it adds n12345678; it "
        "puts n02099601 into another split; get a complete copy with that split"
    )


def test_a_copy_with_other_names_is_checked_by_the_number_of_its_classes(tmp_path: Path) -> None:
    folders(tmp_path)
    for split in SPLITS:
        for number, folder in enumerate(sorted((tmp_path / split).iterdir())):
            folder.rename(folder.with_name(f"{split} {number}"))
    assert len(prepared_classes("mini-imagenet", tmp_path)) == 100
    make_folder(tmp_path / "val" / "one more", {"1.png": encoded(pixels(1))})
    assert "it has 17 classes in 'val', and not 16" in refusal(tmp_path)


@pytest.mark.parametrize("make", [pickles, torchmeta, folders])
def test_refuses_overlapping_splits(
    tmp_path: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = NAMES["train"][7]
    test = dict(list(SPLITS["test"].items())[:19]) | {shared: SPLITS["train"][shared]}
    monkeypatch.setitem(SPLITS, "test", test)
    make(tmp_path)
    assert (
        f"class {shared!r} of {tmp_path} is in 'train' and in 'test': splits must not overlap; "
        "give it to one of them"
    ) == refusal(tmp_path)


GOOD = np.zeros((4, 8, 8, 3), np.uint8)


WRONG_IMAGES = "its images are not uint8 (N, height, width, 3)"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([1], WRONG_IMAGES),
        ({"images": 1}, WRONG_IMAGES),
        ({"image_data": [1], "class_dict": {}}, WRONG_IMAGES),
        ({"image_data": GOOD / 1, "class_dict": {}}, WRONG_IMAGES),
        ({"image_data": GOOD[..., 0], "class_dict": {}}, WRONG_IMAGES),
        ({"image_data": GOOD, "class_dict": []}, "there is not one label for each of the 4"),
        ({"data": GOOD, "labels": [0, 1]}, "there is not one label for each of the 4 images"),
        ({"data": GOOD, "labels": [0.5] * 4}, "there is not one label for each of the 4 images"),
        (
            {"image_data": GOOD, "class_dict": {"a": [4]}},
            "class 'a' is not a list of rows of the 4",
        ),
        ({"image_data": GOOD, "class_dict": {"a": [-1]}}, "class 'a' is not a list of rows"),
        ({"image_data": GOOD, "class_dict": {"a": [0.5]}}, "class 'a' is not a list of rows"),
        ({"image_data": GOOD, "class_dict": {"a": []}}, "class 'a' is not a list of rows"),
        ({"image_data": GOOD, "class_dict": {"a": [[1], [2, 3]]}}, "class 'a' is not a list"),
        ({"image_data": GOOD, "class_dict": {"a": 3}}, "class 'a' is not a list of rows"),
        ({"image_data": GOOD, "class_dict": {"a": [1 << 80]}}, "class 'a' is not a list of rows"),
        ({"image_data": GOOD, "class_dict": {"a": [0, 0]}}, "class 'a' has an image that is taken"),
        ({"image_data": GOOD, "class_dict": {"a": [0], "b": [0]}}, "class 'b' has an image that"),
    ],
)
def test_refuses_pickles_of_other_things(tmp_path: Path, data: object, said: str) -> None:
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps(data))
    with pytest.raises(DataError) as error:
        read_arrays("train", path)
    assert f"{path} is not in the form of this benchmark: {said}" in str(error.value)
    assert str(error.value).endswith("; get it from its publisher again")


def test_a_pickle_that_would_execute_something_is_refused(tmp_path: Path) -> None:
    metaoptnet(tmp_path)
    path = tmp_path / "miniImageNet_category_split_test.pickle"
    path.write_bytes(pickle.dumps({"data": GOOD, "labels": [0, 1, 2, os.getcwd]}))
    assert "could execute anything; it was not called" in refusal(tmp_path)


def test_names_an_empty_class_folder(tmp_path: Path) -> None:
    folders(tmp_path)
    for image in (tmp_path / "val" / NAMES["val"][3]).iterdir():
        image.unlink()
    said = f"class folder {tmp_path / 'val' / NAMES['val'][3]} has no images (it holds nothing); "
    assert said in refusal(tmp_path)


def test_names_an_image_by_its_archive(tmp_path: Path) -> None:
    csv_with_a_tar_a_split(tmp_path)
    path = tmp_path / "images-train.tar"
    make_tar(path, in_images(dict.fromkeys(files_of("train"), b"no image")))
    message = refusal(tmp_path)
    assert message.startswith("192 images cannot be read; ")
    assert f"\n{path}/images/n0153282900000000.jpg is not a readable image (" in message
