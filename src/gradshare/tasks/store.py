"""The prepared form of a dataset: one memory-mapped uint8 array and its index.

A store is a folder with two files:

- `images.npy`: uint8 (N, C, H, W), all images at one size, the images of a class side by side;
- `index.json`: which rows belong to which class of which split, the pixel statistics of the
  training split, and where the images came from.

It is written once by `write_store` (into a temporary folder beside it, then renamed, so that a
store either is complete or does not exist) and opened by `ImageStore.open` without reading images.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import tokenize
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from gradshare.errors import DataError

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")

LONGEST: Final = 4096
"""So many channels, and so many pixels a side, images have at the most."""

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ClassImages:
    """All images of one class, as a dataset reader hands them to `write_store`.

    Attributes:
        split: "train", "val" or "test".
        name: the class's name, unique within the dataset.
        images: uint8 (n, C, H, W) at the store's size.
    """

    split: str
    name: str
    images: Images


@dataclass(frozen=True, eq=False)
class StoredImages:
    """The images of an opened store. A pickle of it holds no image but where they are, so that
    another process maps the same file.

    Attributes:
        path: the store's folder.
        sha256: of the images, see `ImageStore`.
        images: uint8 (N, C, H, W), memory-mapped.
    """

    path: Path
    sha256: str
    images: Images

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path.absolute(), self.sha256)


def _reopened(path: Path, sha256: str) -> StoredImages:
    """The images that a pickle names.

    Raises:
        DataError: they are not there, or are others by now.
    """
    store = ImageStore.open(path)
    stored = store.splits["train"].stored
    if stored is None or store.sha256 != sha256:
        raise DataError(
            f"the dataset in {path} was prepared anew since what reads it was pickled; "
            "open it again"
        )
    return stored


@dataclass(frozen=True, eq=False)
class Split:
    """The classes of one split.

    A pickle of a store's split holds where its images are, and not the images.

    Attributes:
        name: "train", "val" or "test".
        images: uint8 (N, C, H, W), of the whole store, memory-mapped.
        class_names: one name a class.
        starts: (classes,) the first row of each class.
        counts: (classes,) how many rows each class has.
        stored: what `images` are, of an opened store; None where they are in memory alone.
    """

    name: str
    images: Images = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    starts: npt.NDArray[np.int64] = field(repr=False)
    counts: npt.NDArray[np.int64] = field(repr=False)
    stored: StoredImages | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.stored is not None and self.images is self.stored.images:
            del state["images"]
        else:
            state["stored"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["stored"] is not None:
            state = {**state, "images": state["stored"].images}
        self.__dict__.update(state)


@dataclass(frozen=True, eq=False)
class ImageStore:
    """An opened store.

    Attributes:
        name: the dataset's name.
        path: the store's folder.
        splits: by name.
        mean: of the training split's pixels in [0, 1], one value a channel.
        std: likewise.
        rotate_classes: whether training episodes turn each class by a random multiple of 90°,
            as the field does with Omniglot.
        source: where the images came from and how they were prepared, for the record.
        sha256: of the bytes of all images, as they were written; it is not computed again.
    """

    name: str
    path: Path
    splits: Mapping[str, Split] = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rotate_classes: bool
    source: Mapping[str, Any] = field(repr=False)
    sha256: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.splits["train"].images.shape[1:]
        return channels, height, width

    @classmethod
    def open(cls, path: Path | str) -> ImageStore:
        """Open the store in a folder.

        Raises:
            DataError: there is no store, or it is damaged or of another format version.
        """
        path = Path(path)
        remedy = f"delete {path} and run `gradshare data prepare` again"
        if not (path / "index.json").is_file():
            raise DataError(f"no prepared dataset in {path}; run `gradshare data prepare` first")
        try:
            content = json.loads((path / "index.json").read_text(encoding="utf-8"))
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{path} has store format {version!r:.20}, this gradshare reads "
                    f"{FORMAT_VERSION}; {remedy}"
                )
            index = _Index.model_validate(content)
            images = memory_map(path / "images.npy")
            if (
                images.dtype != np.uint8
                or images.ndim != 4
                or list(images.shape) != index.shape
                or not len(index.mean) == len(index.std) == images.shape[1]
            ):
                raise DataError(
                    f"{path / 'images.npy'} holds {images.dtype} {images.shape}, its index "
                    f"says uint8 {index.shape} with {len(index.mean)} means and {len(index.std)} "
                    f"standard deviations; {remedy}"
                )
            stored = StoredImages(path, index.sha256, images)
            return cls(
                name=index.name,
                path=path,
                splits={
                    "train": _split("train", stored, index.splits.train),
                    "val": _split("val", stored, index.splits.val),
                    "test": _split("test", stored, index.splits.test),
                },
                mean=tuple(index.mean),
                std=tuple(index.std),
                rotate_classes=index.rotate_classes,
                source=index.source,
                sha256=index.sha256,
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            cause = _first_mistake(error) if isinstance(error, ValidationError) else error
            raise DataError(
                f"the prepared dataset in {path} is damaged ({cause}); {remedy}"
            ) from error


# Beyond any number of images, and safe to add.
_Row = Annotated[int, Field(ge=-(2**53), le=2**53)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Class(BaseModel):
    name: str
    start: _Row
    count: _Row


class _Splits(BaseModel):
    train: list[_Class]
    val: list[_Class]
    test: list[_Class]


class _Index(BaseModel):
    """What is read of `index.json`."""

    name: str
    shape: list[int]
    mean: list[FiniteFloat]
    std: list[_Positive]
    rotate_classes: bool
    source: dict[str, Any]
    sha256: Sha256
    splits: _Splits


def _first_mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return repr(where) if first["type"] == "missing" else f"{where}: {first['msg']}"


def memory_map(path: Path) -> npt.NDArray[Any]:
    """An array in a .npy file, whatever its type, without reading it.

    Raises:
        OSError, ValueError: it is none, or is cut off.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers that Python 2 wrote
            return np.lib.format.open_memmap(path, mode="r")
    except (SyntaxError, tokenize.TokenError, MemoryError, OverflowError, TypeError) as error:
        raise ValueError(f"{path.name} has no proper header: {error}") from error


