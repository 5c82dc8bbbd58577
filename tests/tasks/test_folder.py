"""Folders of class folders: their layouts, splits and misfits."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradshare.errors import ConfigError, DataError
from gradshare.tasks import images
from gradshare.tasks.datasets import prepare_dataset
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.readers.dataset import Notes
from gradshare.tasks.readers.folder import find_classes, is_grey
from gradshare.tasks.store import ImageStore
from tests.tasks.builders import make_classes, make_image

BIRDS = ["crow", "finch", "heron", "lark", "owl"]


def notes_on(path: Path) -> Notes:
    return Notes(path, path.with_name("unpacked"))


def splits_of(path: Path, **options: Any) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for item in find_classes(notes_on(path), **options):
        splits[item.split].append(item.name)
    return {split: sorted(names) for split, names in splits.items()}


def refused(path: Path, **options: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        find_classes(notes_on(path), **options)
    return str(caught.value)


def prepared(path: Path, **options: Any) -> ImageStore:
    """A store of small images, without a trace of it in the end."""
    with tempfile.TemporaryDirectory() as root:
        return prepare_dataset("own", root, path=path, folder=True, image_size=8, **options).store


def refusal_to_prepare(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepared(path, **options)
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


def test_a_split_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", ["owl"])
    make_classes(tmp_path / "test", ["crow"])
    message = (
        f"no class of {tmp_path} is in split 'val', by split folders; every split needs one: add "
        "it, or leave the splits out to have them drawn"
    )
    assert refusal_to_prepare(tmp_path) == message
    make_image(tmp_path / "val" / "loose.png")
    assert refusal_to_prepare(tmp_path) == message


def test_a_folder_beside_the_split_folders_is_named(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        make_classes(tmp_path / split, [split + " bird"])
    make_classes(tmp_path, ["owl"])
    assert refused(tmp_path) == (
        f"{tmp_path / 'owl'} is beside split folders and is not one; use train/, val/ and test/, "
        f"or name the split of every class in {tmp_path / 'splits.json'}"
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
    splits = splits_of(root, seed=seed)
    assert Counter(chain.from_iterable(splits.values())) == Counter(names)
    sizes = {split: len(of_split) for split, of_split in splits.items()}
    assert min(sizes.values()) >= (2 if count >= 6 else 1)
    assert abs(sizes["val"] - 0.16 * count) <= 1.1
    assert abs(sizes["test"] - 0.20 * count) <= 1
    assert splits == splits_of(root, seed=seed)


def test_the_seed_draws_the_splits(tmp_path: Path) -> None:
    make_classes(tmp_path, [f"bird {number}" for number in range(12)], images=1)
    drawn = {json.dumps(splits_of(tmp_path, seed=seed)) for seed in range(5)}
    assert len(drawn) == 5
    assert splits_of(tmp_path) == splits_of(tmp_path, seed=0)


def test_fewer_than_three_classes_cannot_be_split(tmp_path: Path) -> None:
    make_classes(tmp_path, ["owl", "crow"])
    assert refused(tmp_path) == (
        f"{tmp_path} has 2 classes; at least 3 are needed, one for each of train, val and test "
        "(and as many in each as the tasks have ways); give each class a folder of its images"
    )


def test_a_path_that_is_neither_folder_nor_archive_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert refused(missing) == f"there is no file or folder {missing}; check the path"
    image = make_image(tmp_path / "owl.png")
    assert refused(image).startswith(f"{image} is not a tar or zip archive, or is cut off; ")


@pytest.mark.parametrize("names", [["wren"], []])
def test_one_class_or_none_cannot_be_split(tmp_path: Path, names: list[str]) -> None:
    make_classes(tmp_path, names)
    make_image(tmp_path / "loose.png")
    assert refused(tmp_path).startswith(f"{tmp_path} has {len(names)} classes; at least 3 are ")


def test_shares_say_how_many_classes_each_split_gets(tmp_path: Path) -> None:
    make_classes(tmp_path, [f"bird {number}" for number in range(10)], images=1)
    splits = splits_of(tmp_path, split=(0.2, 0.5, 0.3), seed=4)
    assert {split: len(names) for split, names in splits.items()} == {
        "train": 2,
        "val": 5,
        "test": 3,
    }
    notes = notes_on(tmp_path)
    find_classes(notes, split=(0.2, 0.5, 0.3), seed=4)
    assert notes.splits == "drawn with seed 4 and shares 0.2, 0.5, 0.3"


@pytest.mark.parametrize("shares", [(0.6, 0.4), (0.6, 0.2, 0.1), (0.5, 0.5, 0.0)])
def test_shares_that_are_not_three_parts_of_one_are_refused(
    tmp_path: Path, shares: tuple[float, ...]
) -> None:
    make_classes(tmp_path, BIRDS, images=1)
    given = ", ".join(f"{share:g}" for share in shares)
    assert refused(tmp_path, split=shares) == (
        f"the shares of the splits are {given}; give three fractions above 0 that add up to 1, "
        "such as 0.6,0.2,0.2 for train, val and test"
    )


# Splits given by a file


def test_splits_from_a_file(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    write_splits(
        tmp_path,
        {"test": ["owl"], "train": ["lark", "crow"], "val": ["heron"], "unused": ["finch"]},
    )
    assert splits_of(tmp_path) == {"train": ["crow", "lark"], "val": ["heron"], "test": ["owl"]}


GIVEN = {"train": ["crow", "lark"], "val": ["heron"], "test": ["owl", "finch"]}


def test_a_class_without_a_folder_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, BIRDS)
    path = write_splits(tmp_path, GIVEN | {"val": ["herron"]})
    assert refused(tmp_path) == (
        f"{path} names class 'herron' in 'val', but there is no such class (did you mean "
        "'heron'?); correct the name or add the class"
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
    write_splits(tmp_path, GIVEN | {"val": [], "train": ["crow", "heron", "lark"]})
    said = f"no class of {tmp_path} is in split 'val', by splits.json; every split needs one: "
    assert refusal_to_prepare(tmp_path).startswith(said)


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


def test_a_file_elsewhere_gives_the_splits(tmp_path: Path) -> None:
    birds = make_classes(tmp_path / "birds", BIRDS, images=1)
    path = write_splits(tmp_path, GIVEN)
    assert splits_of(birds, split=path)["test"] == ["finch", "owl"]
    assert "is not readable as JSON" in refused(birds, split=tmp_path / "none.json")


def test_a_file_that_names_images_keeps_their_labels_and_groups(tmp_path: Path) -> None:
    lines, named = ["path,label,group"], {}
    for split, name in (("train", "crow"), ("val", "lark"), ("test", "owl"), ("unused", "wren")):
        files = [f"{name}/day {number}/0.png" for number in range(2)]
        named[split] = files
        for file in (*files, f"{name}/2.png"):
            make_image(tmp_path / file, shade=len(lines))
            lines.append(f"{file},a {name},of {file}")
    splits = write_splits(tmp_path, named)
    notes = notes_on(write_table(tmp_path, lines))
    found = find_classes(notes, split=splits)
    assert [(item.split, item.name, item.groups) for item in found] == [
        (split, f"a {name}", [f"of {file}" for file in named[split]])
        for split, name in (("train", "crow"), ("val", "lark"), ("test", "owl"))
    ]
    assert len(notes.skipped["in no list"]) == 4


@pytest.mark.parametrize("options", [{"seed": 0}, {"split": (0.6, 0.2, 0.2)}, {"split": "b.json"}])
def test_a_seed_or_split_that_would_change_nothing_is_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    make_classes(tmp_path, BIRDS)
    write_splits(tmp_path, GIVEN)
    assert refused(tmp_path, **options) == (
        f"the splits of {tmp_path} come from splits.json, so --{next(iter(options))} would change "
        "nothing; leave it out"
    )


# Tables


def write_table(root: Path, lines: list[str]) -> Path:
    path = root / "birds.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_table_names_the_label_split_and_group_of_each_image(tmp_path: Path) -> None:
    lines = ["path,label,split,group,note"]
    for name, split in {"crow": "train", "owl": "validation", "wren": "test"}.items():
        for number in range(4):
            make_image(tmp_path / "all" / f"{name}{number}.png", shade=40 * number)
            lines.append(f"all/{name}{number}.png,{name},{split},{name}{number // 2},")
    store = prepared(write_table(tmp_path, lines))
    assert [split.class_names for split in store.splits.values()] == [
        ("crow",),
        ("owl",),
        ("wren",),
    ]
    assert store.source["splits"] == "column split"
    groups = store.splits["train"].groups
    assert groups is not None
    assert groups.tolist()[:4] == ["crow0", "crow0", "crow1", "crow1"]


def test_a_table_without_splits_has_them_drawn(tmp_path: Path) -> None:
    path = write_table(tmp_path, ["label,path", *(f"{name},{name}.png" for name in BIRDS)])
    assert splits_of(path, seed=1) == splits_of(path, seed=1)
    assert sum(len(names) for names in splits_of(path).values()) == 5


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path;label", "a.png;crow"], "line 1 of {}: the columns are not 'path,label' but 'path;"),
        (["path,label", "a.png,"], "line 2 of {}: it does not have one path and one label"),
        (["path,label", "a.png"], "line 2 of {}: it does not have one path and one label"),
        (["path,label", "a.png,crow", "a.png,owl"], "line 3 of {}: 'a.png' is listed twice"),
        (["path,label,split", "a.png,crow,dev"], "line 2 of {}: the split is 'dev'; it must be"),
        (["path,label,group", "a.png,crow,"], "line 2 of {}: it has no group"),
        (["path,label"], "{} has 0 classes; at least 3 are needed"),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path: Path, lines: list[str], said: str) -> None:
    path = write_table(tmp_path, lines)
    assert refused(path).startswith(said.format(path))


def test_splits_of_a_table_that_overlap_or_have_no_class_are_named(tmp_path: Path) -> None:
    lines = ["path,label,split", "crow/0.png,crow,val", "crow/1.png,crow,test"]
    make_classes(tmp_path, ["crow"])
    path = write_table(tmp_path, lines)
    assert refusal_to_prepare(path).startswith(f"class 'crow' of {path} is in 'val' and in 'test'")
    write_table(tmp_path, lines[:2])
    said = f"no class of {path} is in split 'train', by column split; every split needs one: "
    assert refusal_to_prepare(path).startswith(said)


# Groups


def test_the_parentheses_of_an_expression_are_the_group_of_an_image(tmp_path: Path) -> None:
    for name in ("crow", "lark", "owl"):
        for number in range(3):
            make_image(tmp_path / name / f"{number // 2}_{number}.png")
    groups = {
        item.name: list(item.groups or [])
        for item in find_classes(notes_on(tmp_path), group=r"(.*)_\d")
    }
    assert groups["crow"] == ["crow/0", "crow/0", "crow/1"]
    whole = find_classes(notes_on(tmp_path), group=r"\d(?=_)")
    assert [list(item.groups or []) for item in whole] == 3 * [["0", "0", "1"]]


def test_an_expression_that_is_none_or_is_not_found_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    assert refused(tmp_path, group="(") == (
        "--group '(' is no regular expression (missing ), unterminated subpattern at position 0)"
    )
    assert refused(tmp_path, group="_") == (
        "--group '_' is not found in crow/0.png, crow/1.png; it is searched in the path of each "
        f"image below {tmp_path}"
    )


# Images


def test_files_that_are_not_read_are_noted_with_the_reason(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    make_image(tmp_path / ".thumbnails" / "0.png")
    make_image(tmp_path / "loose.png")
    (tmp_path / "README.txt").write_text("birds", encoding="utf-8")
    for name in (".0.png", "notes.txt"):
        (tmp_path / "owl" / name).write_text("no image", encoding="utf-8")
    (tmp_path / "owl" / "more").symlink_to(tmp_path / "lark")
    make_image(tmp_path / "owl" / "SHOUTED.JPG")
    make_image(tmp_path / "owl" / "2.png").rename(tmp_path / "owl" / "unnamed")
    notes = notes_on(tmp_path)
    (owl,) = [item for item in find_classes(notes) if item.name == "owl"]
    assert [path.name for path in owl.images] == ["0.png", "1.png", "SHOUTED.JPG", "unnamed"]
    assert notes.skipped == {
        "hidden": [".thumbnails", "owl/.0.png"],
        "not an image": ["README.txt", "owl/notes.txt"],
        "beside the class folders": ["loose.png"],
        "a link to a folder": ["owl/more"],
    }


def test_images_may_be_at_any_depth_of_a_class_folder_or_of_an_archive(tmp_path: Path) -> None:
    birds = tmp_path / "outer" / "birds"
    for image in ("crow/0.png", "lark/images/0.png", "owl/2019/0.png", "owl/2020/0.png"):
        make_image(birds / image)
    archive = shutil.make_archive(str(tmp_path / "birds"), "zip", tmp_path / "outer")
    for path in (birds, tmp_path / "outer", Path(archive)):
        counts = [split.counts.tolist() for split in prepared(path).splits.values()]
        assert sorted(counts) == [[1], [1], [2]]


@pytest.mark.parametrize("extension", images.EXTENSIONS)
def test_every_kind_of_image_is_read(tmp_path: Path, extension: str) -> None:
    mode = "L" if extension == ".pgm" else "RGB"
    for name in ("crow", "lark", "owl"):
        make_image(tmp_path / name / f"0{extension}", shade=200, mode=mode)
    classes = find_classes(notes_on(tmp_path))
    assert len(classes) == 3
    for item in classes:
        (image,) = [read_image(image, "", ImageFormat(8, 3)) for image in item.images]
        assert image.shape == (3, 8, 8)
        assert (abs(image.astype(int) - 200) <= 2).all()


def test_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("crow", "lark", "owl"):
        for shade in (90, 30, 60):
            make_image(tmp_path / name / f"{shade}.png", shade=shade, mode="L")
    for item in find_classes(notes_on(tmp_path)):
        decoded = [read_image(image, "", ImageFormat(5, 1)) for image in item.images]
        assert [int(image[0, 2, 2]) for image in decoded] == [30, 60, 90]


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    (tmp_path / "wren").mkdir()
    message = refused(tmp_path)
    assert message.startswith(
        f"class folder {tmp_path / 'wren'} has no images (it holds nothing); put "
    )
    assert message.endswith("into it, or remove it")


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    (tmp_path / "wren\x1b[2J\x07").mkdir()
    assert f"class folder {tmp_path}/wren\\x1b[2J\\x07 has no images (it holds" in refused(tmp_path)


def test_a_name_of_thousands_of_letters_is_cut_in_a_message() -> None:
    message = str(DataError(f"class {10_000 * 'w'!r} has no images; remove it"))
    assert message == f"class '{399 * 'w'}… has no images; remove it"


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
    assert f"{path} {said}" in refusal_to_prepare(tmp_path / "birds")


def test_all_images_that_cannot_be_read_are_listed_or_left_out(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    (tmp_path / "crow" / "empty.png").touch()
    (tmp_path / "owl" / "dead.png").symlink_to("nowhere")
    (tmp_path / "wren").symlink_to("nowhere")
    message = refusal_to_prepare(tmp_path)
    assert message.startswith(
        "3 images cannot be read; mend or remove them, or leave them out with"
    )
    for name in ("crow/empty.png is not a", "owl/dead.png cannot be", "wren is a dead link"):
        assert f"\n{tmp_path / name}" in message
    store = prepared(tmp_path, skip_bad=True)
    assert sum(split.counts.sum() for split in store.splits.values()) == 6
    skipped = store.source["skipped"]
    assert sorted(skipped.pop("unreadable")) == ["crow/empty.png", "owl/dead.png", "wren"]
    assert not skipped


def test_only_the_first_of_many_unreadable_images_are_listed(tmp_path: Path) -> None:
    for name in ("crow", "lark", "owl"):
        for number in range(10):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.png").touch()
    message = refusal_to_prepare(tmp_path)
    assert message.startswith("30 images cannot be read")
    assert message.endswith("\nand 10 more")
    assert message.count("\n") == 21


def test_a_class_without_a_readable_image_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], images=1)
    (tmp_path / "owl" / "0.png").write_bytes(b"")
    assert refusal_to_prepare(tmp_path, skip_bad=True) == (
        f"class 'owl' of {tmp_path} has no image that can be read; replace them, or remove the "
        "class"
    )


def test_images_with_the_same_pixels_are_noted(tmp_path: Path) -> None:
    for number, name in enumerate(("crow", "finch", "lark", "owl")):
        make_image(tmp_path / name / "0.png", shade=60 * number)
    make_image(tmp_path / "crow" / "1.bmp", shade=0)
    make_image(tmp_path / "finch" / "1.png", shade=0)
    make_image(tmp_path / "owl" / "1.png", shade=120)
    write_splits(tmp_path, {"train": ["crow", "finch"], "val": ["lark"], "test": ["owl"]})
    assert prepared(tmp_path).source["duplicates"] == {
        "within a class": ["crow/0.png = crow/1.bmp"],
        "in two classes": ["crow/0.png = finch/1.png"],
        "in two splits": ["lark/0.png = owl/1.png"],
    }


def test_a_dead_link_in_place_of_the_splits_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    (tmp_path / "splits.json").symlink_to("nowhere")
    assert refused(tmp_path).startswith(
        f"{tmp_path / 'splits.json'} is not readable as JSON (No such file"
    )


def test_a_pipe_in_place_of_the_splits_is_named(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"])
    os.mkfifo(tmp_path / "splits.json")
    assert "splits.json is not a file; it must be {" in refused(tmp_path)


@pytest.mark.parametrize(("mode", "grey"), [("L", True), ("1", True), ("RGB", False), ("P", False)])
def test_whether_a_folder_is_grey(tmp_path: Path, mode: str, grey: bool) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], mode=mode)
    assert is_grey(find_classes(notes_on(tmp_path))) is grey


def test_a_folder_of_sixteen_bit_grey_is_grey(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], mode="L")
    (tmp_path / "owl" / "deep.pgm").write_bytes(b"P5 1 1 65535\n" + b"\x80\0")
    for byte_order in "<>":
        path = tmp_path / "owl" / f"deep{ord(byte_order)}.tif"
        Image.fromarray(np.full((8, 8), 256, dtype=f"{byte_order}u2")).save(path)
    assert is_grey(find_classes(notes_on(tmp_path)))


def test_one_image_in_colour_makes_a_folder_coloured(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], mode="L")
    make_image(tmp_path / "owl" / "last.png", mode="RGB")
    assert not is_grey(find_classes(notes_on(tmp_path)))


def test_an_unreadable_image_says_nothing_of_the_colour(tmp_path: Path) -> None:
    make_classes(tmp_path, ["crow", "lark", "owl"], mode="L")
    (tmp_path / "crow" / "0.png").write_bytes(b"no image")
    assert is_grey(find_classes(notes_on(tmp_path)))
