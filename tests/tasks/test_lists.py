"""Splits of a user's images, from the lists that papers' code writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradshare.errors import DataError
from gradshare.tasks.datasets import prepare_dataset
from gradshare.tasks.readers.dataset import Notes
from gradshare.tasks.readers.folder import find_classes
from tests.tasks.builders import make_classes, make_image

SPLITS = {"train": ["crow", "lark"], "val": ["heron"], "test": ["owl"]}
NAMES = ["crow", "lark", "heron", "owl"]
FOUND = {(split, name): ["0.png", "1.png"] for split, names in SPLITS.items() for name in names}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return make_classes(tmp_path / "birds", NAMES)


def found_in(path: Path, **options: str | Path) -> dict[tuple[str, str], list[str]]:
    scratch = path.parent / "scratch"
    found = find_classes(Notes(path, scratch), **options)  # type: ignore[arg-type]
    return {(item.split, item.name): [image.name for image in item.images] for item in found}


def images_of(names: list[str], folder: str = "") -> list[str]:
    return [f"{folder}{name}/{number}.png" for name in names for number in range(2)]


def closer_look(folder: Path) -> None:
    """base.json, val.json and novel.json, with the paths of the machine that wrote them."""
    for split, file in (("train", "base"), ("val", "val"), ("test", "novel")):
        content = {
            "label_names": NAMES,
            "image_names": images_of(SPLITS[split], "/home/someone/filelists/CUB/images/"),
            "image_labels": [NAMES.index(name) for name in SPLITS[split] for _ in range(2)],
        }
        (folder / f"{file}.json").write_text(json.dumps(content))


def labels_from_elsewhere(folder: Path) -> None:
    """Labels that go on from split to split, beside the names of one split only."""
    for split, start in (("train", 0), ("val", 2), ("test", 3)):
        labels = [start + number for number in range(len(SPLITS[split])) for _ in range(2)]
        content = {"label_names": SPLITS[split], "image_names": images_of(SPLITS[split])}
        (folder / f"{split}.json").write_text(json.dumps({**content, "image_labels": labels}))


def easyfsl(folder: Path) -> None:
    for split, names in SPLITS.items():
        roots = [f"./data/birds/{name}" for name in names]
        content = {"class_names": names, "class_roots": roots}
        (folder / f"{split}.json").write_text(json.dumps(content))


def tables(folder: Path) -> None:
    for split, names in SPLITS.items():
        rows = [f"{file},{number // 2}" for number, file in enumerate(images_of(names))]
        (folder / f"{split}.csv").write_text("\n".join(("filename,label", *rows)))


def tables_without_labels(folder: Path) -> None:
    for split, names in SPLITS.items():
        (folder / f"{split}.csv").write_text("\n".join(("path", *images_of(names))))


def texts_of_classes(folder: Path) -> None:
    for split, names in SPLITS.items():
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")


def texts_of_images(folder: Path) -> None:
    for split, names in SPLITS.items():
        lines = [f"images/{file} {number // 2}" for number, file in enumerate(images_of(names))]
        (folder / f"{split}.txt").write_text("\n\n".join(lines))


def splits_of_images(folder: Path) -> None:
    content = {split: images_of(names) for split, names in SPLITS.items()}
    (folder / "splits.json").write_text(json.dumps(content))


LISTS = [
    *(closer_look, labels_from_elsewhere, easyfsl, tables, tables_without_labels),
    *(texts_of_classes, texts_of_images, splits_of_images),
]


@pytest.mark.parametrize("write", LISTS)
@pytest.mark.parametrize("inside", ["", "images"])
def test_every_list_gives_the_same_classes(
    birds: Path, write: Callable[[Path], None], inside: str
) -> None:
    if inside:
        for name in NAMES:
            (birds / inside).mkdir(exist_ok=True)
            (birds / name).rename(birds / inside / name)
    write(birds)
    assert found_in(birds) == FOUND


def test_a_split_of_images_may_be_given_as_an_option(birds: Path, tmp_path: Path) -> None:
    splits_of_images(tmp_path)
    assert found_in(birds, split=tmp_path / "splits.json") == FOUND


def test_images_and_folders_that_no_list_names_are_left_out_and_noted(birds: Path) -> None:
    closer_look(birds)
    make_image(birds / "crow" / "2.png")
    (birds / "filelists").mkdir()
    notes = Notes(birds, birds.parent)
    assert len(find_classes(notes)) == 4
    assert notes.splits == "base.json, val.json, novel.json"
    assert notes.skipped == {"in no list": ["crow/2.png"]}


def test_classes_may_be_folders_in_folders(tmp_path: Path) -> None:
    for split, name in (("train", "Greek/c1"), ("val", "Greek/c2"), ("test", "Latin/c1")):
        make_image(tmp_path / name / "1.png")
        (tmp_path / f"{split}.txt").write_text(name)
    assert found_in(tmp_path) == {
        ("train", "Greek/c1"): ["1.png"],
        ("val", "Greek/c2"): ["1.png"],
        ("test", "Latin/c1"): ["1.png"],
    }


def test_a_list_of_two_splits_alone_does_not_count(birds: Path) -> None:
    texts_of_classes(birds)
    (birds / "val.txt").unlink()
    notes = Notes(birds, birds.parent)
    find_classes(notes)
    assert notes.splits == "drawn with seed 0"


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        found_in(folder)
    return str(error.value)


def test_what_a_list_names_and_is_not_there_is_named(birds: Path) -> None:
    texts_of_classes(birds)
    (birds / "val.txt").write_text("heron\nemu\n")
    assert refusal(birds) == (
        f"{birds} lacks 1 of the 2 images or classes that are listed for 'val', such as 'emu'; add "
        "them, or remove them from the list"
    )
    (birds / "val.txt").write_text("")
    with pytest.raises(DataError) as error:
        prepare_dataset("own", birds.parent / "data", path=birds, folder=True)
    assert str(error.value) == (
        f"no class of {birds} is in split 'val', by train.txt, val.txt, test.txt; every split "
        "needs one: add it, or leave the splits out to have them drawn"
    )


def test_folders_of_one_name_are_not_one_class(tmp_path: Path) -> None:
    """Unless a list gives their images one label."""
    birds = tmp_path / "birds"
    for image in ("crow/2019/1.png", "lark/2019/2.png", "owl/3.png", "heron/4.png"):
        make_image(birds / image)
    for split, names in (("train", "2019/1.png\n2019/2.png"), ("val", "owl"), ("test", "heron")):
        (birds / f"{split}.txt").write_text(names)
    with pytest.raises(DataError, match=r"class '2019' of .* is in 'train' and in 'train'"):
        prepare_dataset("own", tmp_path / "data", path=birds, folder=True)
    (birds / "train.txt").write_text("2019/1.png a\n2019/2.png a")
    assert found_in(birds)["train", "a"] == ["1.png", "2.png"]


@pytest.mark.parametrize("label", ["heron", "another"])
def test_an_image_that_is_listed_twice_is_refused(birds: Path, label: str) -> None:
    tables(birds)
    listed = (birds / "train.csv").read_text().splitlines()
    (birds / "val.csv").write_text(f"{listed[0]}\n{listed[1].rpartition(',')[0]},{label}\n")
    said = refusal(birds)
    assert said.endswith(" is listed for 'train' and 'val'; list it once")


def test_a_file_of_splits_may_start_with_a_byte_order_mark(birds: Path) -> None:
    splits_of_images(birds)
    expected = found_in(birds)
    file = birds / "splits.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert found_in(birds) == expected


def test_an_image_of_another_class_is_not_taken_for_the_one_in_the_list(birds: Path) -> None:
    tables_without_labels(birds)
    (birds / "val.csv").write_text("path\nemu/1.png\n")
    assert "such as 'emu/1.png'" in refusal(birds)
    (birds / "val.csv").write_text("path\n1.png\n")
    assert "'1.png' may be " in refusal(birds)


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "3", '{"image_names": ["a.png"]}', '{"class_names": 3}', "null"]
)
def test_json_that_is_no_list_is_refused(birds: Path, text: str) -> None:
    easyfsl(birds)
    (birds / "val.json").write_text(text)
    assert f"{birds / 'val.json'} is not a list of images or classes (" in refusal(birds)