def _split(name: str, stored: StoredImages, entries: list[_Class]) -> Split:
    starts = np.array([entry.start for entry in entries], dtype=np.int64)
    counts = np.array([entry.count for entry in entries], dtype=np.int64)
    if (starts < 0).any() or (counts < 1).any() or (starts + counts > len(stored.images)).any():
        raise ValueError(f"split {name!r} names rows outside the {len(stored.images)} images")
    names = tuple(entry.name for entry in entries)
    return Split(name, stored.images, names, starts, counts, stored)


def write_store(
    path: Path | str,
    classes: Iterable[ClassImages],
    *,
    name: str,
    rotate_classes: bool,
    source: Mapping[str, Any],
) -> ImageStore:
    """Write a store, whole or not at all, and open it.

    Args:
        path: the store's folder; it must not exist yet.
        classes: every class of every split, in any order. They are taken one at a time, so the
            dataset need not fit in memory.
        name: the dataset's name.
        rotate_classes: see `ImageStore`.
        source: see `ImageStore`; must be JSON.

    Raises:
        DataError: the path is taken, two classes of one name (overlapping splits), an unknown
            split, a class without images, images that are not square, or of differing shape or
            type, a split without classes, a name that is no text, or a source that is not JSON.
    """
    for what, value, kind in (("name", name, str), ("rotate_classes", rotate_classes, bool)):
        if not isinstance(value, kind):
            raise DataError(f"{what} is {value!r}; give a {kind.__name__}")
    try:
        json.dumps(dict(source))
    except (TypeError, ValueError) as error:
        raise DataError(f"source {source!r} is not JSON: {error}") from error
    path = Path(path)
    if path.exists():
        raise DataError(
            f"{path} is there already and is not overwritten; delete it, or write to another path"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    # A temporary folder is its owner's alone; a store is for whoever shares the data root.
    partial = temporary / "store"
    partial.mkdir()
    try:
        index = _write(partial, classes)
        index |= {
            "format_version": FORMAT_VERSION,
            "name": name,
            "rotate_classes": rotate_classes,
            "source": dict(source),
        }
        (partial / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        partial.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ImageStore.open(path)


def _write(folder: Path, classes: Iterable[ClassImages]) -> dict[str, Any]:
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    split_of: dict[str, str] = {}
    shape: tuple[int, ...] = ()
    rows = 0
    train = _PixelStatistics()
    digest = hashlib.sha256()
    with (folder / "images.npy").open("wb") as npy:
        for item in classes:
            if not isinstance(item.name, str):
                raise DataError(f"a class has the name {item.name!r}; give a str")
            if item.split not in splits:
                raise DataError(
                    f"class {item.name!r} is in split {item.split!r}; use one of {SPLITS}"
                )
            if item.name in split_of:
                raise DataError(
                    f"class {item.name!r} stands twice, in {split_of[item.name]!r} and in "
                    f"{item.split!r}: splits must not overlap; give it to one of them"
                )
            images = np.asarray(item.images)
            if len(images) == 0:
                raise DataError(f"class {item.name!r} has no images; remove it or add some")
            _require_square(item.name, images)
            if not shape:
                shape = images.shape[1:]
                _write_header(npy, 0, shape)
            if images.shape[1:] != shape:
                raise DataError(
                    f"images of class {item.name!r} are {images.shape[1:]}, those before it {shape}"
                )
            split_of[item.name] = item.split
            splits[item.split].append({"name": item.name, "start": rows, "count": len(images)})
            rows += len(images)
            data = np.ascontiguousarray(images).tobytes()
            digest.update(data)
            npy.write(data)
            if item.split == "train":
                train.add(images)
        if rows:
            _write_header(npy, rows, shape)
    empty = [split for split, entries in splits.items() if not entries]
    if empty:
        raise DataError(f"no classes in split {empty[0]!r}; every one of {SPLITS} needs some")
    mean, std = train.result()
    return {
        "shape": [rows, *shape],
        "mean": mean,
        "std": std,
        "sha256": digest.hexdigest(),
        "splits": splits,
    }


def _require_square(name: str, images: Images) -> None:
    shape = images.shape
    fits = len(shape) == 4 and shape[2] == shape[3] and max(shape[1:]) <= LONGEST
    if images.dtype != np.uint8 or not fits:
        raise DataError(
            f"images of class {name!r} are {images.dtype} {shape}; give uint8 (n, C, H, W), the "
            f"channels first, with H = W and none of them above {LONGEST}"
        )


def _write_header(npy: BinaryIO, rows: int, shape: tuple[int, ...]) -> None:
    """Write the .npy header at the file's start. numpy leaves room in it for any number of rows,
    so that it can be written again when their number is known.
    """
    npy.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(npy, header)


class _PixelStatistics:
    """Mean and standard deviation of each channel, exactly, in integers."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: npt.NDArray[np.int64] | int = 0
        self.sum_of_squares: npt.NDArray[np.int64] | int = 0

    def add(self, images: Images) -> None:
        channels = images.transpose(1, 0, 2, 3).reshape(images.shape[1], -1).astype(np.int64)
        self.count += channels.shape[1]
        self.sum = self.sum + channels.sum(1)
        self.sum_of_squares = self.sum_of_squares + (channels**2).sum(1)

    def result(self) -> tuple[list[float], list[float]]:
        mean = np.asarray(self.sum) / self.count
        variance = np.asarray(self.sum_of_squares) / self.count - mean**2
        # A constant channel is left as it is instead of being divided by zero.
        std = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 255.0)
        return (mean / 255).tolist(), (std / 255).tolist()
