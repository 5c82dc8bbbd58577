"""A dataset that gradshare knows: where it is published, and the reader that finds its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradshare.errors import DataError


@dataclass(frozen=True)
class FoundClass:
    """A class that a reader has found. Its images are decoded while the store is written.

    Attributes:
        split: "train", "val" or "test".
        name: of the class, unique within the dataset.
        images: for each image the path of a file, the bytes of a file as uint8 (n,), or pixels as
            uint8 (H, W, 3) or (H, W).
        groups: the group of each image, such as its recording; None if there are no groups.
    """

    split: str
    name: str
    images: Sequence[Any] = field(repr=False)
    groups: Sequence[str] | None = field(default=None, repr=False)


Reader = Callable[[Path, Path], list[FoundClass]]
"""Finds the classes of a published dataset.

Args:
    path: what the user gave: a file or a folder.
    scratch: an empty folder to unpack archives into. It is removed when the store is written.

Raises:
    DataError: the path does not hold a complete copy of the dataset.
"""


@dataclass(frozen=True)
class Archive:
    """A file of a dataset as its authors publish it.

    Attributes:
        url: where it is published.
        filename: what it is called on disk.
        md5: its published checksum, in hexadecimal; None if there is none.
    """

    url: str
    filename: str
    md5: str | None


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be prepared.

    Attributes:
        name: as on the command line.
        summary: one line for `--help` and errors.
        channels: 1 (grey) or 3 (RGB); by default 1 if no image has colour.
        image_size: height and width that most papers use.
        rotate_classes: see `ImageStore`.
        read: finds the classes; None for glyphs, which are drawn, and for images of the user's own.
        classes: the number of classes that each split must have; empty if any will do.
        archives: what `--download` fetches.
    """

    name: str
    summary: str
    channels: int | None
    image_size: int
    rotate_classes: bool
    read: Reader | None
    classes: Mapping[str, int] = field(default_factory=dict)
    archives: tuple[Archive, ...] = ()


def require_classes(
    found: Sequence[FoundClass], where: Path, expected: Mapping[str, int] | None = None
) -> None:
    """Check the splits before any image is decoded.

    Args:
        found: the classes of all splits.
        where: what they were found in, for the message.
        expected: the number of classes that each split must have.

    Raises:
        DataError: two classes have one name, or a split has another number of classes.
    """
    split_of: dict[str, str] = {}
    for item in found:
        if item.name in split_of:
            raise DataError(
                f"class {item.name!r} of {where} is in {split_of[item.name]!r} and in "
                f"{item.split!r}: splits must not overlap; give it to one of them"
            )
        split_of[item.name] = item.split
    for split, count in (expected or {}).items():
        names = [name for name, its_split in split_of.items() if its_split == split]
        if len(names) != count:
            raise DataError(
                f"{where} has {len(names)} classes in {split!r}, the published split has {count}; "
                "get a complete copy with that split"
            )
