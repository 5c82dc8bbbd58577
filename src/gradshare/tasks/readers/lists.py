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
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gradshare.errors import DataError
from gradshare.tasks.images import EXTENSIONS
from gradshare.tasks.readers.dataset import FoundClass, Notes
from gradshare.tasks.readers.files import is_table, read_text, table_error, table_rows
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
"""The images at or below each file and folder, by each end of its path."""


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


def classes_in_lists(
    found: Sequence[FoundClass], listings: Mapping[str, Listing], notes: Notes
) -> list[FoundClass]:
    """The classes that lists put into splits, with the images that they name.

    The paths in a list may be those of another machine: an image is found by the end of its path,
    at least its own name and that of its folder. Images that are in no list are noted.

    Args:
        found: all images. One that is listed without a label stays in its class if it is from a
            table, and else is of the class of its folder.
        listings: of each split.
        notes: of the images.

    Raises:
        DataError: an image is missing or listed twice, or several have its name.
    """
    place_of = {image: (item, row) for item in found for row, image in enumerate(item.images)}
    images_at: Places = {}
    for image in place_of:
        relative = PurePosixPath(notes.name(image))
        for place in (relative, *relative.parents[:-1]):
            for start in range(len(place.parts)):
                images_at.setdefault(place.parts[start:], []).append(image)
    listed: dict[Path, tuple[str, str]] = {}  # the split and the label of each image
    for split, listing in listings.items():
        images_of = {name: _images_of(name, images_at) for name in sorted(listing)}
        missing = [name for name, images in images_of.items() if not images]
        if missing:
            raise DataError(
                f"{notes.path} lacks {len(missing)} of the {len(listing)} images or classes that "
                f"are listed for {split!r}, such as {missing[0]!r}; add them, or remove them from "
                "the list"
            )
        for name, images in images_of.items():
            if is_image(name) and len(images) > 1:
                raise DataError(f"{name!r} may be {images[0]} or {images[1]}; remove one of them")
            for image in images:
                if image in listed:
                    raise DataError(
                        f"{image} is listed for {listed[image][0]!r} and {split!r}; list it once"
                    )
                listed[image] = split, listing[name] or ("" if is_image(name) else name)
    classes: dict[tuple[str, str, Path | None], tuple[list[Path], list[str]]] = {}
    for image, (split, label) in listed.items():
        item, row = place_of[image]
        folder = None if label or is_table(notes.path) else image.parent
        name = folder.name if folder else label or item.name
        of_class, groups = classes.setdefault((split, name, folder), ([], []))
        of_class.append(image)
        groups += item.groups[row : row + 1] if item.groups else []
    for image in sorted(place_of.keys() - listed.keys()):
        notes.skip("in no list", image)
    return [
        FoundClass(split, name, of_class, groups or None)
        for (split, name, _), (of_class, groups) in classes.items()
    ]


def _images_of(name: str, images_at: Places) -> list[Path]:
    """The images whose paths share the longest end with a name, of two parts or more."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    ends = (parts[start:] for start in range(max(1, len(parts) - 1)))
    return next((images_at[end] for end in ends if end in images_at), [])
