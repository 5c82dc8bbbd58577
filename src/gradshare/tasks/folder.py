"""Images of your own: any folder of class folders.

Three ways to say which classes are in which split:

- folders `train/`, `val/` (or `valid/`, `validation/`) and `test/`, each with its class folders;
- a file `splits.json` beside the class folders: `{"train": ["cat", …], "val": […], "test": […]}`,
  where a fourth list "unused" may name classes to leave out;
- neither: classes are dealt to the splits at random, from a seed: 16 % of them to val, 20 % to
  test, at least one to each, the others to train.

A class folder holds its images directly. Hidden files, and files without an image's extension,
are passed over; a file with one that cannot be read is an error.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gradshare.errors import DataError
from gradshare.tasks.dataset import Dataset, FoundClass
from gradshare.tasks.images import EXTENSIONS, open_image
from gradshare.tasks.store import SPLITS
from gradshare.tasks.web_page import refuse_web_page

IMAGE_SIZE = 84  # most papers' size of photographs
SPLITS_FILE = "splits.json"
UNUSED = "unused"
SPLIT_OF_FOLDER = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# Of the classes, mini-ImageNet's shares.
VAL_SHARE = 0.16
TEST_SHARE = 0.20

GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I")


def own_dataset(name: str, seed: int | None) -> Dataset:
    """A folder of class folders as a dataset.

    Args:
        name: of the dataset.
        seed: see `find_classes`.
    """
    return Dataset(
        name=name,
        summary="images of your own",
        channels=None,
        image_size=IMAGE_SIZE,
        rotate_classes=False,
        read=lambda path, _scratch: find_classes(path, seed),
    )


def find_classes(root: Path, seed: int | None = None) -> list[FoundClass]:
    """Find the classes under a folder, and their splits, without reading an image.

    Args:
        root: a folder in one of the module's layouts.
        seed: deals classes to splits where the folder does not say which is in which; None is 0.

    Raises:
        DataError: not a folder, splits that overlap or lack classes, a class without images, a
            splits file that does not fit the folder, or a seed where nothing is left to chance.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the class folders")
    given = given_splits(root)
    if given and seed is not None:
        raise DataError(
            f"the splits of {root} come from its {given}, so seed {seed} would change nothing; "
            "leave out --seed"
        )
    if given == SPLITS_FILE:
        splits = _splits_from_file(root / SPLITS_FILE, class_folders(root))
    elif given:
        splits = splits_from_folders(root)
    else:
        splits = _splits_at_random(root, class_folders(root), seed or 0)
    return [
        FoundClass(split, folder.name, image_files(folder))
        for split in SPLITS
        for folder in splits[split]
    ]


def given_splits(root: Path) -> str | None:
    """What in a folder says which class is in which split; None if nothing does."""
    if (root / SPLITS_FILE).exists():
        return SPLITS_FILE
    named = any(folder.name in SPLIT_OF_FOLDER for folder in class_folders(root))
    return "split folders" if named else None


def is_grey(found: Sequence[FoundClass]) -> bool:
    """Whether no image of some folders has colour, by the images' headers."""
    return all(_mode(path) in GREY_MODES for item in found for path in item.images)


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name. Hidden ones are passed over.

    Raises:
        DataError: a link in it is dead, and could be one of them.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_symlink() and not entry.exists():
            raise DataError(f"{entry} is a dead link; replace or remove it")
    return [entry for entry in entries if entry.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """The images that a class folder holds directly, by name.

    Raises:
        DataError: there are none.
    """
    images = sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in EXTENSIONS
        and not entry.name.startswith(".")
        and not entry.is_dir()
    )
    if not images:
        inner = class_folders(folder)
        hint = f" (it holds folders, such as {inner[0].name!r})" if inner else ""
        raise DataError(
            f"class folder {folder} has no images{hint}; put images ({', '.join(EXTENSIONS)}) "
            "directly into it, or remove it"
        )
    return images


def splits_from_folders(root: Path) -> Mapping[str, list[Path]]:
    """The class folders of each split, in a folder of split folders.

    Raises:
        DataError: a split is missing, empty or there twice, or another folder is beside them.
    """
    folder_of: dict[str, Path] = {}
    for folder in class_folders(root):
        if folder.name not in SPLIT_OF_FOLDER:
            raise DataError(
                f"{folder} is beside split folders and is not one; use train/, val/ and test/, or "
                f"name the split of every class in {root / SPLITS_FILE}"
            )
        split = SPLIT_OF_FOLDER[folder.name]
        if split in folder_of:
            raise DataError(
                f"{folder_of[split]} and {folder} are both the split {split!r}; keep one of them"
            )
        folder_of[split] = folder
    splits = {}
    for split in SPLITS:
        if split not in folder_of:
            raise DataError(
                f"{root} has split folders but none for {split!r}; add {root / split}, or move "
                "all class folders into one folder to have the splits drawn"
            )
        splits[split] = class_folders(folder_of[split])
        if not splits[split]:
            raise DataError(
                f"{folder_of[split]} has no class folders; every split needs at least one"
            )
    return splits


def _mode(path: Path) -> str:
    with open_image(path, str(path)) as image:
        return image.mode


def _splits_from_file(path: Path, folders: Sequence[Path]) -> Mapping[str, list[Path]]:
    example = '{"train": ["class", …], "val": […], "test": […]}'
    refuse_web_page(path, "a list of classes")
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not readable as JSON ({error}); it must be {example}"
        ) from error
    lists_of_names = isinstance(named, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in named.values()
    )
    if not lists_of_names or set(named) - {UNUSED} != set(SPLITS):
        raise DataError(f"{path} does not give the three splits; it must be {example}")
    by_name = {folder.name: folder for folder in folders}
    for split, names in named.items():
        if not names and split != UNUSED:
            raise DataError(f"{path} gives split {split!r} no classes; it needs at least one")
        for name in names:
            if name not in by_name:
                near = difflib.get_close_matches(name, by_name, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise DataError(
                    f"{path} names class {name!r} in {split!r}, but there is no folder "
                    f"{path.parent / name}{hint}; correct the name or add the folder"
                )
    times = Counter(name for names in named.values() for name in names)
    twice = [name for name in times if times[name] > 1]
    if twice:
        raise DataError(f"{path} names class {twice[0]!r} twice; give it to one split")
    unnamed = [name for name in by_name if name not in times]
    if unnamed:
        raise DataError(
            f"{path} gives class {unnamed[0]!r} ({len(unnamed)} in all) no split; add it to one, "
            f'or to a list "{UNUSED}"'
        )
    return {split: [by_name[name] for name in sorted(named[split])] for split in SPLITS}


def _splits_at_random(root: Path, folders: Sequence[Path], seed: int) -> Mapping[str, list[Path]]:
    if len(folders) < len(SPLITS):
        raise DataError(
            f"{root} has {len(folders)} class folders; at least 3 are needed, one for each of "
            "train, val and test (and as many in each as the tasks have ways)"
        )
    shuffled = [folders[i] for i in np.random.default_rng(seed).permutation(len(folders))]
    val = max(1, round(VAL_SHARE * len(folders)))
    test = max(1, round(TEST_SHARE * len(folders)))
    return {
        "val": sorted(shuffled[:val]),
        "test": sorted(shuffled[val : val + test]),
        "train": sorted(shuffled[val + test :]),
    }
