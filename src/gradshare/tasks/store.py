"""The prepared form of a dataset: one memory-mapped uint8 array and its index.

A store is a folder with two files:

- `images.npy`: uint8 (N, C, H, W), all images at one size, the images of a class side by side;
- `index.json`: which rows belong to which class of which split, the pixel statistics of the
  training split, and where the images came from.

`gradshare.tasks.writing` writes it, `ImageStore.open` opens it.
"""

from __future__ import annotations

import hashlib
import json
import tokenize
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, SupportsIndex

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, FiniteFloat, StrictBool, ValidationError

from gradshare.errors import DataError

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
NO_VALIDATION = (
    "published without validation classes, so that the validation tasks are of training classes"
)

LONGEST = 4096
"""The most channels, and pixels a side, that images may have."""

Images = npt.NDArray[np.uint8]


class MappedFile(np.memmap[Any, Any]):
    """The array in a file, memory-mapped."""

    def take(self, *arguments: Any, **options: Any) -> Any:
        """As `numpy.take`. Raise DataError if the file was cut since it was opened: to read beyond
        its end would kill the process.
        """
        mapped = self._mmap  # type: ignore[attr-defined]
        if mapped is not None and mapped.size() < len(mapped):
            raise DataError(
                f"{self.filename} was cut from {len(mapped)} to {mapped.size()} bytes while it was "
                "in use; put it back"
            )
        return super().take(*arguments, **options)


class StoredImages(MappedFile):
    """The images of a store, memory-mapped. A pickle holds where they are, and not the images.

    A part of the images has no `path` and `sha256`, and is pickled as an array.
    """

    path: Path
    sha256: str

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if not hasattr(self, "path"):
            return np.asarray(self).__reduce_ex__(protocol)
        return _reopened, (self.path.absolute(), self.sha256)


def _reopened(path: Path, sha256: str) -> Images:
    """The images that a pickle names. Raise DataError if they are gone, or are others by now."""
    store = ImageStore.open(path)
    if store.sha256 != sha256:
        raise DataError(
            f"the dataset in {path} was prepared anew since what reads it was pickled; "
            "open it again"
        )
    return store.splits["train"].images


@dataclass(frozen=True, eq=False)
class Split:
    """The classes of one split.

    Attributes:
        name: "train", "val" or "test".
        images: uint8 (N, C, H, W), of the whole store.
        class_names: one name a class.
        starts: (classes,) the first row of each class.
        counts: (classes,) how many rows each class has.
        groups: (N,) the group of each image, such as its recording; None if there are no groups.
        dataset: the name of the dataset, if it is in a store.
        source: where its images came from, likewise.
    """

    name: str
    images: Images = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    starts: npt.NDArray[np.int64] = field(repr=False)
    counts: npt.NDArray[np.int64] = field(repr=False)
    groups: npt.NDArray[np.str_] | None = field(default=None, repr=False)
    dataset: str | None = field(default=None, repr=False)
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)


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
        sha256: of the bytes of all images, as they were written.
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
        """Open the store in a folder. Images that were written to are compared with their digest.

        Raises:
            DataError: the folder holds no store, or one that is damaged or of another version.
        """
        path = Path(path)
        remedy = f"delete {path} and run `gradshare data prepare` again"
        if not is_store(path):
            raise DataError(f"no prepared dataset in {path}; run `gradshare data prepare` first")
        try:
            content = json.loads((path / "index.json").read_text(encoding="utf-8"))
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{path} has store format {version!r:.20}, this gradshare reads "
                    f"{FORMAT_VERSION}; {remedy}"
                )
            index = Index.model_validate(content)
            images = memory_map(path / "images.npy")
            index.require_fit(images)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"the prepared dataset in {path} is damaged ({first_mistake(error)}); {remedy}"
            ) from error
        stored = images.view(StoredImages)
        stored.path, stored.sha256 = path, index.sha256
        groups = None if index.groups is None else np.array(index.groups)
        splits, of_all = {}, (index.name, index.source)
        for name in SPLITS:
            classes = index.splits[name]
            starts = np.array([item.start for item in classes], dtype=np.int64)
            counts = np.array([item.count for item in classes], dtype=np.int64)
            names = tuple(item.name for item in classes)
            splits[name] = Split(name, stored, names, starts, counts, groups, *of_all)
        same = {"name", "mean", "std", "rotate_classes", "source", "sha256"}
        return cls(path=path, splits=splits, **index.model_dump(include=same))


