"""Images of your own: a folder of class folders, an archive of one, or a table.

A class folder's images may be at any depth below it. A table is a CSV file with the columns path
and label, and perhaps split and group. The splits of the classes come from

- folders `train/`, `val/` (or `valid/`, `validation/`) and `test/`, each with its class folders;
- a list for each split beside the class folders (see `lists`);
- the table's column split;
- a file that names the classes of each split: `splits.json` beside the class folders, or another
  one (see `class_splits`);
- or a seed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gradshare.errors import ConfigError, DataError, some
from gradshare.tasks.images import EXTENSIONS, open_image
from gradshare.tasks.readers.archives import listing, unpacked
from gradshare.tasks.readers.class_splits import split_by_chance, split_by_file
from gradshare.tasks.readers.dataset import FoundClass, Notes
from gradshare.tasks.readers.files import is_table, table_error, table_rows
from gradshare.tasks.readers.lists import SPLIT_OF, classes_in_lists, list_files, read_list

SPLITS_FILE = "splits.json"

SPLIT_OF_FOLDER = {
    name: split
    for name, split in SPLIT_OF.items()
    if name not in ("base", "novel")  # which may well be classes
}

GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I")

ClassSplit = Sequence[float] | Path | str
"""The shares of the classes for train, val and test, or the path of a file that names them."""


def find_classes(
    notes: Notes,
    *,
    seed: int | None = None,
    split: ClassSplit | None = None,
    group: str | None = None,
) -> list[FoundClass]:
    """Find the user's own classes, their splits and their groups, without decoding an image.

    Args:
        notes: what to read; how the splits were made and what was left out is noted there.
        seed: draws the splits if nothing else gives them; None for 0.
        split: see `ClassSplit`; None for `SHARES`.
        group: see `groups_in`.

    Raises:
        DataError: the images or their splits cannot be used, or an option would change nothing.
        ConfigError: shares that do not add up to 1, or an invalid regular expression.
    """
    found, given = _in_table(notes.path) if is_table(notes.path) else _in_folders(notes)
    if given is None and isinstance(split, str | Path):
        given, split = Path(split).expanduser(), None
    if given is None:
        shares = None if isinstance(split, str | Path) else split
        found = split_by_chance(found, notes, seed or 0, shares)
    else:
        notes.splits = notes.name(given) if isinstance(given, Path) else given
        for option, value in (("--seed", seed), ("--split", split)):
            if value is not None:
                raise DataError(
                    f"the splits of {notes.path} come from {notes.splits}, so {option} would "
                    "change nothing; leave it out"
                )
        if isinstance(given, Path):
            found = split_by_file(found, given, notes)
    return found if group is None else [_grouped(item, group, notes) for item in found]


def is_grey(found: Sequence[FoundClass]) -> bool:
    """Whether no readable image of some classes has colour, by the images' headers."""
    return all(_mode(path) in (None, *GREY_MODES) for item in found for path in item.images)


def class_folders(folder: Path, notes: Notes) -> list[Path]:
    """The folders in a folder of class folders, by name. What else is in it is noted."""
    folders = []
    splits = {folder / SPLITS_FILE, *list_files(folder).values()}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not _is_hidden(entry):
            folders.append(entry)
        elif entry.is_symlink() and not entry.exists():
            notes.unread(notes.name(entry), f"{entry} is a dead link; replace or remove it")
        elif entry not in splits and _is_image(entry, notes):
            notes.skip("beside the class folders", entry)
    return folders


def classes_in(folder: Path, split: str, notes: Notes) -> list[FoundClass]:
    """The classes of the folders in a folder."""
    return [class_in(inner, split, notes) for inner in class_folders(folder, notes)]


def class_in(folder: Path, split: str, notes: Notes) -> FoundClass:
    """The class whose images are below a folder. Raise DataError if there are none."""
    images = _images_below(folder, notes)
    if not images:
        raise DataError(
            f"class folder {folder} has no images (it holds {listing(folder, 3)}); put images "
            f"({', '.join(EXTENSIONS)}) into it, or remove it"
        )
    return FoundClass(split, folder.name, images)


