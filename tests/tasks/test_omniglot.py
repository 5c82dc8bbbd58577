"""Omniglot's two archives, whole, in parts, and in the split that this project fixes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from gradshare.cli.contents import print_datasets, print_notes
from gradshare.tasks import ImageStore, image_splits
from gradshare.tasks.datasets import prepare_dataset
from gradshare.tasks.readers.omniglot import OMNIGLOT
from gradshare.tasks.registry import DATASETS
from tests.tasks.archive_builders import (
    encoded,
    make_folder,
    make_zip,
    pixels,
    prepared_classes,
    refusal_to_prepare,
)

SIZES = {"train": 1150, "val": 50, "test": 423}

# Twenty drawings in turn make all characters.
DRAWINGS = [encoded(pixels(i)[..., 0]) for i in range(20)]


def part_files(part: str, first: int, characters: int) -> dict[str, bytes]:
    """The files of an archive in the official layout, characters counted from `first`."""
    return {
        f"{part}/Alphabet_0/character{i + 1:02}/{i:04}_{j + 1:02}.png": DRAWINGS[(i + j) % 20]
        for i in range(first, first + characters)
        for j in range(20)
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of both archives of an Omniglot of 6 + 4 characters."""
    parts = {"omniglot": (5, 2, 3), "omniglot-lake": (6, 0, 4)}
    for name, sizes in parts.items():
        in_order = [part for part, size in zip(SIZES, sizes, strict=True) for _ in range(size)]
        split = {f"Alphabet_0/character{i + 1:02}": part for i, part in enumerate(in_order)}
        dataset = replace(DATASETS[name], split=split)
        monkeypatch.setitem(DATASETS, name, dataset)
    return part_files("images_background", 0, 6), part_files("images_evaluation", 6, 4)


def make_archives(folder: Path, background: dict[str, bytes], evaluation: dict[str, bytes]) -> Path:
    make_zip(folder / "images_background.zip", background)
    make_zip(folder / "images_evaluation.zip", evaluation)
    return folder


def refusal(path: Path) -> str:
    return refusal_to_prepare("omniglot", path)


def test_two_archives_and_what_they_unpack_to_read_the_same(
    tmp_path: Path, small: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    archives = make_archives(make_folder(tmp_path / "zip", {}), *small)
    shuffled = dict(reversed(small[0].items()))
    mixed = make_folder(tmp_path / "mixed", shuffled)
    make_zip(mixed / "images_evaluation.zip", small[1])
    classes = prepared_classes("omniglot", archives)
    assert Counter(part for part, _name in classes) == {"train": 5, "val": 2, "test": 3}
    assert {shape for shape, _ in classes.values()} == {(20, 1, 8, 8)}
    images_of = {name: images for (_part, name), (_, images) in classes.items()}
    # The images of a class are in the order of their names.
    expected = [pixels((1 + i) % 20)[..., 0].tobytes() for i in range(20)]
    assert images_of["Alphabet_0/character02"] == b"".join(expected)
    assert prepared_classes("omniglot", mixed) == classes


def test_a_split_without_validation_classes_validates_on_those_of_training(
    tmp_path: Path,
    small: tuple[dict[str, bytes], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    archives = make_archives(make_folder(tmp_path / "zip", {}), *small)
    store = prepare_dataset("omniglot-lake", tmp_path, path=archives, image_size=8).store
    train, validation, test = image_splits(ImageStore.open(store.path), ways=4)
    assert validation.split.class_names == train.split.class_names
    assert [len(tasks.split.class_names) for tasks in (train, test)] == [6, 4]
    assert len(train.split.images) == 10 * 20, "no image is there twice"
    assert test.note == (
        "The splits of omniglot-lake were published without validation classes, so that the "
        "validation tasks are of training classes."
    )
    print_notes(store)
    print_datasets(tmp_path)
    shown = capsys.readouterr().out
    assert "Read 200 images of 10 classes\n" in shown
    (row,) = [line for line in shown.splitlines() if "6 / 0 / 4" in line]
    assert row.split("│")[-2].strip() == "200"


def test_the_published_splits() -> None:
    """Facts of torchmeta's lists, which are those of Vinyals et al. with validation alphabets."""
    sizes = {name: Counter(DATASETS[name].split.values()) for name in DATASETS if "omni" in name}
    assert sizes == {
        "omniglot": SIZES,
        "omniglot-vinyals": {"train": 1028, "val": 172, "test": 423},
        "omniglot-vinyals-1200": {"train": 1200, "test": 423},
        "omniglot-lake": {"train": 964, "test": 659},
    }
    split = DATASETS["omniglot-vinyals"].split
    assert {name.split("/")[0] for name in split if split[name] == "val"} == {
        *("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
    }
    assert split["Gurmukhi/character41"] == "train"
    assert split["Gurmukhi/character42"] == "test"
    digest = "87d576a3e06404a524304508d01c68827180882a948b22e73b74056aaa0328a7"
    assert hashlib.sha256(repr(sorted(split.items())).encode()).hexdigest() == digest


def test_turns_classes_and_verifies_what_it_downloads() -> None:
    assert OMNIGLOT.rotate_classes
    assert (OMNIGLOT.channels, OMNIGLOT.image_size) == (1, 28)
    assert [archive.filename for archive in OMNIGLOT.archives] == [
        "images_background.zip",
        "images_evaluation.zip",
    ]
    assert all(archive.md5 for archive in OMNIGLOT.archives)


def test_names_what_is_missing(
    tmp_path: Path, small: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    archive = make_zip(tmp_path / "images_background.zip", small[0])
    assert f"{archive} is not a complete copy of Omniglot: it is a file; " in refusal(archive)
    assert refusal(tmp_path) == (
        f"{tmp_path} is not a complete copy of Omniglot: found images_background.zip; for archives "
        "it lacks images_evaluation.zip; the layouts that can be read are\n"
        "  archives: images_background.zip and images_evaluation.zip, or what they unpack to"
    )


def test_refuses_an_incomplete_part(
    tmp_path: Path, small: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    background, evaluation = small
    make_archives(tmp_path, background, dict(list(evaluation.items())[:-1]))
    path = tmp_path / "images_evaluation.zip"
    assert (
        f"character Alphabet_0/character10 in {path} has 19 drawings, Omniglot has 20 of each; "
        "download images_evaluation.zip again"
    ) == refusal(tmp_path)
    make_zip(path, dict(list(evaluation.items())[20:]))
    assert refusal(tmp_path) == (
        f"{tmp_path} does not have the published split: it lacks Alphabet_0/character07; it has "
        "1 classes in 'val', and not 2; get a complete copy with that split"
    )


def test_names_a_damaged_drawing(
    tmp_path: Path, small: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    name = "images_background/Alphabet_0/character03/0002_07.png"
    make_archives(tmp_path, small[0] | {name: b"\x89PNG"}, small[1])
    archive = tmp_path / "images_background.zip"
    assert refusal(tmp_path).startswith(f"{archive}/{name} is not a readable image (")
