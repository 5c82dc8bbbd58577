"""mini-ImageNet: 100 classes of ImageNet, 600 photographs of each, usually at 84×84 pixels.

Source: Vinyals et al., "Matching Networks for One Shot Learning" (2016). Split: that of Ravi and
Larochelle, "Optimization as a Model for Few-Shot Learning" (2017), 64 classes to train, 16 to
validate, 20 to test; every layout below comes with it. ImageNet's terms allow non-commercial
research only.

Layouts read, all of them folders:

- `csv`: `train.csv`, `val.csv` and `test.csv` with the columns `filename,label`, and the images
  in a folder `images`, an archive `images.tar`, or one archive a split, `images-train.tar` (any
  kind of tar or zip);
- `pickle`: `mini-imagenet-cache-{train,val,test}.pkl`, each a pickled dictionary of `image_data`,
  uint8 (N, H, W, 3), and `class_dict`, the rows of each class; learn2learn calls the second one
  `mini-imagenet-cache-validation.pkl`;
- `hdf5`: torchmeta's `{train,val,test}_data.hdf5` and `{train,val,test}_labels.json`, in the
  folder or in its folder `miniimagenet`;
- `folders`: `train`, `val` (or `validation`) and `test`, each with one folder of images a class,
  as the MAML++ code has it.

A copy may have fewer than 600 images a class: the store's index records how many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradshare.errors import DataError
from gradshare.tasks import hdf5
from gradshare.tasks.archives import find_archive, listing, unpacked
from gradshare.tasks.dataset import Archive, Dataset, FoundClass
from gradshare.tasks.folder import image_files, splits_from_folders
from gradshare.tasks.pickles import load_pickle
from gradshare.tasks.store import SPLITS
from gradshare.tasks.tables import table_error, table_rows

CLASSES = {"train": 64, "val": 16, "test": 20}

_ACCEPTED = """\
the layouts that can be read are
  csv: {train,val,test}.csv and the images in images/, images.tar or images-{train,val,test}.tar
  pickle: mini-imagenet-cache-{train,val,test}.pkl
  hdf5: {train,val,test}_data.hdf5 and {train,val,test}_labels.json, also in miniimagenet/
  folders: train/, val/ and test/ with one folder of images a class"""


_Files = Mapping[str, Path | None]
"""What a layout needs: the files by what an error calls them. They may not exist."""


def find(path: Path, scratch: Path) -> list[FoundClass]:
    """Find the 100 classes.

    Args:
        path: a folder in one of the layouts described above.
        scratch: see `Reader`.

    Raises:
        DataError: the folder is in none of the layouts, or something is missing or damaged.
    """
    if not path.is_dir():
        raise DataError(f"{path} is a file, not a folder; unpack it; {_ACCEPTED}")
    cache = path / "miniimagenet" if (path / "miniimagenet").is_dir() else path
    cached = {file.name: file for part in SPLITS for file in hdf5.cache_files(cache, part)}
    layouts: dict[str, tuple[_Files, Callable[[], list[FoundClass]]]] = {
        "csv": (_csv_files(path), lambda: _find_listed(path, scratch)),
        "pickle": (_pickle_files(path), lambda: _find_pickled(path)),
        "hdf5": (cached, lambda: hdf5.find_cached(cache)),
        "folders": (_split_folders(path), lambda: _find_in_folders(path)),
    }
    lacking = ""
    for layout, (files, find_all) in layouts.items():
        missing = [name for name, file in files.items() if file is None or not file.exists()]
        if not missing:
            return find_all()
        if len(missing) < len(files):
            lacking += f"for {layout} it lacks {', '.join(missing)}; "
    raise DataError(
        f"{path} is not a complete copy of mini-ImageNet: found {listing(path)}; {lacking}"
        f"{_ACCEPTED}"
    )


# folders


def _split_folders(path: Path) -> _Files:
    validation = path / "validation"
    val = validation if validation.is_dir() else path / "val"
    return {"train/": path / "train", "val/": val, "test/": path / "test"}


def _find_in_folders(path: Path) -> list[FoundClass]:
    return [
        FoundClass(part, folder.name, image_files(folder))
        for part, folders in splits_from_folders(path).items()
        for folder in folders
    ]


# csv


def _csv_files(path: Path) -> _Files:
    tables = {f"{part}.csv": path / f"{part}.csv" for part in SPLITS}
    together = find_archive(path, "images")
    apart = {f"images-{part}.tar": find_archive(path, f"images-{part}") for part in SPLITS}
    if together or not any(apart.values()):
        return {**tables, "images/ or images.tar": together}
    return {**tables, **apart}


def _find_listed(path: Path, scratch: Path) -> list[FoundClass]:
    """Find the classes that the tables list, and their images by file name."""
    tables = {part: read_table(path / f"{part}.csv") for part in SPLITS}
    together = find_archive(path, "images")
    places = [together] if together else [find_archive(path, f"images-{part}") for part in SPLITS]
    path_of: dict[str, Path] = {}
    for place in places:
        assert place is not None, "`find` saw it"
        for folder, _, files in os.walk(unpacked(place, scratch), followlinks=True):
            for file in files:
                if path_of.setdefault(file, Path(folder, file)) != Path(folder, file):
                    raise DataError(
                        f"{place} holds two images {file!r} in different folders; remove one"
                    )
    found = []
    for part, table in tables.items():
        missing = table.keys() - path_of.keys()
        if missing:
            raise DataError(
                f"{path} lacks {len(missing)} of the {len(table)} images that {part}.csv lists, "
                f"among them {min(missing)!r}; add them, or remove their lines from the table"
            )
        files_of: dict[str, list[Path]] = {}
        for file in sorted(table):
            files_of.setdefault(table[file], []).append(path_of[file])
        found += [FoundClass(part, name, files_of[name]) for name in sorted(files_of)]
    return found


def read_table(path: Path) -> dict[str, str]:
    """The class of each image in a table with the columns filename and label.

    Raises:
        DataError: it is not such a table; the message has the line.
    """
    class_of: dict[str, str] = {}
    for line, row in table_rows(path, ("filename", "label")):
        file, label = row["filename"], row["label"]
        if None in row or not file or not label or "/" in file or "\\" in file:
            raise table_error(path, line, "it does not have one file name and one class")
        if file in class_of:
            raise table_error(path, line, f"{file!r} is listed twice")
        class_of[file] = label
    return class_of


# pickle


def _pickle_files(path: Path) -> dict[str, Path]:
    names = {part: f"mini-imagenet-cache-{part}.pkl" for part in SPLITS}
    files = {name: path / name for name in names.values()}
    validation = path / "mini-imagenet-cache-validation.pkl"
    if validation.exists():
        files[names["val"]] = validation
    return files


def _find_pickled(path: Path) -> list[FoundClass]:
    files = zip(SPLITS, _pickle_files(path).values(), strict=True)
    return [item for part, file in files for item in find_in_pickle(part, file)]


def find_in_pickle(part: str, path: Path) -> list[FoundClass]:
    """Find the classes of a split.

    Raises:
        DataError: the file cannot be read, or is another pickle.
    """
    wrong = f"{path} is a pickle, but not of mini-ImageNet: "
    remedy = "; get it from its publisher again"
    data = load_pickle(path)
    content: dict[Any, Any] = data if isinstance(data, dict) else {}
    images, classes = content.get("image_data"), content.get("class_dict")
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[-1] != 3
        or images.size == 0
    ):
        raise DataError(f"{wrong}'image_data' is not uint8 (N, height, width, 3){remedy}")
    if not isinstance(classes, dict):
        raise DataError(f"{wrong}'class_dict' is not a dictionary{remedy}")
    found = []
    taken = np.zeros(len(images), dtype=np.bool_)
    for name, value in classes.items():
        rows = _rows(value, len(images))
        if not isinstance(name, str) or rows is None:
            raise DataError(
                f"{wrong}class {name!r} is not a list of rows of the {len(images)} images{remedy}"
            )
        if len(np.unique(rows)) != len(rows) or taken[rows].any():
            raise DataError(f"{wrong}class {name!r} has an image that is taken twice{remedy}")
        taken[rows] = True
        found.append(FoundClass(part, name, [images[row] for row in rows]))
    return sorted(found, key=lambda item: item.name)


def _rows(value: Any, count: int) -> np.ndarray[Any, Any] | None:
    """A list of rows of an array as one; None if it is something else."""
    try:
        rows = np.asarray(value)
    except ValueError:  # lists of unequal length
        return None
    is_list = rows.ndim == 1 and rows.dtype.kind in "iu" and len(rows) > 0
    return rows if is_list and rows.min() >= 0 and rows.max() < count else None


MINI_IMAGENET = Dataset(
    name="mini-imagenet",
    summary="100 classes of ImageNet, up to 600 photographs of each",
    channels=3,
    image_size=84,
    rotate_classes=False,
    read=find,
    classes=CLASSES,
    # The record publishes checksums, but no copy of them could be compared with the files
    # themselves, and a wrong one would refuse the right file. A damaged pickle is noticed when
    # it is read.
    archives=tuple(
        Archive(f"https://zenodo.org/record/7978538/files/{name}", name, None)
        for name in (
            "mini-imagenet-cache-train.pkl",
            "mini-imagenet-cache-validation.pkl",
            "mini-imagenet-cache-test.pkl",
        )
    ),
)
