"""Reading torchmeta's caches: an HDF5 file and a list of class names for each split.

torchmeta (github.com/tristandeleu/pytorch-meta) keeps a split in `{split}_data.hdf5`, a group
`datasets` with one dataset a class, and `{split}_labels.json`, the classes' names. A class is
uint8 (images, height, width, 3), or the bytes of image files, uint8 of variable length.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradshare.errors import DataError
from gradshare.tasks.dataset import FoundClass
from gradshare.tasks.files import read_text, refuse_web_page

_REMEDY = "; let torchmeta write it again, or prepare the dataset from its original archive"


def read_split(split: str, path: Path, labels: Path) -> Iterator[FoundClass]:
    """Find the classes of a split in an HDF5 file and a list of class names. Images are read when
    they are used.

    Raises:
        DataError: h5py is not installed; a file is damaged or something else; the list names
            other classes than the HDF5 file has; or a class is not images.
    """
    try:
        import h5py  # noqa: PLC0415 (an optional dependency)
    except ImportError as error:
        raise DataError(f"reading {path} needs h5py; run `pip install h5py`") from error
    names = _class_names(labels)
    try:
        refuse_web_page(path, "an HDF5 file")
        # Reading needs no lock, and file systems without locks are common.
        group = h5py.File(path, "r", locking=False)["datasets"]
        if odd := set(group) ^ set(names):
            raise DataError(
                f"{path} and {labels.name} name different classes ({min(odd)!r} is in one of "
                f"them only){_REMEDY}"
            )
        for name in names:
            images = group[name]
            where = f"class {name!r} in {path}"
            # A link, or a dataset over other files, could read any file of this machine.
            if images.file.filename != str(path) or images.is_virtual or images.external:
                raise DataError(f"{where} keeps its images in other files{_REMEDY}")
            yield FoundClass(split, name, _checked(images, where))
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{path} is not torchmeta's, or damaged ({error}){_REMEDY}") from error


def _checked(images: Any, where: str) -> Any:
    """The dataset of a class, if it holds images."""
    shape, dtype = images.shape, images.dtype
    of_files = (dtype.metadata or {}).get("vlen") == np.uint8 and len(shape) == 1
    of_pixels = dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3
    if not (of_files or of_pixels) or len(images) == 0:
        raise DataError(
            f"{where} holds {dtype} of shape {shape}, not image files or uint8 pixels "
            f"(images, height, width, 3){_REMEDY}"
        )
    return images


def _class_names(path: Path) -> list[str]:
    with contextlib.suppress(ValueError, RecursionError):
        names = json.loads(read_text(path, "a list of class names"))
        are_names = isinstance(names, list) and all(
            isinstance(name, str) and name and "/" not in name for name in names
        )
        if are_names and names and len(set(names)) == len(names):
            return list(names)
    raise DataError(f"{path} is not a JSON list of distinct class names{_REMEDY}")
