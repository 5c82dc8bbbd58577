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

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gradshare.errors import DataError
from gradshare.tasks import hdf5
from gradshare.tasks.archives import find_archive, is_image, listing, members
from gradshare.tasks.dataset import Archive, Dataset
from gradshare.tasks.images import ImageFormat, check_size, read_image, to_array
from gradshare.tasks.pickles import load_pickle
from gradshare.tasks.spool import ImageSpool
from gradshare.tasks.store import SPLITS, ClassImages, Images
from gradshare.tasks.web_page import is_web_page, web_page_error

MAX_TABLE_BYTES = 16 << 20

CLASSES = {"train": 64, "val": 16, "test": 20}

_ACCEPTED = """\
the layouts that can be read are
  csv: {train,val,test}.csv and the images in images/, images.tar or images-{train,val,test}.tar
  pickle: mini-imagenet-cache-{train,val,test}.pkl
  hdf5: {train,val,test}_data.hdf5 and {train,val,test}_labels.json, also in miniimagenet/
  folders: train/, val/ and test/ with one folder of images a class"""


Found = Mapping[str, Path | None]
"""The files and folders that a layout needs, by what an error calls them; None where missing."""


@dataclass(frozen=True)
class Layout:
    """A form in which mini-ImageNet circulates.

    Attributes:
        name: for errors.
        find: what the layout needs, and what of it there is in a folder.
        read: reads the classes of a folder in which nothing is missing.
    """

    name: str
    find: Callable[[Path], Found]
    read: Callable[[Path, ImageFormat], Iterator[ClassImages]]


def read(path: Path, form: ImageFormat) -> Iterator[ClassImages]:
    """Read all classes.

    Args:
        path: a folder in one of the layouts described above.
        form: what every image is turned into.

    Yields:
        The 100 classes.

    Raises:
        DataError: the folder is in none of the layouts, something is missing or damaged, or the
            splits have not 64, 16 and 20 classes of differing names.
    """
    return detect(path).read(path, form)


def detect(path: Path) -> Layout:
    """Which layout a folder is in.

    Raises:
        DataError: in none, or nearly in one but for something missing; the message lists what is
            missing, what there is, and the layouts.
    """
    if not path.is_dir():
        what = "is a file, not a folder; unpack it" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}; {_ACCEPTED}")
    lacking = []
    for layout in LAYOUTS:
        found = layout.find(path)
        missing = [what for what, place in found.items() if place is None]
        if not missing:
            return layout
        if len(missing) < len(found):
            lacking.append(f"for {layout.name} it lacks {', '.join(missing)}")
    raise DataError(
        f"{path} is not a complete copy of mini-ImageNet: found {listing(path)}; "
        + "".join(f"{text}; " for text in lacking)
        + _ACCEPTED
    )


