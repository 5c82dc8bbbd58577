"""Lists of classes or images, as papers' code writes the splits of a dataset.

There is one list a split: `base.json`, `val.json` and `novel.json`, or `train`, `val` and `test`
with the ending `.json`, `.csv` or `.txt`. A list has one of these forms:

- JSON with `image_names`, `image_labels` and `label_names`, as the code of "A Closer Look at
  Few-shot Classification" has it; with `class_names`, as easyfsl has it; or a list of names;
- CSV with the column `filename` or `path`, and perhaps `label`;
- text with a class, or an image and perhaps its label, in each line.

An image without a label belongs to the class of its folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gradshare.errors import DataError
from gradshare.tasks.images import EXTENSIONS
from gradshare.tasks.readers.dataset import FoundClass
from gradshare.tasks.readers.files import read_text, table_error, table_rows
from gradshare.tasks.store import SPLITS

NAMES = {
    "train": ("train", "base"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "novel"),
}
"""How files and folders call each split."""

SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}

Listing = Mapping[str, str]
"""The label of each image or class that a list names; "" if it has none."""

Places = dict[tuple[str, ...], list[Path]]
"""The images at or below each file and folder, by the last one or two parts of its path."""


def list_files(folder: Path) -> dict[str, Path]:
    """The list of each split in a folder; empty if a split has none."""
    for suffix in (".json", ".csv", ".txt"):
        files = {
            split: folder / f"{name}{suffix}"
            for name, split in SPLIT_OF.items()
            if (folder / f"{name}{suffix}").is_file()
        }
        if len(files) == len(SPLITS):
            return files
    return {}


def read_list(path: Path) -> Listing:
    """Read the list of a split. Raise DataError if it is in none of the forms described above, or
    a table names an image twice.
    """
    if path.suffix.lower() == ".csv":
        return _in_table(path)
    try:
        text = read_text(path, "a list of images")
        return _in_json(json.loads(text)) if path.suffix.lower() == ".json" else _in_text(text)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(
            f"{path} is not a list of images or classes ({error}); give a list of names, or JSON "
            "with image_names, image_labels and label_names"
        ) from error


def _in_table(path: Path) -> Listing:
    listing: dict[str, str] = {}
    for line, row in table_rows(path, ()):
        if not {"path", "filename"} & row.keys():
            raise table_error(path, 1, "the columns are not 'filename,label'")
        file, label = row.get("path", row.get("filename")), row.get("label", "")
        if None in row or not file or ("label" in row and not label):
            raise table_error(path, line, "it does not have one file name and one class")
        if file in listing:
            raise table_error(path, line, f"{file!r} is listed twice")
        listing[file] = _class_name(file, label)
    if not listing:
        raise table_error(path, 1, "it lists no images")
    return listing


def _in_text(text: str) -> Listing:
    listing: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        file, _, label = line.rpartition(" ")
        listing |= {file: _class_name(file, label)} if is_image(file) else {line: ""}
    return listing


def _in_json(content: Any) -> Listing:
    if isinstance(content, list) or "class_names" in content:
        names = content if isinstance(content, list) else content["class_names"]
        return {str(name): "" for name in names}
    names = content["label_names"]
    pairs = zip(content["image_names"], content["image_labels"], strict=True)
    # Some lists number their labels from another start; then the folder names the class.
    return {
        str(file): str(names[label]) if 0 <= label < len(names) else "" for file, label in pairs
    }


def _class_name(file: str, label: str) -> str:
    """The label; "" if it is a number, whose meaning depends on the list, and a folder names it."""
    return "" if "/" in file and label.isdigit() else label


def is_image(name: str) -> bool:
    """Whether a name ends as that of an image."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def places_of(images: Iterable[Path], name: Callable[[Path], str]) -> Places:
    """The places of images, given a function to the part of their paths that lists may have."""
    places: Places = {}
    for image in images:
        relative = PurePosixPath(name(image))
        for place in (relative, *relative.parents[:-1]):
            for ending in {place.parts[-2:], place.parts[-1:]}:
                places.setdefault(ending, []).append(image)
    return places


def classes_in_lists(
    listings: Mapping[str, Listing], places: Places, where: Path
) -> list[FoundClass]:
    """The classes that the lists of all splits name, or whose images they name.

    The paths in a list may be those of another machine: an image is found by its own name and that
    of its folder.

    Raises:
        DataError: an image is missing or listed twice, or several have its name.
    """
    classes = []
    split_of: dict[Path, str] = {}
    for split in SPLITS:
        listing, images, missing = listings[split], dict[str, list[Path]](), []
        if not listing:
            raise DataError(f"nothing in {where} is listed for {split!r}; list an image or class")
        for name in sorted(listing):
            found = places.get(PurePosixPath(name.replace("\\", "/")).parts[-2:], [])
            if not found:
                missing.append(name)
                continue
            if is_image(name) and len(found) > 1:
                raise DataError(f"{name!r} may be {found[0]} or {found[1]}; remove one of them")
            of_folder = found[0].parent.name if is_image(name) else name
            images.setdefault(listing[name] or of_folder, []).extend(found)
            for image in found:
                if image in split_of:
                    raise DataError(
                        f"{image} is listed for {split_of[image]!r} and {split!r}; list it once"
                    )
                split_of[image] = split
        if missing:
            raise DataError(
                f"{where} lacks {len(missing)} of the {len(listing)} images or classes that are "
                f"listed for {split!r}, such as {missing[0]!r}; add them, or remove "
                "them from the list"
            )
        classes += [FoundClass(split, name, images[name]) for name in sorted(images)]
    return classes