def splits_note(name: str, source: Mapping[str, Any]) -> str | None:
    """A caveat printed with results on a dataset, given the record of where it came from: that its
    splits were drawn, or have no validation classes. None if there is nothing to say.
    """
    splits = str(source.get("splits"))
    said = splits.startswith("drawn") or splits == NO_VALIDATION
    return f"The splits of {name} were {splits}." if said else None


def is_store(path: Path) -> bool:
    """Whether there is a store in a folder."""
    return (path / "index.json").is_file()


# Beyond any number of images, and safe to add.
_Row = Annotated[int, Field(ge=-(2**53), le=2**53)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StoredClass(BaseModel):
    """Which rows of the images belong to a class."""

    name: str
    start: _Row
    count: _Row


class Index(BaseModel):
    """The content of `index.json`."""

    format_version: int
    name: str
    shape: list[int]
    mean: tuple[FiniteFloat, ...]
    std: tuple[Positive, ...]
    rotate_classes: StrictBool
    source: dict[str, Any]
    sha256: Sha256
    written: int | None = None  # when images.npy was, in nanoseconds
    splits: dict[str, Annotated[list[StoredClass], Field(min_length=1)]]
    groups: list[str] | None = None  # of each row

    def require_fit(self, images: MappedFile) -> None:
        """Raise ValueError if the index is not that of the images."""
        is_shape = images.dtype == np.uint8 and list(images.shape) == self.shape
        if not is_shape or not len(self.mean) == len(self.std) == self.shape[1]:
            raise ValueError(
                f"images.npy holds {images.dtype} {images.shape}, its index says uint8 "
                f"{self.shape} with {len(self.mean)} means and {len(self.std)} standard deviations"
            )
        if self.groups is not None and len(self.groups) != len(images):
            raise ValueError(f"{len(self.groups)} groups are given for {len(images)} images")
        validates_on_train = self.splits["val"] == self.splits["train"]
        splits = ("train", "test") if validates_on_train else SPLITS
        classes = [item for split in splits for item in self.splits[split]]
        rows = sorted((item.start, item.start + item.count, item.name) for item in classes)
        for start, end, name in rows:
            if start < 0 or end <= start or end > len(images):
                raise ValueError(f"class {name!r} has rows outside the {len(images)} images")
        for (_, end, one), (start, _, other) in pairwise(rows):
            if start < end:
                raise ValueError(f"classes {one!r} and {other!r} share images")
        for one, other in pairwise(sorted(name for _, _, name in rows)):
            if one == other:
                raise ValueError(f"class {one!r} is there twice")
        # To read all images takes seconds, and a file that was not written to is as it was.
        written = Path(str(images.filename)).stat().st_mtime_ns
        if written != self.written and hashlib.sha256(images.data).hexdigest() != self.sha256:
            raise ValueError("images.npy has other images than its index says")


def first_mistake(error: Exception) -> str:
    """What is wrong with a content, in a few words."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def memory_map(path: Path) -> MappedFile:
    """An array in a .npy file, whatever its type, without reading it. Raise OSError or ValueError
    if there is none, or it is cut off.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers that Python 2 wrote
            return np.lib.format.open_memmap(path, mode="r").view(MappedFile)
    except (SyntaxError, tokenize.TokenError, MemoryError, OverflowError, TypeError) as error:
        raise ValueError(f"{path.name} has no proper header: {error}") from error
