"""A dataset that gradshare knows: where it is published, and the reader that finds its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FoundClass:
    """A class that a reader has found. Its images are decoded while the store is written.

    Attributes:
        split: "train", "val" or "test"; "" for the published split of the class.
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
"""Finds the classes of a published dataset in a file or a folder. The second argument is an empty
folder to unpack archives into. It raises DataError unless the copy is complete.
"""


@dataclass(frozen=True)
class Archive:
    """A file of a dataset as its authors publish it: its address, its name on disk, and its
    published MD5 checksum in hexadecimal, None if there is none.
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
        channels: 1 (grey) or 3 (RGB); None for 1 if no image has colour.
        image_size: height and width that most papers use.
        rotate_classes: see `ImageStore`.
        read: finds the classes; None for glyphs, which are drawn, and for images of the user's own.
        split: the published split of each class; empty if there is none. Without a class in "val",
            validation tasks are of the training classes.
        archives: what `--download` fetches.
        characters: whether the images are of characters, which mean something else when mirrored.
    """

    name: str
    summary: str
    channels: int | None
    image_size: int
    rotate_classes: bool = False
    read: Reader | None = None
    split: Mapping[str, str] = field(default_factory=dict, repr=False)
    archives: tuple[Archive, ...] = ()
    characters: bool = False
