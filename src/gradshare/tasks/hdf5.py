"""Reading torchmeta's caches: one HDF5 file and one list of class names for each split.

torchmeta (github.com/tristandeleu/pytorch-meta) keeps a split in `{split}_data.hdf5`, a group
`datasets` with one dataset a class, and `{split}_labels.json`, the classes' names. HDF5 can do much
more than hold arrays: link to other files, map other files' bytes, load compression plug-ins.
Nothing of that is followed; what a dataset claims to be is checked before any of it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from gradshare.errors import DataError
from gradshare.tasks.archives import MAX_MEMBER_BYTES
from gradshare.tasks.hdf5_heap import heap_items
from gradshare.tasks.images import ImageFormat, check_size, read_image, to_array
from gradshare.tasks.store import ClassImages, Images
from gradshare.tasks.web_page import is_web_page, web_page_error

MAX_IMAGES = 100_000  # of one class
MAX_CLASS_BYTES = 8 << 30
MAX_LABELS_BYTES = 1 << 20
MAX_COMPRESSION = 1100  # deflate, the strongest filter accepted, cannot compress any further

# Filters that come with every h5py: deflate, shuffle, fletcher32, lzf. Any other would be looked
# for as a plug-in, which is a library to load.
_FILTERS = frozenset((1, 2, 3, 32000))


_REMEDY = "; let torchmeta write it again, or prepare the dataset from its original archive"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def cache_files(folder: Path, split: str) -> tuple[Path, Path]:
    """The two files of a split, whether they exist or not."""
    return folder / f"{split}_data.hdf5", folder / f"{split}_labels.json"


def class_names(folder: Path, split: str) -> list[str]:
    """The names of a split's classes, from `{split}_labels.json`.

    Raises:
        DataError: not a JSON list of distinct names.
    """
    path = cache_files(folder, split)[1]
    cause: object = "not a list of distinct names"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_LABELS_BYTES + 1)
        if is_web_page(text):
            raise web_page_error(path, "a list of class names")
        names = json.loads(text) if len(text) <= MAX_LABELS_BYTES else None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); mend or replace it") from error
    except (ValueError, RecursionError) as error:
        names, cause = None, error
    if (
        isinstance(names, list)
        and names
        and all(isinstance(name, str) and name and "/" not in name for name in names)
        and len(set(names)) == len(names)
    ):
        return names
    raise DataError(f"{path} is not torchmeta's JSON list of class names ({cause}){_REMEDY}")


def read_classes(folder: Path, split: str, form: ImageFormat) -> Iterator[ClassImages]:
    """Read the classes of a split, in the order of their list.

    A class is a dataset of uint8 (images, height, width, 3) pixels, or of the bytes of image
    files (uint8 of variable length).

    Args:
        folder: where the two files are.
        split: "train", "val" or "test".
        form: what every image is turned into.

    Raises:
        DataError: not an HDF5 file, a damaged one, other classes than those listed, or a dataset
            that is anything but images held in the file itself.
    """
    path, labels = cache_files(folder, split)
    names = class_names(folder, split)
    try:
        with path.open("rb") as raw:
            head = raw.read(512)
            if is_web_page(head):
                raise web_page_error(path, "an HDF5 file")
            if not head.startswith(_SIGNATURE):
                raise DataError(
                    f"{path} is not an HDF5 file (it begins with {head[:8]!r}){_REMEDY}"
                )
        # Reading needs no lock, and file systems without locks are common.
        with h5py.File(path, "r", locking=False) as file:
            group = _held(file, "datasets", h5py.Group, path)
            if set(group) != set(names):
                odd = sorted(set(group) ^ set(names))
                raise DataError(
                    f"{path} and {labels.name} name different classes ({odd[0]!r} is in one of "
                    f"them only){_REMEDY}"
                )
            for name in names:
                dataset = _held(group, name, h5py.Dataset, path)
                where = f"class {name!r} in {path}"
                if _check(dataset, where):
                    images = _decode_files(dataset, path, where, form)
                else:
                    check_size(dataset.shape[2:0:-1], where, form)
                    images = [
                        to_array(Image.fromarray(dataset[row]), form) for row in range(len(dataset))
                    ]
                yield ClassImages(split, name, np.stack(images))
    except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} is damaged ({error}){_REMEDY}") from error


def _held(group: Any, name: str, kind: type, path: Path) -> Any:
    """A member of a group, which must be a part of the group and no link to somewhere else."""
    link = group.get(name, getlink=True)
    if link is None:
        raise DataError(f"{path} has no {name!r}{_REMEDY}")
    if type(link) is not h5py.HardLink:
        raise DataError(f"{path} has a link to somewhere else for {name!r}{_REMEDY}")
    member = group[name]
    if not isinstance(member, kind):
        raise DataError(f"{path} has a {type(member).__name__} for {name!r}{_REMEDY}")
    return member


def _check(dataset: Any, where: str) -> bool:
    """Refuse what is not a class's images, before anything of it is read.

    Returns:
        Whether the images are files; pixels otherwise.
    """
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{where} keeps its images in other files{_REMEDY}")
    settings = dataset.id.get_create_plist()
    filters = {settings.get_filter(index)[0] for index in range(settings.get_nfilters())}
    if not filters <= _FILTERS:
        raise DataError(f"{where} needs the HDF5 plug-in {max(filters - _FILTERS)}{_REMEDY}")
    shape, dtype = dataset.shape, dataset.dtype
    of_files = h5py.check_vlen_dtype(dtype) == np.uint8 and len(shape) == 1
    of_pixels = dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3
    if not (of_files or of_pixels) or not 0 < shape[0] <= MAX_IMAGES:
        raise DataError(
            f"{where} holds {dtype} of shape {shape}, not image files or uint8 pixels "
            f"(images, height, width, 3){_REMEDY}"
        )
    size = math.prod(shape) * dtype.itemsize
    chunk = math.prod(dataset.chunks or ()) * dtype.itemsize
    stored = dataset.id.get_storage_size()
    if size > MAX_CLASS_BYTES or chunk > MAX_MEMBER_BYTES or size > MAX_COMPRESSION * stored:
        raise DataError(
            f"{where} claims {size:,} bytes in chunks of {chunk:,}, stored in {stored:,}{_REMEDY}"
        )

    if of_files and (dataset.id.get_offset() is None or not _has_usual_sizes(dataset.file)):
        raise DataError(f"{where} is not laid out as torchmeta does{_REMEDY}")
    return bool(of_files)


def _has_usual_sizes(file: Any) -> bool:
    """Whether addresses and lengths have 8 bytes and count from the file's beginning."""
    return bool(file.id.get_create_plist().get_sizes() == (8, 8) and file.userblock_size == 0)


def _decode_files(dataset: Any, path: Path, where: str, form: ImageFormat) -> list[Images]:
    with path.open("rb") as file:
        files = heap_items(file, dataset.id.get_offset(), len(dataset), MAX_MEMBER_BYTES)
        return [read_image(data, f"image {row} of {where}", form) for row, data in enumerate(files)]
