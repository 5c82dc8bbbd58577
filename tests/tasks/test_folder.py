"""Folders of class folders: their layouts, splits and misfits."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradshare.errors import DataError
from gradshare.tasks import images
from gradshare.tasks.datasets import prepare_dataset
from gradshare.tasks.folder import find_classes, given_splits, is_grey
from gradshare.tasks.images import ImageFormat, read_image
from tests.tasks.builders import make_classes, make_image

BIRDS = ["crow", "finch", "heron", "lark", "owl"]


def splits_of(root: Path, seed: int | None = None) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for item in find_classes(root, seed):
        splits[item.split].append(item.name)
    return splits


def refused(root: Path, seed: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        find_classes(root, seed)
    return str(caught.value)


def write_splits(root: Path, splits: object) -> Path:
    path = root / "splits.json"
    path.write_text(splits if isinstance(splits, str) else json.dumps(splits), encoding="utf-8")
    return path


# Split folders


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    make_classes(tmp_path / "train", ["owl", "crow"])
    make_classes(tmp_path / val, ["lark"])
    make_classes(tmp_path / "test", ["finch"])
    assert splits_of(tmp_path) == {"train": ["crow", "owl"], "val": ["lark"], "test": ["finch"]}
    assert given_splits(tmp_path) == "split folders"


def test_a_missing_split_folder_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", ["owl"])
    make_classes(tmp_path / "test", ["crow"])
    assert refused(tmp_path) == (
        f"{tmp_path} has split folders but none for 'val'; add {tmp_path / 'val'}, or move all "
        "class folders into one folder to have the splits drawn"
    )


def test_a_folder_beside_the_split_folders_is_named(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        make_classes(tmp_path / split, [split + " bird"])
    make_classes(tmp_path, ["owl"])
    assert refused(tmp_path) == (
        f"{tmp_path / 'owl'} is beside split folders and is not one; use train/, val/ and test/, "
        f"or name the split of every class in {tmp_path / 'splits.json'}"
    )


def test_two_folders_of_one_split_are_named(tmp_path: Path) -> None:
    for split in ("train", "val", "validation", "test"):
        make_classes(tmp_path / split, [split + " bird"])
    assert refused(tmp_path) == (
        f"{tmp_path / 'val'} and {tmp_path / 'validation'} are both the split 'val'; keep one of "
        "them"
    )


def test_a_split_folder_without_classes_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make_classes(tmp_path / split, [split + " bird"])
    make_image(tmp_path / "val" / "loose.png")
    assert refused(tmp_path) == (
        f"{tmp_path / 'val'} has no class folders; every split needs at least one"
    )


# Splits drawn from a seed


@settings(max_examples=15, deadline=None)
@given(count=st.integers(3, 60), seed=st.integers(0, 2**32))
def test_drawn_splits_hold_every_class_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int
) -> None:
    root = tmp_path_factory.mktemp("birds")
    names = {f"bird {number}" for number in range(count)}
    for name in names:
        (root / name).mkdir()
        (root / name / "empty.png").touch()  # nothing is read here
    splits = splits_of(root, seed)
    assert Counter(chain.from_iterable(splits.values())) == Counter(names)
    sizes = {split: len(of_split) for split, of_split in splits.items()}
    assert min(sizes.values()) >= 1
    assert abs(sizes["val"] - 0.16 * count) <= 1
    assert abs(sizes["test"] - 0.20 * count) <= 1
    assert splits == splits_of(root, seed)


def test_the_seed_draws_the_splits(tmp_path: Path) -> None:
    make_classes(tmp_path, [f"bird {number}" for number in range(12)], images=1)
    drawn = {json.dumps(splits_of(tmp_path, seed)) for seed in range(5)}
    assert len(drawn) == 5
    assert splits_of(tmp_path) == splits_of(tmp_path, 0)
    assert given_splits(tmp_path) is None


def test_fewer_than_three_classes_cannot_be_split(tmp_path: Path) -> None:
    make_classes(tmp_path, ["owl", "crow"])
    assert refused(tmp_path) == (
        f"{tmp_path} has 2 class folders; at least 3 are needed, one for each of train, val and "
        "test (and as many in each as the tasks have ways)"
    )


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    message = "is not a folder; give the folder that holds the class folders"
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'} {message}"
    image = make_image(tmp_path / "owl.png")
    assert refused(image) == f"{image} {message}"


# Splits given by a file


def test_splits_from_a_file(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    write_splits(
        tmp_path,
        {"test": ["owl"], "train": ["lark", "crow"], "val": ["heron"], "unused": ["finch"]},
    )
    assert splits_of(tmp_path) == {"train": ["crow", "lark"], "val": ["heron"], "test": ["owl"]}
    assert given_splits(tmp_path) == "splits.json"


GIVEN = {"train": ["crow", "lark"], "val": ["heron"], "test": ["owl", "finch"]}


def test_a_class_without_a_folder_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    path = write_splits(tmp_path, GIVEN | {"val": ["herron"]})
    assert refused(tmp_path) == (
        f"{path} names class 'herron' in 'val', but there is no folder {tmp_path / 'herron'} (did "
        "you mean 'heron'?); correct the name or add the folder"
    )


def test_a_class_in_two_lists_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    path = write_splits(tmp_path, GIVEN | {"test": ["owl", "lark"]})
    assert refused(tmp_path) == (f"{path} names class 'lark' twice; give it to one split")
    write_splits(tmp_path, GIVEN | {"unused": ["lark"]})
    assert f"{path} names class 'lark' twice" in refused(tmp_path)


def test_a_class_in_no_list_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    path = write_splits(tmp_path, GIVEN | {"test": ["owl"]})
    assert refused(tmp_path) == (
        f"{path} gives class 'finch' (1 in all) no split; add it to one, or to a list \"unused\""
    )


def test_an_empty_list_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    path = write_splits(tmp_path, GIVEN | {"val": []})
    assert refused(tmp_path) == f"{path} gives split 'val' no classes; it needs at least one"


@pytest.mark.parametrize(
    "splits",
    [
        {"train": ["crow"], "val": ["owl"]},
        {**GIVEN, "dev": ["owl"]},
        {**GIVEN, "val": "heron"},
        {**GIVEN, "val": [3]},
        ["crow"],
        None,
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, splits: object) -> None:
    make_classes(tmp_path, BIRDS)
    path = write_splits(tmp_path, splits)
    assert refused(tmp_path) == (
        f'{path} does not give the three splits; it must be {{"train": ["class", …], '
        '"val": […], "test": […]}'
    )


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    path = write_splits(tmp_path, '{"train": [')
    message = refused(tmp_path)
    assert message.startswith(f"{path} is not readable as JSON (Expecting value: line 1 column 12")
    assert message.endswith('it must be {"train": ["class", …], "val": […], "test": […]}')


def test_a_seed_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    write_splits(tmp_path, GIVEN)
    assert refused(tmp_path, seed=0) == (
        f"the splits of {tmp_path} come from its splits.json, so seed 0 would change nothing; "
        "leave out --seed"
    )


# Images


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], images=2)
    make_image(tmp_path / ".thumbnails" / "0.png")
    (tmp_path / "README.txt").write_text("birds", encoding="utf-8")
    for name in (".0.png", "notes.txt", "Thumbs.db", "0.json"):
        (tmp_path / "owl" / name).write_text("no image", encoding="utf-8")
    (tmp_path / "owl" / "odd.png").mkdir()
    make_image(tmp_path / "owl" / "SHOUTED.JPG")
    found = find_classes(tmp_path)
    assert {item.name for item in found} == {"crow", "lark", "owl"}
    owl = next(item for item in found if item.name == "owl")
    assert [path.name for path in owl.images] == ["0.png", "1.png", "SHOUTED.JPG"]


@pytest.mark.parametrize("extension", images.EXTENSIONS)
def test_every_kind_of_image_is_read(tmp_path: Path, extension: str) -> None:
    mode = "L" if extension == ".pgm" else "RGB"
    for name in ("crow", "lark", "owl"):
        make_image(tmp_path / name / f"0{extension}", shade=200, mode=mode)
    classes = find_classes(tmp_path)
    assert len(classes) == 3
    for item in classes:
        (image,) = [read_image(image, "", ImageFormat(8, 3)) for image in item.images]
        assert image.shape == (3, 8, 8)
        assert (abs(image.astype(int) - 200) <= 2).all()


def test_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("crow", "lark", "owl"):
        for shade in (90, 30, 60):
            make_image(tmp_path / name / f"{shade}.png", shade=shade, mode="L")
    for item in find_classes(tmp_path):
        decoded = [read_image(image, "", ImageFormat(5, 1)) for image in item.images]
        assert [int(image[0, 2, 2]) for image in decoded] == [30, 60, 90]


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    (tmp_path / "wren").mkdir()
    message = refused(tmp_path)
    assert message.startswith(f"class folder {tmp_path / 'wren'} has no images; put images (.bmp, ")
    assert message.endswith("directly into it, or remove it")


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    (tmp_path / "wren\x1b[2J\x07").mkdir()
    assert f"class folder {tmp_path}/wren\\x1b[2J\\x07 has no images; put" in refused(tmp_path)


def test_a_name_of_thousands_of_letters_is_cut_in_a_message() -> None:
    message = str(DataError(f"class {10_000 * 'w'!r} has no images; remove it"))
    assert message == f"class '{399 * 'w'}… has no images; remove it"


def test_a_class_that_holds_folders_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    make_image(tmp_path / "wren" / "2019" / "0.png")
    assert (
        f"class folder {tmp_path / 'wren'} has no images (it holds folders, such as '2019')"
        in refused(tmp_path)
    )


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere", "cannot be read (No such file or directory)"),
        ("/dev/zero", "is not a file; give the path of an image"),
        (None, "is not a file; give the path of an image"),
    ],
)
def test_a_dead_link_a_device_or_a_pipe_in_place_of_an_image_is_named(
    tmp_path: Path, target: str | None, said: str
) -> None:
    make_classes(tmp_path / "birds", ["crow", "lark", "owl"])
    path = tmp_path / "birds" / "owl" / "odd.png"
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    with pytest.raises(DataError) as caught:
        prepare_dataset("birds", tmp_path / "data", path=tmp_path / "birds", folder=True)
    assert f"{path} {said}" in str(caught.value)


@pytest.mark.parametrize("name", ["wren", "splits.json"])
def test_a_dead_link_in_place_of_a_class_or_of_the_splits_is_named(
    tmp_path: Path, name: str
) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    (tmp_path / ".hidden").symlink_to("nowhere")
    (tmp_path / name).symlink_to("nowhere")
    assert refused(tmp_path) == f"{tmp_path / name} is a dead link; replace or remove it"


def test_a_pipe_in_place_of_the_splits_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    os.mkfifo(tmp_path / "splits.json")
    assert refused(tmp_path).endswith("splits.json is not a file; it must be a list of classes")


@pytest.mark.parametrize(("mode", "grey"), [("L", True), ("1", True), ("RGB", False), ("P", False)])
def test_whether_a_folder_is_grey(tmp_path: Path, mode: str, grey: bool) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], mode=mode)
    assert is_grey(find_classes(tmp_path)) is grey


def test_a_folder_of_sixteen_bit_grey_is_grey(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], mode="L")
    (tmp_path / "owl" / "deep.pgm").write_bytes(b"P5 1 1 65535\n" + b"\x80\0")
    for byte_order in "<>":
        path = tmp_path / "owl" / f"deep{ord(byte_order)}.tif"
        Image.fromarray(np.full((8, 8), 256, dtype=f"{byte_order}u2")).save(path)
    assert is_grey(find_classes(tmp_path))


def test_one_image_in_colour_makes_a_folder_coloured(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], mode="L")
    make_image(tmp_path / "owl" / "last.png", mode="RGB")
    assert not is_grey(find_classes(tmp_path))


def test_an_unreadable_image_is_named_when_asking_for_its_colour(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], mode="L")
    (tmp_path / "crow" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png is not a readable image"):
        is_grey(find_classes(tmp_path))