def _in_folders(notes: Notes) -> tuple[list[FoundClass], Path | str | None]:
    """The classes of a folder or an archive, and what gives their splits."""
    root = unpacked(notes.path, notes.scratch, everything=True)
    while True:
        folders = class_folders(root, notes)
        file, lists = root / SPLITS_FILE, list_files(root)
        has_file = os.path.lexists(file)
        if has_file or lists or len(folders) != 1 or not _is_wrapper(folders[0]):
            break
        (root,) = folders
    split_of = {folder: SPLIT_OF_FOLDER.get(folder.name) for folder in folders}
    if any(split_of.values()) and not has_file:
        found = []
        for folder, split in split_of.items():
            if split is None:
                raise DataError(
                    f"{folder} is beside split folders and is not one; use train/, val/ and test/, "
                    f"or name the split of every class in {file}"
                )
            found += classes_in(folder, split, notes)
        return found, "split folders"
    if lists and not has_file:
        return _in_lists(lists, folders, notes), ", ".join(f.name for f in lists.values())
    return [class_in(folder, "", notes) for folder in folders], file if has_file else None


def _in_lists(lists: Mapping[str, Path], folders: list[Path], notes: Notes) -> list[FoundClass]:
    """The classes that lists name."""
    found = [FoundClass("", folder.name, _images_below(folder, notes)) for folder in folders]
    return classes_in_lists(found, {split: read_list(f) for split, f in lists.items()}, notes)


def _is_wrapper(folder: Path) -> bool:
    """Whether a folder with no other beside it holds the class folders, as in many archives."""
    return folder.name not in SPLIT_OF_FOLDER and any(
        entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()
    )


def _images_below(folder: Path, notes: Notes) -> list[Path]:
    """The images of a class folder and of the folders in it, by name."""
    images = []
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or _is_hidden(entry):
            images += [entry] if _is_image(entry, notes) else []
        elif entry.is_symlink():  # which may lead back here
            notes.skip("a link to a folder", entry)
        else:
            images += _images_below(entry, notes)
    return images


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name == "__MACOSX"


def _is_image(entry: Path, notes: Notes) -> bool:
    """Whether an entry has an image's suffix, even if it is damaged, or an image's content. The
    others are noted.
    """
    if _is_hidden(entry):
        notes.skip("hidden", entry)
        return False
    if entry.suffix.lower() in EXTENSIONS or not entry.is_file() or _mode(entry) is not None:
        return True
    notes.skip("not an image", entry)
    return False


def _mode(path: Path) -> str | None:
    """Pillow's mode of an image, by its header; None if it cannot be read."""
    try:
        with open_image(path, str(path)) as image:
            return image.mode
    except DataError:
        return None


def _in_table(path: Path) -> tuple[list[FoundClass], Path | str | None]:
    """The classes of a table, and what gives their splits."""
    files, groups = dict[tuple[str, str], list[Path]](), dict[tuple[str, str], list[str]]()
    listed = set[Path]()
    for line, row in table_rows(path, ("path", "label")):
        file, label, group = path.parent / (row["path"] or ""), row["label"], row.get("group", "")
        split = SPLIT_OF_FOLDER.get(row["split"]) if "split" in row else ""
        cause = None
        if None in row or None in row.values() or not row["path"] or not label:
            cause = "it does not have one path and one label"
        elif file in listed:
            cause = f"{row['path']!r} is listed twice"
        elif split is None:
            cause = f"the split is {row['split']!r}; it must be train, val or test"
        elif "group" in row and not group:
            cause = "it has no group"
        if cause or split is None:
            raise table_error(path, line, cause)
        listed.add(file)
        files.setdefault((split, label), []).append(file)
        groups.setdefault((split, label), []).append(group)
    found = [
        FoundClass(*key, images, groups[key] if all(groups[key]) else None)
        for key, images in files.items()
    ]
    return found, "column split" if any(item.split for item in found) else None


def _grouped(item: FoundClass, group: str, notes: Notes) -> FoundClass:
    """A class with the groups that an expression finds in the paths of its images."""
    if item.groups is not None:
        raise DataError(
            f"the groups of {notes.path} come from its column group, so --group would change "
            "nothing; leave it out"
        )
    return replace(item, groups=groups_in(map(notes.name, item.images), group, notes.path))


def groups_in(names: Iterable[str], group: str, where: Path) -> list[str]:
    """The group of each image.

    Args:
        names: the paths of the images below the folder `where`.
        group: a regular expression that is searched in each of them. Its parenthesised parts, or
            the whole match if it has none, are the group.

    Raises:
        ConfigError: `group` is not a regular expression.
        DataError: it is not found in a path.
    """
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ConfigError(f"--group {group!r} is no regular expression ({error})") from error
    found = [(name, pattern.search(name)) for name in names]
    missed = [name for name, match in found if match is None]
    if missed:
        raise DataError(
            f"--group {group!r} is not found in {some(missed, 3)}; it is searched in the path of "
            f"each image below {where}"
        )
    return ["/".join(match.groups("")) or match[0] for _, match in found if match]
