"""Reading images with their labels from pickles, .npz files, parquet and HDF5.

If a file has no names of classes, they are named by split and label, such as `train 007`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradshare.errors import DataError
from gradshare.tasks.readers.class_splits import published_split
from gradshare.tasks.readers.dataset import FoundClass
from gradshare.tasks.readers.files import read_json, refuse_web_page
from gradshare.tasks.readers.lists import SPLIT_OF
from gradshare.tasks.readers.pickles import load_pickle

Array = npt.NDArray[Any]

# By the code that writes them: Ren et al. (mini-ImageNet); MetaOptNet; TADAM; Ren et al. (tiered).
IMAGES = ("image_data", "data", "features", "images")
LABELS = ("labels", "targets", "label_specific")

_REMEDY = "; let torchmeta write it again, or prepare the dataset from its original archive"


def read_arrays(split: str, path: Path, labels: Path | None = None) -> list[FoundClass]:
    """Find the classes of a split in a pickle or an .npz file.

    Images are under one of `IMAGES`, or the file is a list of the bytes of image files. Labels are
    under one of `LABELS`, or `class_dict` has the rows of each class; they may be in another file.

    Raises:
        DataError: a file cannot be read, would execute something, or holds something else.
    """
    content = _content(path)
    described = content if labels is None else _content(labels)
    images = content if isinstance(content, list) else _first(content, IMAGES)
    if isinstance(images, list) and all(isinstance(file, np.ndarray) for file in images):
        images = [file.astype(np.uint8, copy=False).ravel() for file in images]
    elif (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.shape[3:] != (3,)
        or images.size == 0
    ):
        raise _wrong(path, "its images are not uint8 (N, height, width, 3)")
    elif path.name.endswith("_images.npz"):  # written by OpenCV, which has blue first
        images = images[..., ::-1]
    if not isinstance(described, dict):
        raise _wrong(labels or path, "it is not a dictionary")
    rows_of = described.get("class_dict")
    rows_by_name: Iterable[tuple[Any, Any]]
    if isinstance(rows_of, dict):
        rows_by_name = rows_of.items()
    else:
        rows_by_name = _rows_by_label(split, described, images, path)
    found, taken = [], np.zeros(len(images), dtype=np.bool_)
    for name, value in rows_by_name:
        rows = _integers(value)
        if rows is None or rows.min() < 0 or rows.max() >= len(images):
            raise _wrong(path, f"class {name!r} is not a list of rows of the {len(images)} images")
        if len(np.unique(rows)) != len(rows) or taken[rows].any():
            raise _wrong(path, f"class {name!r} has an image that is taken twice")
        taken[rows] = True
        found.append(FoundClass(split, str(name), [images[row] for row in rows.tolist()]))
    return found


def _rows_by_label(
    split: str, described: dict[Any, Any], images: Any, path: Path
) -> Iterator[tuple[str, Array]]:
    codes = _integers(_first(described, LABELS))
    if codes is None or len(codes) != len(images):
        raise _wrong(path, f"there is not one label for each of the {len(images)} images")
    label_of, listed = described.get("catname2label"), described.get("label_specific_str")
    names: dict[str, str] = {}
    if isinstance(label_of, dict):
        names = {str(label): str(name) for name, label in label_of.items()}
    elif isinstance(listed, list):
        names = {str(label): str(name) for label, name in enumerate(listed)}
    for code in np.unique(codes).tolist():
        yield names.get(str(code), f"{split} {code:03}"), np.flatnonzero(codes == code)


def read_parquet(folder: Path, dataset: str) -> list[FoundClass]:
    """Find the classes in the parquet files of a data set on Hugging Face.

    A class of the published split is in that split, and another one in the split that the file's
    name says: in some of these data sets, each file has images of all classes.

    Raises:
        DataError: pyarrow is not installed, or a file cannot be read or holds something else.
    """
    try:
        import pyarrow.parquet as pq  # noqa: PLC0415 (an optional dependency)
    except ImportError as error:
        raise DataError(f"reading {folder} needs pyarrow; run `pip install pyarrow`") from error
    published = published_split(dataset)
    images: dict[tuple[str, str], list[Array]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        own = SPLIT_OF.get(path.name.split("-")[0], SPLIT_OF.get(path.parent.name))
        try:
            table = pq.read_table(path, columns=["image", "label"])
            metadata = json.loads(table.schema.metadata[b"huggingface"])
            names = metadata["info"]["features"]["label"].get("names", [])
            columns = (table[name].to_pylist() for name in ("image", "label"))
            for image, label in zip(*columns, strict=True):
                name = names[label] if names else f"{own} {label:03}"
                of_class = images.setdefault((published.get(name, own or ""), name), [])
                of_class.append(np.frombuffer(image["bytes"], np.uint8))
        except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
            raise _wrong(path, f"there are no images with labels in it ({error})") from error
    return [FoundClass(split, name, of_class) for (split, name), of_class in images.items()]


def read_hdf5(split: str, path: Path, labels: Path) -> Iterator[FoundClass]:
    """Find the classes of a split in a cache of torchmeta (github.com/tristandeleu/pytorch-meta).
    Images are read when they are used.

    The HDF5 file has a group `datasets` with one dataset a class: uint8 (images, height, width, 3),
    or the bytes of image files, uint8 of variable length. `labels` is a JSON list of the classes.

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
            shape, dtype = images.shape, images.dtype
            of_files = (dtype.metadata or {}).get("vlen") == np.uint8 and len(shape) == 1
            of_pixels = dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3
            if not (of_files or of_pixels) or len(images) == 0:
                raise DataError(
                    f"{where} holds {dtype} of shape {shape}, not image files or uint8 pixels "
                    f"(images, height, width, 3){_REMEDY}"
                )
            yield FoundClass(split, name, images)
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{path} is not torchmeta's, or damaged ({error}){_REMEDY}") from error


def _content(path: Path) -> Any:
    """What a pickle or an .npz file holds."""
    if path.suffix.lower() != ".npz":
        return load_pickle(path)
    refuse_web_page(path, "an .npz file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # damaged archives raise nearly anything
        raise _wrong(path, f"it is no complete .npz file ({error})") from error


def _first(content: Any, keys: Sequence[str]) -> Any:
    """The value of the first of some keys that a dictionary has; None if it has none of them."""
    known = [key for key in keys if isinstance(content, dict) and key in content]
    return content[known[0]] if known else None


def _integers(value: Any) -> Array | None:
    """A list of integers as an array; None if it is something else, or empty."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        return None
    return array if array.ndim == 1 and array.dtype.kind in "iu" and len(array) > 0 else None


def _class_names(path: Path) -> list[str]:
    names = read_json(path, "a list of class names")
    are_names = isinstance(names, list) and all(
        isinstance(name, str) and name and "/" not in name for name in names
    )
    if not are_names or not names or len(set(names)) != len(names):
        raise DataError(f"{path} is not a JSON list of distinct class names{_REMEDY}")
    return list(names)


def _wrong(path: Path, cause: str) -> DataError:
    return DataError(
        f"{path} is not in the form of this benchmark: {cause}; get it from its publisher again"
    )
