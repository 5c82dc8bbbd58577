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

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gradshare.errors import ConfigError, DataError, some
from gradshare.tasks.decoding import Notes
from gradshare.tasks.images import EXTENSIONS, open_image
from gradshare.tasks.readers.archives import listing, unpacked
from gradshare.tasks.readers.class_splits import SHARES, split_by_chance, split_by_file
from gradshare.tasks.readers.dataset import FoundClass
from gradshare.tasks.readers.files import table_error, table_rows
from gradshare.tasks.readers.lists import (
    SPLIT_OF,
    classes_in_lists,
    list_files,
    places_of,
    read_list,
)
from gradshare.tasks.store import SPLITS

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
    is_table = notes.path.is_file() and notes.path.suffix.lower() == ".csv"
    found, given = _in_table(notes.path) if is_table else _in_folders(notes)
    if given is None and isinstance(split, str | Path):
        given, split = Path(split).expanduser(), None
    if given is None:
        shares = SHARES if split is None or isinstance(split, str | Path) else split
        notes.seed = seed or 0
        notes.splits = f"drawn with seed {notes.seed}"
        if split is not None:
            notes.splits += f" and shares {some(shares)}"
        found = split_by_chance(found, notes.path, notes.seed, shares)
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


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, but for hidden ones. Raise DataError if a link is dead."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_symlink() and not entry.exists():
            raise DataError(f"{entry} is a dead link; replace or remove it")
    return [entry for entry in entries if entry.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """The images that a class folder holds directly, by name. Raise DataError if there are none."""
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


def in_folder(split: str, folder: Path) -> list[FoundClass]:
    """The classes of a split that has a folder of images for each class; see `image_files`."""
    return [FoundClass(split, inner.name, image_files(inner)) for inner in class_folders(folder)]


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, in a folder of them. Raise DataError if a split is missing, empty
    or there twice, or another folder is beside them.
    """
    folder_of: dict[str, Path] = {}
    for folder in class_folders(root):
        split = SPLIT_OF_FOLDER.get(folder.name)
        if split is None:
            raise DataError(
                f"{folder} is beside split folders and is not one; use train/, val/ and test/, or "
                f"name the split of every class in {root / SPLITS_FILE}"
            )
        first = folder_of.setdefault(split, folder)
        if first != folder:
            raise DataError(f"{first} and {folder} are both the split {split!r}; keep one of them")
    for split in SPLITS:
        if split not in folder_of:
            raise DataError(
                f"{root} has split folders but none for {split!r}; add {root / split}, or move "
                "all class folders into one folder to have the splits drawn"
            )
        if not class_folders(folder_of[split]):
            raise DataError(
                f"{folder_of[split]} has no class folders; every split needs at least one"
            )
    return {split: folder_of[split] for split in SPLITS}


def _in_folders(notes: Notes) -> tuple[list[FoundClass], Path | str | None]:
    """The classes of a folder or an archive, and what gives their splits."""
    root = unpacked(notes.path, notes.scratch, everything=True)
    while True:
        folders = _folders_in(root, notes)
        file, lists = root / SPLITS_FILE, list_files(root)
        has_file = file.exists() or file.is_symlink()
        if has_file or lists or len(folders) != 1 or not _is_wrapper(folders[0]):
            break
        (root,) = folders
    if not has_file and any(folder.name in SPLIT_OF_FOLDER for folder in folders):
        return [
            _class_in(folder, split, notes)
            for split, of_split in _split_folders(root).items()
            for folder in _folders_in(of_split, notes)
        ], "split folders"
    if not has_file and lists:
        return _in_lists(lists, folders, notes), ", ".join(f.name for f in lists.values())
    return [_class_in(folder, "", notes) for folder in folders], file if has_file else None


def _in_lists(lists: Mapping[str, Path], folders: list[Path], notes: Notes) -> list[FoundClass]:
    """The classes that lists name. Images that they do not name are noted."""
    images = [image for folder in folders for image in _images_below(folder, notes)]
    listings = {split: read_list(path) for split, path in lists.items()}
    found = classes_in_lists(listings, places_of(images, notes.name), notes.path)
    for image in sorted({*images}.difference(*(item.images for item in found))):
        notes.skip("in no list", image)
    return found


def _is_wrapper(folder: Path) -> bool:
    """Whether a folder with no other beside it holds the class folders, as in many archives."""
    return folder.name not in SPLIT_OF_FOLDER and any(
        entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()
    )


def _folders_in(folder: Path, notes: Notes) -> list[Path]:
    """The folders in a folder of folders, by name. What else is in it is noted."""
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


def _class_in(folder: Path, split: str, notes: Notes) -> FoundClass:
    images = _images_below(folder, notes)
    if not images:
        raise DataError(
            f"class folder {folder} has no images (it holds {listing(folder, 3)}); put images "
            f"({', '.join(EXTENSIONS)}) into it, or remove it"
        )
    return FoundClass(split, folder.name, images)


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
    files, groups = dict[str, list[Path]](), dict[str, list[str]]()
    split_of, listed = dict[str, str](), set[Path]()
    for line, row in table_rows(path, ("path", "label")):
        file, label, group = path.parent / (row["path"] or ""), row["label"], row.get("group", "")
        split = SPLIT_OF_FOLDER.get(row["split"], "") if "split" in row else "none"
        cause = None
        if None in row or None in row.values() or not row["path"] or not label:
            cause = "it does not have one path and one label"
        elif file in listed:
            cause = f"{row['path']!r} is listed twice"
        elif not split:
            cause = f"the split is {row['split']!r}; it must be train, val or test"
        elif split_of.setdefault(label, split) != split:
            cause = f"class {label!r} is in {split!r}, and in {split_of[label]!r} before"
        elif "group" in row and not group:
            cause = "it has no group"
        if cause:
            raise table_error(path, line, cause)
        listed.add(file)
        files.setdefault(label, []).append(file)
        groups.setdefault(label, []).append(group)
    if not files:
        raise DataError(f"{path} lists no images; add a line for each")
    has_groups = any(any(of_class) for of_class in groups.values())
    found = [
        FoundClass(split_of[label], label, files[label], groups[label] if has_groups else None)
        for label in files
    ]
    if "none" in split_of.values():
        return found, None
    for split in SPLITS:
        if split not in split_of.values():
            raise DataError(f"{path} has no classes in split {split!r}; every split needs some")
    return found, "column split"


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
