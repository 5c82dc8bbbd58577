"""Reading images with their labels from pickles, .npz files and parquet.

If a file has no names of classes, they are named by split and label, such as `train 007`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradshare.errors import DataError
from gradshare.tasks.class_splits import published_split
from gradshare.tasks.dataset import FoundClass
from gradshare.tasks.files import refuse_web_page
from gradshare.tasks.lists import SPLIT_OF
from gradshare.tasks.pickles import load_pickle

Array = npt.NDArray[Any]

# By the code that writes them: Ren et al. (mini-ImageNet); MetaOptNet; TADAM; Ren et al. (tiered).
IMAGES = ("image_data", "data", "features", "images")
LABELS = ("labels", "targets", "label_specific")


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
    if isinstance(rows_of, dict):
        return _by_rows(split, images, rows_of, path)
    codes = _integers(_first(described, LABELS))
    if codes is None or len(codes) != len(images):
        raise _wrong(path, f"there is not one label for each of the {len(images)} images")
    label_of, listed = described.get("catname2label"), described.get("label_specific_str")
    names: dict[str, str] = {}
    if isinstance(label_of, dict):
        names = {str(label): str(name) for name, label in label_of.items()}
    elif isinstance(listed, list):
        names = {str(label): str(name) for label, name in enumerate(listed)}
    return [
        FoundClass(
            split,
            names.get(str(code), f"{split} {code:03}"),
            [images[row] for row in np.flatnonzero(codes == code).tolist()],
        )
        for code in np.unique(codes).tolist()
    ]


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


def _content(path: Path) -> Any:
    """What a pickle or an .npz file holds."""
    if path.suffix != ".npz":
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


def _by_rows(
    split: str, images: Sequence[Any] | Array, rows_of: dict[Any, Any], path: Path
) -> list[FoundClass]:
    """The classes of images of which each class has some rows."""
    found = []
    taken = np.zeros(len(images), dtype=np.bool_)
    for name, value in rows_of.items():
        rows = _integers(value)
        if rows is None or rows.min() < 0 or rows.max() >= len(images):
            raise _wrong(path, f"class {name!r} is not a list of rows of the {len(images)} images")
        if len(np.unique(rows)) != len(rows) or taken[rows].any():
            raise _wrong(path, f"class {name!r} has an image that is taken twice")
        taken[rows] = True
        found.append(FoundClass(split, str(name), [images[row] for row in rows.tolist()]))
    return found


def _integers(value: Any) -> Array | None:
    """A list of integers as an array; None if it is something else, or empty."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        return None
    return array if array.ndim == 1 and array.dtype.kind in "iu" and len(array) > 0 else None


def _wrong(path: Path, cause: str) -> DataError:
    return DataError(
        f"{path} is not in the form of this benchmark: {cause}; get it from its publisher again"
    )