class _Splits:
    """Which split each class is in, and the check that the splits are Ravi and Larochelle's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.of: dict[str, str] = {}

    def add(self, split: str, names: Iterable[str]) -> None:
        """Note the classes of a split.

        Raises:
            DataError: they are not as many as they should be, or one is in another split too.
        """
        distinct = sorted(set(names))
        for name in distinct:
            if name in self.of:
                raise DataError(
                    f"{self.path} has class {name!r} in both {self.of[name]!r} and {split!r}: test "
                    "classes must not be trained on; get a copy with Ravi and Larochelle's split"
                )
        if len(distinct) != CLASSES[split]:
            raise DataError(
                f"{self.path} has {len(distinct)} classes in {split!r}, Ravi and Larochelle's "
                f"split of mini-ImageNet has {CLASSES[split]}; get a complete copy with that split"
            )
        self.of |= dict.fromkeys(distinct, split)


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


# csv


def _find_csv(path: Path) -> Found:
    tables = {f"{split}.csv": _existing(path / f"{split}.csv") for split in SPLITS}
    together = find_archive(path, "images")
    apart = {f"images-{split}.tar": find_archive(path, f"images-{split}") for split in SPLITS}
    if together or not any(apart.values()):
        return tables | {"images/ or images.tar": together}
    return tables | apart


def _read_csv(path: Path, form: ImageFormat) -> Iterator[ClassImages]:
    splits = _Splits(path)
    tables = {split: _table(path / f"{split}.csv") for split in SPLITS}
    for split, table in tables.items():
        splits.add(split, table.values())
    together = find_archive(path, "images")
    if together:
        everything = {file: name for table in tables.values() for file, name in table.items()}
        yield from _read_listed(together, everything, splits, form)
        return
    for split, table in tables.items():
        place = find_archive(path, f"images-{split}")
        assert place is not None, "detect() found it"
        yield from _read_listed(place, table, splits, form)


def _read_listed(
    place: Path, class_of: Mapping[str, str], splits: _Splits, form: ImageFormat
) -> Iterator[ClassImages]:
    """Read the images of an archive or folder that a table lists, by file name."""
    missing = set(class_of)
    with ImageSpool(form) as spool:
        for member in members(place, lambda name: name.name in class_of):
            if member.name.name not in missing:
                raise DataError(
                    f"{place} holds two images {member.name.name!r} in different folders; "
                    "remove the wrong one"
                )
            missing.remove(member.name.name)
            spool.add(class_of[member.name.name], member)
        if missing:
            raise DataError(
                f"{place} lacks {len(missing)} of the {len(class_of)} images that the tables list, "
                f"among them {min(missing)!r}; add them, or remove their lines from the tables"
            )
        yield from spool.classes(splits.of)


def _table(path: Path) -> dict[str, str]:
    """The class of each file name in a table with the columns filename and label."""

    def wrong(line: int, cause: object) -> DataError:
        return DataError(f"line {line} of {path}: {cause}; correct it, or get the table again")

    try:
        with path.open("rb") as table:
            data = table.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); mend or replace it") from error
    if is_web_page(data[:512]):
        raise web_page_error(path, "a table of file names")
    if len(data) > MAX_TABLE_BYTES:
        raise DataError(
            f"{path} has more than {MAX_TABLE_BYTES:,} bytes, which no table of mini-ImageNet's "
            "images has; get the table again"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(data[: error.start].count(b"\n") + 1, "it is not UTF-8 text") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    class_of: dict[str, str] = {}
    try:
        header = next(rows, [])
        if not {"filename", "label"} <= set(header):
            raise wrong(1, f"the columns are {','.join(header)!r}, not 'filename,label'")
        file_column, label_column = header.index("filename"), header.index("label")
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise wrong(rows.line_num, f"it has {len(row)} columns, not {len(header)}")
            file, label = row[file_column], row[label_column]
            if not label or not file or "/" in file or "\\" in file:
                raise wrong(rows.line_num, f"{file!r},{label!r} is not a file name and a class")
            if file in class_of:
                raise wrong(rows.line_num, f"{file!r} is listed twice")
            class_of[file] = label
    except csv.Error as error:
        raise wrong(rows.line_num, error) from error
    return class_of


# pickle


def _find_pickle(path: Path) -> Found:
    names = {split: f"mini-imagenet-cache-{split}.pkl" for split in SPLITS}
    found = {name: _existing(path / name) for name in names.values()}
    found[names["val"]] = found[names["val"]] or _existing(
        path / "mini-imagenet-cache-validation.pkl"
    )
    return found


def _read_pickle(path: Path, form: ImageFormat) -> Iterator[ClassImages]:
    splits = _Splits(path)
    for split, place in zip(SPLITS, _find_pickle(path).values(), strict=True):
        assert place is not None, "detect() found it"
        images, rows_of = _pickled_split(place)
        splits.add(split, rows_of)
        check_size(images.shape[2:0:-1], f"every image of {place}", form)
        for name, rows in sorted(rows_of.items()):
            decoded = [to_array(Image.fromarray(images[row]), form) for row in rows]
            yield ClassImages(split, name, np.stack(decoded))


def _pickled_split(path: Path) -> tuple[Images, dict[str, npt.NDArray[np.integer[Any]]]]:
    """The pixels (N, H, W, 3) of a pickle, and the rows of each class."""
    wrong = f"{path} is a pickle, but not of mini-ImageNet: "
    remedy = "; get it from its publisher again"
    data = load_pickle(path)
    if not isinstance(data, dict) or not {"image_data", "class_dict"} <= data.keys():
        has = ", ".join(map(repr, data)) if isinstance(data, dict) else type(data).__name__
        raise DataError(f"{wrong}it has {has}, not 'image_data' and 'class_dict'{remedy}")
    images, classes = data["image_data"], data["class_dict"]
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[-1] != 3
        or images.size == 0
    ):
        is_a = (
            f"{images.dtype} {images.shape}"
            if isinstance(images, np.ndarray)
            else type(images).__name__
        )
        raise DataError(f"{wrong}'image_data' is {is_a}, not uint8 (N, height, width, 3){remedy}")
    if not isinstance(classes, dict) or not classes:
        raise DataError(f"{wrong}'class_dict' is {type(classes).__name__}{remedy}")
    rows_of: dict[str, npt.NDArray[np.integer[Any]]] = {}
    taken = np.zeros(len(images), dtype=bool)
    for name, value in classes.items():
        try:
            rows = np.asarray(value)
        except ValueError:  # lists of unequal length
            rows = np.empty(0)
        if (
            not isinstance(name, str)
            or rows.ndim != 1
            or rows.dtype.kind not in "iu"
            or not len(rows)
            or rows.min() < 0
            or rows.max() >= len(images)
        ):
            raise DataError(
                f"{wrong}class {name!r} is not a list of rows of the {len(images)} images{remedy}"
            )
        if len(np.unique(rows)) != len(rows) or taken[rows].any():
            raise DataError(f"{wrong}class {name!r} has an image that is taken twice{remedy}")
        taken[rows] = True
        rows_of[name] = rows
    return images, rows_of


# hdf5


def _cache_folder(path: Path) -> Path:
    return path / "miniimagenet" if (path / "miniimagenet").is_dir() else path


def _find_hdf5(path: Path) -> Found:
    folder = _cache_folder(path)
    files = [file for split in SPLITS for file in hdf5.cache_files(folder, split)]
    return {file.name: _existing(file) for file in files}


def _read_hdf5(path: Path, form: ImageFormat) -> Iterator[ClassImages]:
    folder = _cache_folder(path)
    splits = _Splits(folder)
    for split in SPLITS:
        splits.add(split, hdf5.class_names(folder, split))
    for split in SPLITS:
        yield from hdf5.read_classes(folder, split, form)


# folders


def _find_folders(path: Path) -> Found:
    found = {f"{split}/": path / split for split in SPLITS}
    if not found["val/"].is_dir():
        found["val/"] = path / "validation"
    return {name: folder if folder.is_dir() else None for name, folder in found.items()}


def _read_folders(path: Path, form: ImageFormat) -> Iterator[ClassImages]:
    splits = _Splits(path)
    folders: dict[str, list[Path]] = {}
    for split, place in zip(SPLITS, _find_folders(path).values(), strict=True):
        assert place is not None, "detect() found it"
        folders[split] = sorted(
            entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        splits.add(split, [folder.name for folder in folders[split]])
    for split, places in folders.items():
        for folder in places:
            images = [
                read_image(member.data, member.where, form) for member in members(folder, is_image)
            ]
            if not images:
                raise DataError(f"{folder} has no images; add some, or get a complete copy")
            yield ClassImages(split, folder.name, np.stack(images))


LAYOUTS = (
    Layout("csv", _find_csv, _read_csv),
    Layout("pickle", _find_pickle, _read_pickle),
    Layout("hdf5", _find_hdf5, _read_hdf5),
    Layout("folders", _find_folders, _read_folders),
)

MINI_IMAGENET = Dataset(
    name="mini-imagenet",
    summary="100 classes of ImageNet, up to 600 photographs of each",
    channels=3,
    image_size=84,
    rotate_classes=False,
    read=read,
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
